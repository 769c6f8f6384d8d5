"""Word documents: paragraphs, headings, lists, tables, text boxes, notes and comments, straight from the XML.

Read as a stream: what has been given is forgotten. Text that was deleted with changes tracked is left out.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator

from lxml import etree

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from .archive import attribute, local, member, opened, relations, tree
from .base import Outline, Source, Table, one_line, row_segments, squeeze, text_segments

_SKIPPED = frozenset(
    ["Fallback", "delText", "instrText", "del", "moveFrom", "rPr", "pPr", "tblPr", "sectPr", "posOffset"]
)
_EXTRA = ("header", "footer", "footnotes", "endnotes", "comments")
_LIST = -1
_HEADING = re.compile(
    r"(?:heading|überschrift|titre|título|titolo|kop|rubrik|заголовок|标题|見出し)\s*(\d)", re.IGNORECASE
)


def load(source: Source) -> Iterator[Segment]:
    """Load a .docx file.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not a Word document.
    """
    with opened(source) as archive:
        main = next(
            (path for kind, path in relations(archive, "").values() if kind == "officeDocument"), "word/document.xml"
        )
        parts = relations(archive, main)
        levels = _styles(archive, next((path for kind, path in parts.values() if kind == "styles"), ""))
        outline, seen = Outline(), False
        for segment in _body(archive, source, main, levels, outline):
            seen = True
            yield segment
        told: set[str] = set()
        for wanted in _EXTRA:
            for path in sorted(path for kind, path in parts.values() if kind == wanted):
                for segment in _extra(archive, path):
                    if segment.text not in told:  # each section repeats its header and footer
                        told.add(segment.text)
                        seen = True
                        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


def _styles(archive: zipfile.ZipFile, path: str) -> dict[str, int]:
    """Return the styles that make headings or lists: style id to level, or to ``_LIST``."""
    root = tree(archive, path) if path else None
    found: dict[str, int] = {}
    for style in root if root is not None else ():
        if local(style) != "style":
            continue
        name = next((attribute(node, "val") for node in style if local(node) == "name"), "")
        based = next((attribute(node, "val") for node in style if local(node) == "basedOn"), "")
        match = _HEADING.match(name)
        outline = [attribute(node, "val") for node in style.iter() if local(node) == "outlineLvl"]
        key = attribute(style, "styleId")
        if match:
            found[key] = int(match[1])
        elif name.lower() == "title":
            found[key] = 0
        elif outline and outline[0].isdecimal() and int(outline[0]) < 9:
            found[key] = int(outline[0]) + 1
        elif any(local(node) == "numPr" for node in style.iter()):
            found[key] = _LIST
        elif based in found:
            found[key] = found[based]
    return found


def _body(
    archive: zipfile.ZipFile, source: Source, path: str, levels: dict[str, int], outline: Outline
) -> Iterator[Segment]:
    """Give the main part, one child of the body at a time."""
    with member(archive, source, path) as stream:
        try:
            events = etree.iterparse(stream, events=("start", "end"), resolve_entities=False, no_network=True,
                                     huge_tree=True, recover=True)  # fmt: skip
            depth, holders = 0, [0]
            for event, node in events:
                name = local(node)
                if event == "start":
                    depth += 1
                    if depth - 1 == holders[-1] and name in ("document", "body", "sdt", "sdtContent", "customXml"):
                        holders.append(depth)
                    continue
                if holders[-1] == depth:
                    holders.pop()
                elif depth - 1 == holders[-1]:
                    yield from _block(node, levels, outline)
                    node.clear()
                    parent = node.getparent()
                    while parent is not None and node.getprevious() is not None:
                        del parent[0]
                depth -= 1
        except etree.XMLSyntaxError as exc:
            raise DamagedDocumentError(source.name, "its text is broken XML", "open and save it anew") from exc


def _block(node: etree._Element, levels: dict[str, int], outline: Outline) -> Iterator[Segment]:
    name = local(node)
    if name == "tbl":
        yield from _table(node, outline)
    elif name == "p":
        text = squeeze(_text(node))
        if not text:
            return
        style, numbered, level = _style(node)
        level = levels.get(style) if level is None else level
        if level == _LIST:
            numbered, level = True, None
        if level is not None and len(text) <= 300:
            title = one_line(text)
            outline.enter(level, title)
            yield Segment(title, heading=outline.path, kind="heading")
        else:
            yield from text_segments(f"- {text}" if numbered else text, heading=outline.path)
    else:
        text = squeeze(_text(node))
        if text:
            yield from text_segments(text, heading=outline.path)


def _style(paragraph: etree._Element) -> tuple[str, bool, int | None]:
    """Return a paragraph's style, whether it is an item of a list, and its own outline level, if it has one."""
    style, numbered, level = "", False, None
    for properties in paragraph:
        if local(properties) != "pPr":
            continue
        for node in properties:
            if local(node) == "pStyle":
                style = attribute(node, "val")
            elif local(node) == "numPr":
                numbered = True
            elif local(node) == "outlineLvl" and attribute(node, "val").isdecimal() and int(attribute(node, "val")) < 9:
                level = int(attribute(node, "val")) + 1
    return style, numbered, level


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
        elif name == "noBreakHyphen":
            parts.append("-")
        else:
            if name in ("p", "tr", "txbxContent") and item is not node:
                stack.append("\n")
            elif name in ("tc", "num", "sup", "sub", "den"):
                stack.append(" ")
            stack.extend(reversed(item))
            if name in ("p", "txbxContent") and item is not node:
                stack.append("\n")
    return "".join(parts)


def _table(node: etree._Element, outline: Outline) -> Iterator[Segment]:
    table, begun = Table(), False
    for row in _rows(node):
        cells, header = _cells(row)
        for segment in row_segments(table.add(cells, header=header), begun=begun, heading=outline.path):
            begun = True
            yield segment
    for segment in row_segments(table.close(), begun=begun, heading=outline.path):
        begun = True
        yield segment


def _rows(table: etree._Element) -> Iterator[etree._Element]:
    for child in table:
        name = local(child)
        if name == "tr":
            yield child
        elif name in ("sdt", "sdtContent", "customXml"):
            yield from _rows(child)


def _cells(row: etree._Element) -> tuple[list[str], bool]:
    """Return the texts of a row's cells (a cell over several columns once, then blanks) and whether it is a header."""
    cells: list[str] = []
    header = False
    for child in row:
        name = local(child)
        if name == "trPr":
            header = any(local(node) == "tblHeader" for node in child)
        elif name in ("tc", "sdt", "customXml"):
            span = next((attribute(node, "val") for node in child.iter() if local(node) == "gridSpan"), "1")
            cells.append(one_line(_text(child)))
            cells.extend([""] * (min(int(span), 100) - 1 if span.isdecimal() else 0))
    return cells, header


def _extra(archive: zipfile.ZipFile, path: str) -> Iterator[Segment]:
    """Give headers, footers, notes and comments, each paragraph once."""
    root = tree(archive, path)
    for node in root if root is not None else ():
        text = squeeze(_text(node))
        if text:
            yield from text_segments(text)
