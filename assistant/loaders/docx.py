"""Word documents: paragraphs, headings, lists, tables, text boxes, notes and comments, straight from the XML.

Read as a stream: what has been given is forgotten. Text that was deleted with changes tracked is left out.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lxml import etree

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from . import drawing
from .archive import attribute, local, member, opened, relations, tree
from .base import Outline, Source, Table, one_line, row_segments, squeeze, text_segments
from .numbering import Numbering

_SKIPPED = frozenset(
    ["Fallback", "delText", "instrText", "del", "moveFrom", "rPr", "pPr", "tblPr", "sectPr", "posOffset"]
)
_BESIDE = ("chart", "diagramData", "header", "footer", "footnotes", "endnotes", "comments")
_HEADING = re.compile(
    r"(?:heading|überschrift|titre|título|titolo|kop|rubrik|заголовок|标题|見出し)\s*(\d)", re.IGNORECASE
)
_MATH = {"sup": "^", "sub": "_", "den": "/", "deg": " "}
_HOLDERS = frozenset(["document", "body", "sdt", "sdtContent", "customXml"])


def load(source: Source) -> Iterator[Segment]:
    """Load a .docx file.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not a Word document.
    """
    with opened(source) as archive:
        targets = relations(archive, "").values()
        main = next((path for kind, path in targets if kind == "officeDocument"), "word/document.xml")
        parts = relations(archive, main)
        named = {kind: path for kind, path in parts.values()}
        reader = _Reader(_styles(archive, named.get("styles", "")), Numbering(archive, named.get("numbering", "")))
        seen = False
        for segment in reader.body(archive, source, main):
            seen = True
            yield segment
        told: set[str] = set()
        for wanted in _BESIDE:
            for path in sorted(path for kind, path in parts.values() if kind == wanted):
                for segment in _beside(archive, path, wanted):
                    if segment.text not in told:  # each section repeats its header and footer
                        told.add(segment.text)
                        seen = True
                        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


@dataclass(frozen=True, slots=True)
class _Style:
    """What a paragraph's style says of it.

    Attributes:
        level: Of a heading; 0 is the title.
        list_id: The list it is an item of; "" none, "0" none although its style is.
        depth: In that list, from 0.
    """

    level: int | None = None
    list_id: str = ""
    depth: int = 0


def _styles(archive: zipfile.ZipFile, path: str) -> dict[str, _Style]:
    """Return the paragraph styles by id."""
    root = tree(archive, path) if path else None
    found: dict[str, _Style] = {}
    for node in root if root is not None else ():
        if local(node) != "style":
            continue
        facts = {local(child): attribute(child, "val") for child in node}
        base = found.get(facts.get("basedOn", ""), _Style())
        style = _properties(node, base)
        match = _HEADING.match(facts.get("name", ""))
        if match:
            style = replace(style, level=int(match[1]))
        elif facts.get("name", "").lower() == "title":
            style = replace(style, level=0)
        found[attribute(node, "styleId")] = style
    return found


def _properties(node: etree._Element, style: _Style) -> _Style:
    """Return *style* with what the paragraph properties below *node* change of it."""
    for properties in node:
        if local(properties) != "pPr":
            continue
        for child in properties:
            if local(child) == "numPr":
                facts = {local(below): attribute(below, "val") for below in child}
                depth = facts.get("ilvl", "")
                style = replace(style, list_id=facts.get("numId", style.list_id),
                                depth=int(depth) if depth.isdecimal() else style.depth)  # fmt: skip
            elif local(child) == "outlineLvl" and attribute(child, "val").isdecimal():
                level = int(attribute(child, "val"))
                style = replace(style, level=level + 1 if level < 9 else None)
    return style


class _Reader:
    """Reads the body, keeping count of its headings and lists."""

    def __init__(self, styles: dict[str, _Style], numbering: Numbering) -> None:
        self._styles = styles
        self._numbering = numbering
        self._outline = Outline()

    def body(self, archive: zipfile.ZipFile, source: Source, path: str) -> Iterator[Segment]:
        """Give the main part, one child of the body at a time."""
        with member(archive, source, path) as stream:
            events = etree.iterparse(stream, events=("start", "end"), resolve_entities=False, no_network=True,
                                     huge_tree=True, recover=True)  # fmt: skip
            depth, holders = 0, [0]
            try:
                for event, node in events:
                    if event == "start":
                        depth += 1
                        if depth - 1 == holders[-1] and local(node) in _HOLDERS:
                            holders.append(depth)
                        continue
                    if holders[-1] == depth:
                        holders.pop()
                    elif depth - 1 == holders[-1]:
                        yield from self._block(node)
                        node.clear()
                        parent = node.getparent()
                        while parent is not None and node.getprevious() is not None:
                            del parent[0]
                    depth -= 1
            except etree.XMLSyntaxError as exc:
                raise DamagedDocumentError(source.name, "its text is broken XML", "open and save it anew") from exc

    def _block(self, node: etree._Element) -> Iterator[Segment]:
        name = local(node)
        if name == "tbl":
            yield from self._table(node)
            return
        text, level = self._paragraph(node) if name == "p" else (squeeze(_text(node)), None)
        if text and level is not None and len(text) <= 300:
            title = one_line(text)
            self._outline.enter(level, title)
            yield Segment(title, heading=self._outline.path, kind="heading")
        elif text:
            yield from text_segments(text, heading=self._outline.path)

    def _paragraph(self, node: etree._Element) -> tuple[str, int | None]:
        """Return a paragraph's text with its number or bullet, and its level if it is a heading."""
        text = squeeze(_text(node))
        if not text:
            return "", None
        named = next((attribute(child, "val") for child in node.iterfind("{*}pPr/{*}pStyle")), "")
        style = _properties(node, self._styles.get(named, _Style()))
        number = self._numbering.next(style.list_id, style.depth) if style.list_id else ""
        return (f"{number} {text}" if number else text), style.level

    def _table(self, node: etree._Element) -> Iterator[Segment]:
        table, begun = Table(), False
        for row in _rows(node):
            cells, header = self._cells(row)
            for segment in row_segments(table.add(cells, header=header), begun=begun, heading=self._outline.path):
                begun = True
                yield segment
        yield from row_segments(table.close(), begun=begun, heading=self._outline.path)

    def _cells(self, row: etree._Element) -> tuple[list[str], bool]:
        """Return the texts of a row's cells (one over several columns once, then blanks), and if it is a header."""
        cells: list[str] = []
        header = False
        for child in row:
            name = local(child)
            if name == "trPr":
                header = any(local(node) == "tblHeader" for node in child)
            elif name in ("tc", "sdt", "customXml"):
                span = next((attribute(node, "val") for node in child.iter() if local(node) == "gridSpan"), "1")
                parts = (self._paragraph(node)[0] if local(node) == "p" else _text(node) for node in child)
                cells.append(one_line(" ".join(parts)))
                cells.extend([""] * (min(int(span), 100) - 1 if span.isdecimal() else 0))
        return cells, header


def _rows(table: etree._Element) -> Iterator[etree._Element]:
    for child in table:
        name = local(child)
        if name == "tr":
            yield child
        elif name in ("sdt", "sdtContent", "customXml"):
            yield from _rows(child)


def _text(node: etree._Element) -> str:
    """Return the text below *node*; walks without recursion, for files may nest deeper than Python does."""
    parts: list[str] = []
    stack: list[etree._Element | str] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        name = local(item)
        if name in _SKIPPED:
            continue
        if name == "t":
            parts.append(item.text or "")
        elif name in ("tab", "ptab"):
            parts.append(" ")
        elif name in ("br", "cr"):
            parts.append("\n")
        elif name in _MATH:
            stack.extend(reversed(item))
            stack.append(_MATH[name])
        elif name == "noBreakHyphen":
            parts.append("-")
        else:
            if name in ("p", "tr", "txbxContent") and item is not node:
                stack.append("\n")
            elif name == "tc":
                stack.append(" ")
            stack.extend(reversed(item))
            if name in ("p", "txbxContent") and item is not node:
                stack.append("\n")
    return "".join(parts).replace("☒", "[x]").replace("☑", "[x]").replace("☐", "[ ]")


def _beside(archive: zipfile.ZipFile, path: str, kind: str) -> Iterator[Segment]:
    """Give charts, diagrams, headers, footers, notes and comments."""
    root = tree(archive, path)
    if root is not None and kind == "chart":
        yield from drawing.chart(root)
        return
    if root is not None and kind == "diagramData":
        yield from text_segments(squeeze(drawing.paragraphs(root)))
        return
    for node in root if root is not None else ():
        text = squeeze(_text(node))
        if text:
            yield from text_segments(text)
