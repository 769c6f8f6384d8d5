"""JSON and JSON Lines: each object of a list becomes a row, all else ``path: value`` lines; read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ijson

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from .base import Source, one_line, text_segments
from .decode import lines, read

_MAX_DEPTH = 200
_MAX_BLOCK = 2_000  # characters of a row before it goes out in parts


class _Stream:
    """Decoded text as the byte stream that ijson reads, whatever the file's own encoding."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.empty = True

    def read(self, size: int = -1) -> bytes:
        """Return up to *size* bytes."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece.lstrip("\ufeff").encode("utf-8", "replace")
            self.empty = self.empty and not self._rest.strip()
        if size < 0:
            size = len(self._rest)
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def load(source: Source) -> Iterator[Segment]:
    """Load a JSON file; several values one after another (JSON Lines under another name) are read too.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not JSON, or nested beyond reason.
    """
    stream = _Stream(read(source))
    walker = _Walker(source)
    seen = False
    try:
        for event, value in ijson.basic_parse(stream, multiple_values=True):
            for segment in walker.take(event, value):
                seen = True
                yield segment
    except (ijson.JSONError, ValueError) as exc:
        if stream.empty:
            raise EmptyDocumentError(source.name, "it holds no text") from exc
        raise DamagedDocumentError(source.name, f"it is not valid JSON ({_said(exc)})",
                                   "correct it, or rename it to .txt") from exc  # fmt: skip
    for segment in walker.flush():
        seen = True
        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


class _Walker:
    """Turns parser events into rows without building the values."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._path: list[str] = []
        self._lists: list[bool] = []  # for each open container: whether it is a list
        self._parts: list[str] = []
        self._size = 0
        self._row = 0
        self._begun = False

    def take(self, event: str, value: Any) -> Iterator[Segment]:
        """Take a parser event."""
        if event == "map_key":
            self._path[-1] = one_line(str(value))[:100]
            if len(self._path) == 1:
                yield from self.flush()  # a field of the outermost object is a paragraph of its own
        elif event in ("start_map", "start_array"):
            if self._is_row() and event == "start_map":
                yield from self.flush()
                self._row += 1
            self._lists.append(event == "start_array")
            self._path.append("")
            if len(self._path) > _MAX_DEPTH:
                raise DamagedDocumentError(self._source.name, f"it is nested deeper than {_MAX_DEPTH} levels")
        elif event in ("end_map", "end_array"):
            self._path.pop()
            self._lists.pop()
            if (self._is_row() and event == "end_map") or not self._path:
                yield from self.flush()
        elif value is not None and value != "":
            if self._is_row():
                yield from self.flush()
                self._row += 1
            name = ".".join(part for part in self._path if part)
            text = one_line(_word(value))
            if text:
                self._parts.append(f"{name}: {text}" if name else text)
                self._size += len(self._parts[-1])
            if self._size > _MAX_BLOCK:
                yield from self.flush()

    def _is_row(self) -> bool:
        """Tell whether a value at this place is an item of the outermost list, or of a list right in it."""
        return bool(self._lists) and self._lists[-1] and len(self._lists) <= 2

    def flush(self) -> Iterator[Segment]:
        """Give what has gathered."""
        parts, self._parts, self._size = self._parts, [], 0
        if not parts:
            return
        text = " | ".join(parts)
        for segment in text_segments(text, kind="row", row=self._row or None, glue="\n" if self._begun else ""):
            self._begun = True
            yield segment


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def load_lines(source: Source) -> Iterator[Segment]:
    """Load JSON Lines: a line is a row; one that is no JSON is named.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: A line is not JSON.
    """
    seen, begun, held = False, False, ""
    for number, text, whole in lines(source, limit=1 << 24):
        held += text
        if not whole:
            if len(held) > 1 << 26:
                raise DamagedDocumentError(source.name, f"its line {number} is longer than 64 million characters")
            continue
        line, held = held.strip().lstrip("\ufeff"), ""
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise DamagedDocumentError(source.name, f"its line {number} is not valid JSON", "correct it") from exc
        row = " | ".join(_flat("", value))
        for segment in text_segments(row, kind="row", row=number, line=number, glue="\n" if begun else ""):
            seen = begun = True
            yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


def _flat(name: str, value: Any) -> Iterator[str]:
    """Yield ``path: value`` for each value."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(f"{name}.{one_line(str(key))[:100]}" if name else one_line(str(key))[:100], below)
    elif isinstance(value, list):
        for below in value:
            yield from _flat(name, below)
    elif value is not None and value != "":
        text = one_line(_word(value))
        if text:
            yield f"{name}: {text}" if name else text


def _said(exc: Exception) -> str:
    """Return what the JSON library said, without the excerpt of the file that it prints below."""
    return one_line(str(exc).partition("\n")[0]).removeprefix("parse error: ").removeprefix("lexical error: ")[:80]
