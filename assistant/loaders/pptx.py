"""PowerPoint slides: text of shapes, tables, charts, diagrams and notes, straight from the XML; a slide is a page."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from lxml import etree

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from . import drawing
from .archive import attribute, local, opened, relations, tree
from .base import Source, Table, one_line, row_segments, squeeze, text_segments
from .drawing import paragraphs

_FURNITURE = ("sldNum", "hdr", "ftr", "dt")
_BESIDE = ("notesSlide", "chart", "diagramData", "comments")


def load(source: Source) -> Iterator[Segment]:
    """Load a .pptx file, slides in the order they are shown.

    Raises:
        EmptyDocumentError: No slide holds text.
        DamagedDocumentError: It is not a presentation.
    """
    with opened(source) as archive:
        main = next((path for kind, path in relations(archive, "").values() if kind == "officeDocument"), "")
        slides = _slides(archive, main or "ppt/presentation.xml")
        if slides is None:
            raise DamagedDocumentError(source.name, "it lacks its list of slides", "open and save it anew")
        seen = False
        authors = _authors(archive)
        for number, path in enumerate(slides, 1):
            for segment in _slide(archive, path, number, authors):
                seen = True
                yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "no slide holds text")


def _slides(archive: zipfile.ZipFile, main: str) -> list[str] | None:
    root = tree(archive, main)
    if root is None:
        return None
    targets = relations(archive, main)
    found = []
    for node in root.iter():
        if local(node) == "sldId":
            key = next((value for name, value in node.attrib.items() if name.endswith("}id")), "")
            if key in targets:
                found.append(targets[key][1])
    return found


def _slide(archive: zipfile.ZipFile, path: str, number: int, authors: dict[str, str]) -> Iterator[Segment]:
    root = tree(archive, path)
    if root is None:
        return
    shapes = list(_shapes(root))
    title = next((one_line(paragraphs(shape)) for shape in shapes if _is_title(shape)), "")
    heading = (title[:200],) if title else ()
    if title:
        yield Segment(title, page=number, heading=heading, kind="heading")
    for shape in shapes:
        if _is_title(shape) and title:
            continue
        if local(shape) == "tbl":
            yield from _table(shape, number, heading)
            continue
        text = squeeze(paragraphs(shape))
        if text:
            yield from text_segments(text, page=number, heading=heading)
    for kind, target in relations(archive, path).values():
        if kind in _BESIDE:
            beside = tree(archive, target)
            if kind == "chart" and beside is not None:
                yield from drawing.chart(beside, page=number, heading=heading)
                continue
            text = squeeze(_beside(beside, kind, authors)) if beside is not None else ""
            if text and text != str(number):
                yield from text_segments(text, page=number, heading=heading)


def _shapes(root: etree._Element) -> Iterator[etree._Element]:
    """Yield what holds text: shapes, and tables on their own."""
    stack = [root]
    while stack:
        node = stack.pop()
        name = local(node)
        if name in ("sp", "cxnSp", "tbl"):
            yield node
        elif name != "Fallback":
            stack.extend(reversed(node))


def _is_title(shape: etree._Element) -> bool:
    return any(local(node) == "ph" and node.get("type") in ("title", "ctrTitle") for node in shape.iter())


def _authors(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return who commented: id to name."""
    found = {}
    for name in ("ppt/commentAuthors.xml", "ppt/authors.xml"):
        root = tree(archive, name)
        for node in root if root is not None else ():
            initials = f" ({node.get('initials')})" if node.get("initials") else ""
            found[node.get("id", "")] = one_line(f"{node.get('name', '')}{initials}")
    return found


def _comment(node: etree._Element, authors: dict[str, str]) -> str:
    """Write a comment with its author and time; newer files hold its words as paragraphs."""
    told = "".join(child.text or "" for child in node.iter() if local(child) == "text") or paragraphs(node)
    who, when = authors.get(node.get("authorId", ""), ""), node.get("dt") or node.get("created") or ""
    facts = ", ".join(fact for fact in (who, when) if fact)
    return f"{facts}: {one_line(told)}" if facts else one_line(told)


def _beside(root: etree._Element, kind: str, authors: dict[str, str]) -> str:
    """Return what notes, diagrams and comments say."""
    if kind == "comments":
        return "\n".join(_comment(node, authors) for node in root.iter() if local(node) == "cm")
    if kind == "notesSlide":
        bodies = [
            shape for shape in _shapes(root)
            if not any(local(node) == "ph" and node.get("type") in _FURNITURE for node in shape.iter())
        ]  # fmt: skip
        return "\n".join(paragraphs(shape) for shape in bodies)
    return paragraphs(root)


def _table(node: etree._Element, number: int, heading: tuple[str, ...]) -> Iterator[Segment]:
    table, begun = Table(), False
    first = any(local(child) == "tblPr" and attribute(child, "firstRow") in ("1", "true") for child in node)
    rows = [child for child in node if local(child) == "tr"]
    for index, row in enumerate(rows):
        cells = [one_line(paragraphs(cell)) for cell in row if local(cell) == "tc"]
        header = first and index == 0 and len(rows) > 1
        for segment in row_segments(table.add(cells, header=header), begun=begun, page=number, heading=heading):
            begun = True
            yield segment
    yield from row_segments(table.close(), begun=begun, page=number, heading=heading)
