"""Rich Text Format, through striprtf."""

from __future__ import annotations

import re
from collections.abc import Iterator

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from .base import Source, Table, row_segments, squeeze, text_segments

_BINARY = re.compile(rb"\{\\\*?\\?(?:pict|objdata|datastore|themedata|colorschememapping)[^{}]*\}")

_STRAY = re.compile(
    rb"(?<![{\\\s])\\\*(?=\\)"
)  # a mark that only counts at the start of a group; StarWriter puts it elsewhere


def load(source: Source) -> Iterator[Segment]:
    """Load an RTF file, paragraph by paragraph; table rows keep their header.

    Raises:
        EmptyDocumentError: It holds no text.
        DamagedDocumentError: It is not RTF.
    """
    from striprtf.striprtf import rtf_to_text

    data = source.path.read_bytes()
    if b"{\\rtf" not in data[:1024]:
        raise DamagedDocumentError(
            source.name, "it is not an RTF file, whatever its name says", "open and save it anew"
        )
    raw = _STRAY.sub(b"", _BINARY.sub(b"", data)).decode("latin-1")
    try:
        text: str = rtf_to_text(raw, encoding=_code_page(data), errors="replace")  # type: ignore[no-untyped-call]
    except (ValueError, IndexError, LookupError, KeyError, TypeError) as exc:
        raise DamagedDocumentError(source.name, "its markup can't be read", "open and save it anew") from exc
    seen, table, begun = False, Table(), False
    for block in re.split(r"\n", text):
        if block.count("|") >= 2 and block.rstrip().endswith("|"):
            ready = table.add(block.rstrip()[:-1].split("|"))
            for segment in row_segments(ready, begun=begun):
                seen = begun = True
                yield segment
            continue
        for segment in row_segments(table.close(), begun=begun):
            seen = True
            yield segment
        table, begun = Table(), False
        line = squeeze(block)
        if line:
            seen = True
            yield from text_segments(line)
    for segment in row_segments(table.close(), begun=begun):
        seen = True
        yield segment
    if not seen:
        raise EmptyDocumentError(source.name, "it holds no text")


def _code_page(data: bytes) -> str:
    found = re.search(rb"\\ansicpg(\d+)", data[:4096])
    name = f"cp{int(found[1])}" if found else "cp1252"
    try:
        "".encode(name)
    except LookupError:
        return "cp1252"
    return name
