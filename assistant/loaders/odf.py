"""OpenDocument texts and presentations: paragraphs, headings, lists, tables and notes; a slide is a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

from lxml import etree

from assistant.errors import DamagedDocumentError, EmptyDocumentError, EncryptedDocumentError
from assistant.records import Segment

from .archive import attribute, local, member, opened, tree
from .base import Outline, Source, Table, one_line, row_segments, squeeze, text_segments

_SKIPPED = frozenset(["tracked-changes", "forms", "desc", "title", "annotation-end", "sequence-decls"])


def load(source: Source) -> Iterator[Segment]:
    """Load an .odt, .odp or flat .fodt file.

    Raises:
        EmptyDocumentError: It holds no text.
        EncryptedDocumentError: It needs a password.
        DamagedDocumentError: It is not an OpenDocument file.
    """
    with ExitStack() as stack:
        if source.path.suffix.lower() == ".fodt":
            stream: IO[bytes] = stack.enter_context(source.path.open("rb"))
        else:
            archive = stack.enter_context(opened(source))
            manifest = tree(archive, "META-INF/manifest.xml")
            if manifest is not None and any(local(node) == "encryption-data" for node in manifest.iter()):
                raise EncryptedDocumentError(source.name, "it is encrypted", "save it without encryption")
            stream = stack.enter_context(member(archive, source, "content.xml"))
        seen = False
        try:
            for segment in _Reader().read(stream):
                seen = True
                yield segment
        except etree.XMLSyntaxError as exc:
            raise DamagedDocumentError(source.name, "its text is broken XML", "open and save it anew") from exc
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


class _Reader:
    """Walks the content as a stream; gives a block when it ends and forgets it."""

    def __init__(self) -> None:
        self._outline = Outline()
        self._page: int | None = None
        self._slides = 0
        self._lists = 0
        self._tables = 0

    def read(self, stream: IO[bytes]) -> Iterator[Segment]:
        events = etree.iterparse(stream, events=("start", "end"), resolve_entities=False, no_network=True,
                                 huge_tree=True, recover=True)  # fmt: skip
        skip = inside = 0
        for event, node in events:
            name = local(node)
            if name in _SKIPPED:
                skip += 1 if event == "start" else -1
            if event == "start":
                if name == "page":
                    self._slides += 1
                    self._page = self._slides
                self._lists += name == "list-item"
                self._tables += name == "table"
                inside += name in ("p", "h")
                continue
            inside -= name in ("p", "h")
            if not skip and name in ("p", "h") and not inside and not self._tables:
                yield from self._block(node, name)
                node.clear()
            elif name == "table":
                self._tables -= 1
                if not self._tables and not skip and not inside:
                    yield from self._table(node)
                    node.clear()
            self._lists -= name == "list-item"

    def _block(self, node: etree._Element, name: str) -> Iterator[Segment]:
        text = squeeze(_text(node))
        if not text:
            return
        if name == "h" and len(text) <= 300:
            level = attribute(node, "outline-level")
            title = one_line(text)
            self._outline.enter(int(level) if level.isdecimal() else 1, title)
            yield Segment(title, page=self._page, heading=self._outline.path, kind="heading")
        else:
            text = f"- {text}" if self._lists else text
            yield from text_segments(text, page=self._page, heading=self._outline.path)

    def _table(self, node: etree._Element) -> Iterator[Segment]:
        table, begun = Table(), False
        heads = {id(row) for group in node.iter() if local(group) == "table-header-rows" for row in group}
        for row in [child for child in node.iter() if local(child) == "table-row"]:
            cells = [
                one_line(" ".join(_text(part) for part in cell))
                for cell in row if local(cell) in ("table-cell", "covered-table-cell")
            ]  # fmt: skip
            ready = table.add(cells, header=id(row) in heads)
            for segment in row_segments(ready, begun=begun, page=self._page, heading=self._outline.path):
                begun = True
                yield segment
        yield from row_segments(table.close(), begun=begun, page=self._page, heading=self._outline.path)


def _text(root: etree._Element) -> str:
    """Return the text below *root*, without recursion."""
    parts: list[str] = []
    stack: list[etree._Element | str] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            parts.append(node)
            continue
        name = local(node)
        if name == "s":
            count = attribute(node, "c")
            parts.append(" " * (min(int(count), 100) if count.isdecimal() else 1))
        elif name == "tab":
            parts.append(" ")
        elif name == "line-break":
            parts.append("\n")
        elif name and name not in _SKIPPED:
            if name in ("p", "h") and node is not root:
                parts.append("\n")
                stack.append("\n")
            parts.append(node.text or "")
            for child in reversed(node):
                if child.tail:
                    stack.append(child.tail)
                stack.append(child)
    return "".join(parts)
