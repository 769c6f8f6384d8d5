"""Rows out of a damaged SQLite file, page by page, without asking SQLite.

Reads the file format as documented at https://www.sqlite.org/fileformat2.html: leaf pages of tables, their cells and
overflow chains, and the pages in a write-ahead log that were committed. It does not follow the tree from its root, so
that rows below a broken page are found too. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Value = None | int | float | str | bytes

_PAGE = 4096  # what Thimble's databases have, for when the header is lost
_LEAF = 0x0D
_MAX_COLUMNS = 64
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type to bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One row as found: its rowid, its columns, and whether all of its bytes were there."""

    rowid: int
    values: tuple[Value, ...]
    whole: bool


def rows(database: Path) -> Iterator[Row]:
    """Yield every row of every table that can be made out in the file and its write-ahead log."""
    log = database.with_name(database.name + "-wal")
    with database.open("rb") as file:
        size = _page_size(file.read(100))
        newer = _logged_pages(log, size) if log.exists() else {}
        last = max(database.stat().st_size // size + 1, *newer, 0) if newer else database.stat().st_size // size + 1

        def page(number: int) -> bytes:
            if number in newer:
                return newer[number]
            file.seek((number - 1) * size)
            return file.read(size)

        for number in range(1, last + 1):
            data = page(number)
            start = 100 if number == 1 else 0
            if len(data) < start + 8 or data[start] != _LEAF:
                continue
            (count,) = struct.unpack_from(">H", data, start + 3)
            for place in range(min(count, size // 4)):
                offset = start + 8 + 2 * place
                if offset + 2 > len(data):
                    break
                row = _row(data, struct.unpack_from(">H", data, offset)[0], size, page)
                if row is not None:
                    yield row


def _row(data: bytes, at: int, size: int, page: object) -> Row | None:
    """Read one cell of a table leaf; None where it makes no sense."""
    try:
        length, at = _varint(data, at)
        rowid, at = _varint(data, at)
        if length > 1 << 30 or length < 2:
            return None
        limit, smallest = size - 35, (size - 12) * 32 // 255 - 23
        if length <= limit:
            payload = data[at : at + length]
        else:
            local = smallest + (length - smallest) % (size - 4)
            local = local if local <= limit else smallest
            payload = data[at : at + local] + _overflow(data[at + local : at + local + 4], length - local, size, page)
        return _record(rowid if rowid < 1 << 63 else rowid - (1 << 64), payload, len(payload) == length)
    except (IndexError, struct.error, ValueError):
        return None


def _overflow(pointer: bytes, left: int, size: int, page: object) -> bytes:
    """Follow a chain of overflow pages as far as it goes."""
    found, seen = b"", set()
    while left > 0 and len(pointer) == 4:
        (number,) = struct.unpack(">I", pointer)
        if number < 2 or number in seen:
            break
        seen.add(number)
        data = page(number)  # type: ignore[operator]
        if len(data) < 5:
            break
        part = data[4 : 4 + min(left, size - 4)]
        found, left, pointer = found + part, left - len(part), data[:4]
    return found


def _record(rowid: int, payload: bytes, whole: bool) -> Row | None:
    head, at = _varint(payload, 0)
    if head > len(payload):
        return None
    kinds = []
    while at < head:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if len(kinds) > _MAX_COLUMNS:
        return None
    values: list[Value] = []
    at = head
    for kind in kinds:
        length = _INTEGERS.get(kind, 8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0)
        part = payload[at : at + length]
        at += length
        if kind >= 12:
            values.append(part if kind % 2 == 0 else part.decode("utf-8", "replace"))
        elif kind == 0 or len(part) < length:
            values.append(None)
        elif kind == 7:
            values.append(struct.unpack(">d", part)[0])
        else:
            values.append({8: 0, 9: 1}.get(kind, int.from_bytes(part, "big", signed=True)))
    return Row(rowid, tuple(values), whole)


def _logged_pages(log: Path, size: int) -> dict[int, bytes]:
    """Return the pages that the write-ahead log holds, up to its last commit."""
    data = log.read_bytes()
    pages: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    salts = data[16:24]
    for at in range(32, len(data) - size - 23, size + 24):
        number, committed = struct.unpack_from(">II", data, at)
        if data[at + 8 : at + 16] != salts or number == 0:
            break
        waiting[number] = data[at + 24 : at + 24 + size]
        if committed:
            pages.update(waiting)
            waiting = {}
    return pages


def _page_size(header: bytes) -> int:
    if len(header) >= 18 and header.startswith(b"SQLite format 3\0"):
        size = int(struct.unpack_from(">H", header, 16)[0])
        if size == 1:
            return 65536
        if size >= 512 and size & (size - 1) == 0:
            return size
    return _PAGE


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1
