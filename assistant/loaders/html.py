"""HTML: an event parser that holds no tree, so that neither size nor depth of a page costs memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lxml import etree

from assistant.errors import DamagedDocumentError
from assistant.records import Segment

from .base import Outline, Source, Table, clean, one_line, row_segments, squeeze, text_segments
from .decode import read

_SKIPPED = frozenset(["script", "style", "template", "noscript", "svg", "head", "iframe", "object"])
_BLOCKS = frozenset(
    ["address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl", "dt",
     "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "nav", "ol",
     "p", "pre", "section", "summary", "table", "ul", "caption", "tbody", "thead", "tfoot", "title", "option",
     "frameset", "noframes", "menu", "dir", "hgroup", "search"]
)  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


class _Grid:
    """A table being read: its rows, and the cells that reach down into rows to come."""

    def __init__(self) -> None:
        self.table = Table()
        self.begun = False
        self.in_row = False
        self._row: list[str] = []
        self._heads: list[bool] = []
        self._hanging: dict[int, tuple[int, str]] = {}  # column: rows still to fill, text
        self._later: dict[int, tuple[int, str]] = {}

    def start_row(self) -> None:
        """Begin a row with the cells that hang into it from above."""
        self._row, self._heads, self.in_row = [], [], True
        self._hanging, self._later = self._later, {}
        self._fill()

    def cell(self, text: str, *, head: bool, columns: int, rows: int) -> None:
        """Take a cell; one over several columns names each of them if it is a header."""
        for number in range(min(max(columns, 1), 100)):
            if rows > 1:
                self._later[len(self._row)] = (rows - 1, text)
            self._row.append(text if number == 0 or head else "")
            self._heads.append(head)
        self._fill()

    def end_row(self) -> list[tuple[int, str]]:
        """End the row and return the lines that are ready."""
        self.in_row = False
        filled = [head for head, text in zip(self._heads, self._row, strict=True) if text]
        return self.table.add(self._row, header=len(filled) > 1 and all(filled))

    def _fill(self) -> None:
        while len(self._row) in self._hanging:
            rows, text = self._hanging.pop(len(self._row))
            if rows > 1:
                self._later[len(self._row)] = (rows - 1, text)
            self._row.append(text)
            self._heads.append(True)


class _Target:
    """Receives what the parser sees and gathers segments."""

    def __init__(self) -> None:
        self.ready: list[Segment] = []
        self._outline = Outline()
        self._text: list[str] = []
        self._size = 0
        self._skip: list[str] = []
        self._pre = 0
        self._heading = 0
        self._title: list[str] | None = None
        self._grids: list[_Grid] = []
        self._cells: list[tuple[list[str], bool, int, int]] = []

    def start(self, tag: str, attrib: dict[str, str]) -> None:
        """Enter an element."""
        if tag == "title" and self._title is None and not self._grids:
            self._title = []
            return
        if self._skip or (tag in _SKIPPED and tag != "head"):
            self._skip.append(tag)
            return
        if tag == "br":
            self._add("\n")
        elif tag == "img" and attrib.get("alt"):
            self._add(f" {attrib['alt']} ")
        elif tag == "input" and attrib.get("type", "text") in ("text", "submit", "button") and attrib.get("value"):
            self._add(f" {attrib['value']} ")
        elif tag in _HEADINGS:
            self._break()
            self._heading = _HEADINGS[tag]
        elif tag == "table":
            self._break()
            self._grids.append(_Grid())
        elif tag == "tr" and self._grids:
            self._end_row()
            self._break()
            self._grids[-1].start_row()
        elif tag in ("td", "th") and self._grids:
            self._end_cell()
            if not self._grids[-1].in_row:
                self._grids[-1].start_row()
            spans = [int(value) if (value := attrib.get(name, "1").strip()).isdecimal() and len(value) < 5 else 1
                     for name in ("colspan", "rowspan")]  # fmt: skip
            self._cells.append(([], tag == "th", spans[0], spans[1]))
        elif tag in _BLOCKS:
            self._break()
            self._pre += tag == "pre"
            if tag == "li" and not self._cells:
                self._add("- ")

    def end(self, tag: str) -> None:
        """Leave an element."""
        if tag == "title" and self._title is not None:
            title, self._title = one_line("".join(self._title)), None
            if title:
                self.ready.append(Segment(title, kind="heading"))
            return
        if self._skip:
            if tag in self._skip:
                while self._skip.pop() != tag:
                    pass
            return
        if tag in _HEADINGS:
            self._break()
            self._heading = 0
        elif tag == "table" and self._grids:
            self._end_row()
            grid = self._grids.pop()
            self._rows(grid, grid.table.close())
            self._break()
        elif tag == "tr" and self._grids:
            self._end_row()
        elif tag in ("td", "th"):
            self._end_cell()
        elif tag in _BLOCKS:
            self._break()
            self._pre -= tag == "pre" and self._pre > 0

    def data(self, text: str) -> None:
        """Take text."""
        if self._title is not None:
            self._title.append(text[:500])
        elif not self._skip:
            self._add(text if self._pre else _collapsed(text))

    def comment(self, text: str) -> None:
        """Pass over a comment."""

    def pi(self, target: str, data: str | None = None) -> None:
        """Pass over a processing instruction."""

    def close(self) -> list[Segment]:
        """Give what is left."""
        while self._grids:
            self.end("table")
        self._break()
        return self.take()

    def take(self) -> list[Segment]:
        """Give what is ready."""
        ready, self.ready = self.ready, []
        return ready

    def _add(self, text: str) -> None:
        if self._cells:
            self._cells[-1][0].append(text)
            return
        self._text.append(text)
        self._size += len(text)
        if self._size > 1 << 20 and text[-1:].isspace():
            self._break()  # a block without end must not gather without end

    def _break(self) -> None:
        """End the paragraph; within a table's cell only a space is due."""
        if self._cells:
            self._cells[-1][0].append(" " if not self._pre else "\n")
            return
        raw, self._text, self._size = "".join(self._text), [], 0
        if not raw or raw.isspace():
            return
        if self._heading:
            title = one_line(raw)
            self._outline.enter(self._heading, title)
            self.ready.append(Segment(title, heading=self._outline.path, kind="heading"))
        elif self._pre:
            self.ready.extend(text_segments(clean(raw).strip("\n"), heading=self._outline.path, kind="code"))
        else:
            text = squeeze(raw)
            if text and text != "-":
                self.ready.extend(text_segments(text, heading=self._outline.path))

    def _end_cell(self) -> None:
        # A cell without its end tag ends with the next one; libxml2 closes most of them itself.
        if self._cells and self._grids and len(self._cells) >= len(self._grids):
            parts, head, columns, rows = self._cells.pop()
            self._grids[-1].cell(one_line("".join(parts)), head=head, columns=columns, rows=rows)

    def _end_row(self) -> None:
        self._end_cell()
        if self._grids and self._grids[-1].in_row:
            self._rows(self._grids[-1], self._grids[-1].end_row())

    def _rows(self, grid: _Grid, rows: list[tuple[int, str]]) -> None:
        if self._cells:  # a table inside a cell becomes text of that cell
            self._cells[-1][0].extend(f" {text} " for _, text in rows)
            return
        self.ready.extend(row_segments(rows, begun=grid.begun, heading=self._outline.path))
        grid.begun = grid.begun or bool(rows)


def _collapsed(text: str) -> str:
    """Return *text* with its line ends as spaces: in HTML they mean nothing more."""
    return text.replace("\n", " ") if "\n" in text else text


def load(source: Source) -> Iterator[Segment]:
    """Load an HTML file."""
    return segments(read(source, declared=True), source)


def segments(parts: Iterable[str], source: Source) -> Iterator[Segment]:
    """Give the segments of HTML that comes in parts.

    Raises:
        DamagedDocumentError: The parser gave up on it.
    """
    target = _Target()
    parser = etree.HTMLParser(target=target, huge_tree=True)
    try:
        for part in parts:
            parser.feed(_without_nul(part))
            yield from target.take()
        yield from parser.close()
    except (etree.ParserError, etree.XMLSyntaxError) as exc:
        left = target.close()
        if not left:
            raise DamagedDocumentError(source.name, f"it can't be read as HTML ({one_line(str(exc))[:120]})") from exc
        yield from left


def _without_nul(text: str) -> str:
    return text.replace("\0", "") if "\0" in text else text
