"""Plain text, and the light markups that are read as they stand: Markdown, reStructuredText, Org, TeX.

Their text stays verbatim, so that a quote can be found in the file with any editor; markup only tells headings, tables
and code apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

from assistant.records import Segment

from .base import MAX_SEGMENT, Outline, Source, Table, clean, pieces, row_segments
from .decode import lines

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*\Z")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_RULE_ROW = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*\Z")
_ADORNMENT = re.compile(r"([=\-~^\"'`#*+.:_<>])\1{2,}[ \t]*\Z")
_TEX = re.compile(r"\\(part|chapter|section|subsection|subsubsection|paragraph)\*?\{(.+?)\}")
_TEX_LEVELS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")
_DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]{64,}")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    whole: bool


class _Block:
    """Gathers lines into segments: verbatim, with the whitespace between them as their glue."""

    def __init__(self, heading: tuple[str, ...] = ()) -> None:
        self.outline = Outline(list(enumerate(heading, 1)))
        self._parts: list[str] = []
        self._size = 0
        self._line = 0
        self._glue = ""
        self._first = True

    def add(self, line: _Line) -> Iterator[Segment]:
        """Take a line of text; gives a segment when enough has gathered."""
        if not self._parts:
            self._line = line.number
        self._parts.append(line.text + ("\n" if line.whole else ""))
        self._size += len(line.text)
        if self._size >= MAX_SEGMENT:
            yield from self.flush()

    def blank(self, line: _Line) -> Iterator[Segment]:
        """Take an empty line."""
        yield from self.flush()
        if len(self._glue) < 8:  # a page of empty lines says no more than a few of them
            self._glue += "\n"

    def hold(self, line: _Line) -> Generator[Segment, None, _Line | None]:
        """Take a line, or return it unread if only the next one shows what it is."""
        if line.whole and line.text.strip():
            return line
        yield from self.blank(line) if line.whole else self.add(line)
        return None

    def end(self, held: _Line | None, kind: str = "text") -> Iterator[Segment]:
        """Give what is left at the end, with the line that waited for another."""
        if held is not None:
            yield from self.add(held)
        yield from self.flush(kind)

    def flush(self, kind: str = "text") -> Iterator[Segment]:
        """Give what has gathered."""
        if not self._parts:
            return
        raw = "".join(self._parts)
        self._parts, self._size = [], 0
        text = raw.rstrip()
        stripped = text.lstrip("\n\r\f\v ") if kind == "text" and "\n" not in text else text
        lead = text[: len(text) - len(stripped)]
        if stripped:
            line = self._line
            for inner, piece in pieces(stripped) if len(stripped) > 2 * MAX_SEGMENT else [("", stripped)]:
                glue = inner or ("" if self._first else (self._glue + lead) or " ")
                self._first = False
                line += inner.count("\n")
                yield Segment(piece, heading=self.outline.path, line=line, kind=kind, glue=glue)  # type: ignore[arg-type]
                line += piece.count("\n")
            self._glue = raw[len(text) :][:8]
        else:
            self._glue = (self._glue + raw)[:8]

    def after_rows(self) -> None:
        """Note that rows of a table went out since the last text."""
        self._first, self._glue = False, "\n"

    def heading(self, level: int, title: str, line: _Line, extra: str = "") -> Iterator[Segment]:
        """Give a heading line, verbatim with *extra* lines of its markup."""
        yield from self.flush()
        self.outline.enter(level, title)
        self._parts, self._line = [line.text + "\n" + extra], line.number
        yield from self.flush("heading")


def load(source: Source) -> Iterator[Segment]:
    """Load plain text, paragraph by paragraph."""
    block = _Block()
    for line in _lines(source):
        yield from block.add(line) if line.text.strip() or not line.whole else block.blank(line)
    yield from block.flush()


def load_markdown(source: Source) -> Iterator[Segment]:
    """Load Markdown: headings, fenced code and pipe tables are told apart; all else is text as it stands."""
    yield from markdown(_lines(source))


def markdown_text(text: str, heading: tuple[str, ...] = ()) -> Iterator[Segment]:
    """Give the segments of a Markdown text that stands below *heading*."""
    numbered = enumerate(clean(text).split("\n"), 1)
    return markdown((_Line(number, line, True) for number, line in numbered), heading)


def markdown(found: Iterator[_Line], heading: tuple[str, ...] = ()) -> Iterator[Segment]:
    """Give the segments of Markdown lines that stand below *heading*."""
    block, fence = _Block(heading), ""
    held: _Line | None = None  # the line before, until the next one shows what it is
    for line in _without_images(found):
        if fence:
            yield from block.add(line)
            if line.text.strip().startswith(fence) and not line.text.strip().strip(fence[0]):
                yield from block.flush("code")
                fence = ""
            continue
        setext = held is not None and re.fullmatch(r" {0,3}(?:=+|-+)[ \t]*", line.text)
        if held is not None and setext and "|" not in held.text:
            yield from block.heading(1 if "=" in line.text else 2, held.text, held, line.text + "\n")
            held = None
            continue
        if held is not None and "|" in held.text and _RULE_ROW.match(line.text) and "|" in line.text:
            yield from block.flush()
            line = yield from _pipe_table(held, found, block)
            held = None
        elif held is not None:
            yield from block.add(held)
            held = None
        opening, title = _FENCE.match(line.text), _ATX.match(line.text)
        if opening:
            yield from block.flush()
            fence = opening[1]
            yield from block.add(line)
        elif title and title[2]:
            yield from block.heading(len(title[1]), title[2], line)
        else:
            held = yield from block.hold(line)
    yield from block.end(held, "code" if fence else "text")


def _pipe_table(header: _Line, found: Iterator[_Line], block: _Block) -> Generator[Segment, None, _Line]:
    """Give the rows of a table and return the line after it; its header was read, and the rule below it."""
    table, begun = Table(), False
    table.add(_cells(header.text), header=True)
    line = _Line(header.number + 1, "", True)
    for line in found:
        if "|" not in line.text:
            break
        for segment in row_segments(table.add(_cells(line.text)), begun=begun, heading=block.outline.path):
            begun = True
            yield replace(segment, line=line.number)
    else:
        line = _Line(line.number + 1, "", True)
    for segment in row_segments(table.close(), begun=begun, heading=block.outline.path):
        yield replace(segment, line=header.number)
    block.after_rows()
    return line


def _cells(line: str) -> list[str]:
    text = line.strip().removeprefix("|")
    if text.endswith("|") and not text.endswith("\\|"):
        text = text[:-1]
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", text)]


def load_rst(source: Source) -> Iterator[Segment]:
    """Load reStructuredText; a heading's level is the order in which its underline first appears."""
    block = _Block()
    styles: list[str] = []
    held: _Line | None = None
    for line in _lines(source):
        mark = _ADORNMENT.match(line.text)
        if held is not None and mark and held.text.strip() and len(line.text.rstrip()) >= len(held.text.rstrip()) * 0.6:
            if line.text[0] not in styles:
                styles.append(line.text[0])
            yield from block.heading(styles.index(line.text[0]) + 1, held.text, held)
            held = None
            continue
        if held is not None:
            yield from block.add(held)
            held = None
        if mark:
            yield from block.flush()  # an overline or a transition
        else:
            held = yield from block.hold(line)
    yield from block.end(held)


def _with_headings(source: Source, title: Callable[[str], tuple[int, str] | None]) -> Iterator[Segment]:
    block = _Block()
    for line in _lines(source):
        found = title(line.text) if line.whole else None
        if found:
            yield from block.heading(*found, line)
        else:
            yield from block.add(line) if line.text.strip() or not line.whole else block.blank(line)
    yield from block.flush()


def load_org(source: Source) -> Iterator[Segment]:
    """Load an Org file; stars make headings."""

    def title(text: str) -> tuple[int, str] | None:
        found = re.match(r"(\*{1,8})\s+(.+)", text)
        return (len(found[1]), found[2]) if found else None

    return _with_headings(source, title)


def load_tex(source: Source) -> Iterator[Segment]:
    """Load TeX source; its sectioning commands make headings."""

    def title(text: str) -> tuple[int, str] | None:
        found = _TEX.search(text)
        return (_TEX_LEVELS.index(found[1]) + 1, found[2]) if found else None

    return _with_headings(source, title)


def _lines(source: Source) -> Iterator[_Line]:
    for number, text, whole in lines(source):
        yield _Line(number, clean(text), whole)


def _without_images(found: Iterator[_Line]) -> Iterator[_Line]:
    """Leave out images that a text carries inside itself as base64."""
    for line in found:
        yield replace(line, text=_DATA_URI.sub("data:", line.text)) if ";base64," in line.text else line
