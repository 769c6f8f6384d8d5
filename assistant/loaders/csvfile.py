"""CSV and TSV: each row keeps its header; rows are read one by one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain

from assistant.errors import DamagedDocumentError, EmptyDocumentError
from assistant.records import Segment

from .base import Source, Table, one_line, row_segments
from .decode import read

_DELIMITERS = ",;\t|"
_MAX_CELL = 1 << 24  # characters


def load(source: Source) -> Iterator[Segment]:
    """Load a CSV or TSV file; row numbers count from the file's first row, as a spreadsheet shows them.

    Raises:
        EmptyDocumentError: It has no cells with text.
        DamagedDocumentError: It can't be told apart into cells.
    """
    csv.field_size_limit(_MAX_CELL)
    pieces = read(source)
    head = ""
    for piece in pieces:
        head += piece
        if len(head) >= 1 << 15:
            break
    delimiter = _delimiter(head, "\t" if source.path.suffix.lower() in (".tsv", ".tab") else ",")
    table, begun = Table(convention=True), False
    try:
        for number, row in enumerate(csv.reader(_lines(chain([head], pieces)), delimiter=delimiter), 1):
            for segment in row_segments(table.add(row, number=number), begun=begun):
                begun = True
                yield segment
    except csv.Error as exc:
        raise DamagedDocumentError(source.name, f"it can't be read as a table ({one_line(str(exc))})",
                                   "check its quotes, or rename it to .txt") from exc  # fmt: skip
    for segment in row_segments(table.close(), begun=begun):
        begun = True
        yield segment
    if not begun:
        raise EmptyDocumentError(source.name, "no cell holds text")


def _delimiter(head: str, default: str) -> str:
    """Choose the delimiter that cuts the first rows into the same number of cells, more than one."""
    lines = [line for line in head.split("\n")[:50] if line.strip()]
    if len(head) >= 1 << 15 and len(lines) > 1:
        lines.pop()
    best, best_score = default, 0.0
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        usual = max(set(widths), key=widths.count, default=0)
        score = widths.count(usual) / len(widths) * (1.1 if delimiter == default else 1.0) if usual > 1 else 0.0
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        rest += piece.replace("\0", "")
        *whole, rest = rest.split("\n")
        for line in whole:
            yield line + "\n"
        if len(rest) > _MAX_CELL:
            raise csv.Error("a line is longer than 16 million characters")
    if rest:
        yield rest
