"""Jupyter notebooks: Markdown cells as Markdown, code as code, and what it printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from assistant.errors import DamagedDocumentError, DocumentTooLargeError
from assistant.records import Segment

from .base import Source, clean, text_segments
from .decode import read
from .text import markdown_text

_MAX_BYTES = 100 << 20


def load(source: Source) -> Iterator[Segment]:
    """Load a notebook.

    Raises:
        DamagedDocumentError: It is not one.
        DocumentTooLargeError: It can't be held in memory.
    """
    if source.path.stat().st_size > _MAX_BYTES:
        raise DocumentTooLargeError(source.name, "a notebook of over 100 MiB", "clear its outputs")
    try:
        book = json.loads("".join(read(source)))
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DamagedDocumentError(source.name, "it is not a notebook, whatever its name says", "save it anew") from exc
    heading: tuple[str, ...] = ()
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        text = _joined(cell.get("source", cell.get("input", "")))
        if cell.get("cell_type") == "markdown":
            for segment in markdown_text(text, heading):
                heading = segment.heading
                yield replace(segment, line=None, glue=segment.glue or "\n\n")
        elif cell.get("cell_type") == "code":
            yield from text_segments(clean(text).strip("\n"), heading=heading, kind="code")
            for output in cell.get("outputs", []):
                yield from text_segments(clean(_printed(output)).strip("\n"), heading=heading, kind="code")
        else:
            yield from text_segments(clean(text), heading=heading)


def _printed(output: Any) -> str:
    """Return the plain text of a cell's output."""
    if not isinstance(output, dict):
        return ""
    data = output.get("data", {})
    return _joined(output.get("text") or (data.get("text/plain", "") if isinstance(data, dict) else ""))


def _joined(text: Any) -> str:
    return "".join(str(part) for part in text) if isinstance(text, list) else str(text or "")
