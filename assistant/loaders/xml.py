"""XML of any kind: prose as paragraphs, records as ``name: value`` rows; read as a stream."""

from __future__ import annotations

from collections.abc import Iterator

from lxml import etree

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from .base import Outline, Source, one_line, squeeze, text_segments
from .decode import detect, read

_TITLES = frozenset(["title", "heading", "head", "article-title", "invention-title", "h1", "h2", "h3", "h4"])
_SECTIONS = frozenset(["sec", "section", "chapter", "article", "div", "part", "appendix", "abstract", "sect1", "sect2"])
_SHORT = 200  # characters: a leaf no longer is the value of a field
_MAX_DEPTH = 5_000


class _Frame:
    """An open element: what it holds so far."""

    __slots__ = ("children", "name", "parts", "prose")

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[str] = []
        self.prose = False  # has text of its own beside its children
        self.children = 0


class _Target:
    """Receives what the parser sees; keeps no tree."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stack: list[_Frame] = []
        self._outline = Outline()
        self._fields: list[str] = []
        self._size = 0
        self.ready: list[Segment] = []

    def start(self, tag: str, attrib: dict[str, str]) -> None:
        """Enter an element."""
        if len(self._stack) >= _MAX_DEPTH:
            raise DamagedDocumentError(self._source.name, f"it is nested deeper than {_MAX_DEPTH} levels")
        name = tag.rsplit("}", 1)[-1]
        parent = self._stack[-1] if self._stack else None
        if parent is not None:
            parent.children += 1
            if not parent.prose:
                self._give(parent)
        self._stack.append(_Frame(name))

    def data(self, text: str) -> None:
        """Take text."""
        if not self._stack:
            return
        frame = self._stack[-1]
        frame.parts.append(text)
        if not text.isspace():
            frame.prose = True
            self._size += len(text)
            if self._size > 1 << 20 and text[-1:].isspace():
                self._give(frame)

    def end(self, tag: str) -> None:
        """Leave an element."""
        frame = self._stack.pop()
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.prose:
            inner = "".join(frame.parts)
            parent.parts.append(inner)  # inline markup: part of the sentence around it
            return
        if frame.name in _TITLES and frame.parts and (title := one_line("".join(frame.parts))):
            self._flush()
            depth = sum(held.name in _SECTIONS for held in self._stack) + 1
            self._outline.enter(depth, title)
            self.ready.extend(text_segments(title, heading=self._outline.path, kind="heading"))
            frame.parts = []
        self._give(frame)
        if not frame.prose and frame.children and frame.name not in _SECTIONS:
            self._flush()

    def comment(self, text: str) -> None:
        """Pass over a comment."""

    def pi(self, target: str, data: str | None = None) -> None:
        """Pass over a processing instruction."""

    def close(self) -> list[Segment]:
        """Give what is left."""
        while self._stack:
            self._give(self._stack.pop())
        self._flush()
        return self.take()

    def take(self) -> list[Segment]:
        """Give what is ready."""
        ready, self.ready = self.ready, []
        return ready

    def _give(self, frame: _Frame) -> None:
        """Give the text of an element: a short leaf joins the other fields of its record."""
        text = squeeze("".join(frame.parts))
        frame.parts = []
        self._size = 0
        if not text:
            return
        if len(text) <= _SHORT and not frame.children and "\n" not in text and frame.name not in ("p", "para"):
            self._fields.append(f"{frame.name}: {text}")
            if sum(len(field) for field in self._fields) > 1_000:
                self._flush()
            return
        self._flush()
        self.ready.extend(text_segments(text, heading=self._outline.path))

    def _flush(self) -> None:
        fields, self._fields = self._fields, []
        if fields:
            self.ready.extend(text_segments(" | ".join(fields), heading=self._outline.path, kind="row"))


def load(source: Source) -> Iterator[Segment]:
    """Load an XML file; what a broken one gives before it breaks is kept.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not XML, or nested beyond reason.
    """
    detect(source)  # refuses what is no text at all
    target = _Target(source)
    parser = etree.XMLParser(target=target, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True,
                             recover=True)  # fmt: skip
    seen = False
    pieces = read(source, declared=True)
    try:
        first = True
        for piece in pieces:
            parser.feed(_undeclared(piece) if first else piece)
            first = False
            for segment in target.take():
                seen = True
                yield segment
        left = parser.close()
    except etree.XMLSyntaxError as exc:
        left = target.close()
        if not left and not seen:
            raise DamagedDocumentError(
                source.name, f"it is not valid XML ({one_line(str(exc))[:80]})", "correct it"
            ) from exc
    for segment in left:
        seen = True
        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


def _undeclared(text: str) -> str:
    """Return the start of a file without its XML declaration: the text is decoded already."""
    text = text.lstrip("\ufeff \t\n")
    if text.startswith("<?xml"):
        _, mark, rest = text.partition("?>")
        return rest if mark else text
    return text
