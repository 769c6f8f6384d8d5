"""JSON files an item at a time: the items of one long array, or one object a line. Knows nothing of what they mean.

A parser that streams events was tried and given up: one item with half a surrogate pair, or with bytes that are no
UTF-8, ended the whole file. Here an item is cut out first, between two commas outside of strings and brackets, and
then parsed by itself; what is wrong with one stays with that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

LONGEST_BYTES = 32_000_000
"""An item longer than this is passed over: parsing takes several times its size of RAM."""

_READ = 1 << 18
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to the closing quote, or a last backslash


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a file.

    Attributes:
        value: What it says; None where it can't be read.
        error: Why it can't be read; empty when it can.
    """

    number: int
    value: Any
    error: str = ""


class CutOffError(Exception):
    """The file ends within an item; the error's text is that item's number. Never leaves the importing modules."""


def array_items(file: IO[bytes], *, longest_bytes: int = LONGEST_BYTES) -> Iterator[Item]:
    """Yield the items of the array in *file*, or the one value that is there instead of an array.

    Raises:
        CutOffError: The file ended before the array did; whole items came before.
    """
    head = file.read(_READ).removeprefix(b"\xef\xbb\xbf").lstrip()
    cutter = _Cutter(head[:1] == b"[", longest_bytes)
    number = 0
    chunk = head[1:] if cutter.in_array else head
    while True:
        for raw in cutter.feed(chunk):
            if raw is not None and not raw.strip():
                continue  # "[]", or a comma too many
            number += 1
            yield _too_long(number, longest_bytes) if raw is None else parsed(raw, number)
        if cutter.ended:
            return
        chunk = file.read(_READ)
        if not chunk:
            raise CutOffError(number + 1)


def line_items(file: IO[bytes], *, longest_bytes: int = LONGEST_BYTES) -> Iterator[Item]:
    """Yield what each line of *file* says; empty lines are counted, not yielded.

    Raises:
        CutOffError: The last line has no end and can't be read.
    """
    for number, raw in enumerate(iter(lambda: file.readline(longest_bytes + 1), b""), 1):
        if len(raw) > longest_bytes and not raw.endswith(b"\n"):
            rest = raw
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_READ)
            yield _too_long(number, longest_bytes)
        elif raw.strip():
            item = parsed(raw.removeprefix(b"\xef\xbb\xbf"), number)
            if item.error and not raw.endswith(b"\n"):
                raise CutOffError(number)
            yield item


def parsed(raw: bytes, number: int) -> Item:
    """Parse one item; bytes that are no UTF-8 become U+FFFD, and control characters may stand in strings."""
    try:
        return Item(number, json.loads(raw.decode("utf-8", "replace"), strict=False))
    except RecursionError:
        return Item(number, None, "nested too deep")
    except ValueError:
        return Item(number, None, "not JSON")


def _too_long(number: int, longest_bytes: int) -> Item:
    return Item(number, None, f"longer than {longest_bytes // 1_000_000} MB")


class _Cutter:
    """Cuts a stream of bytes at the commas between items; holds the item that is not complete."""

    def __init__(self, in_array: bool, longest_bytes: int) -> None:
        self.in_array, self.ended = in_array, False
        self._longest = longest_bytes
        self._data = bytearray()
        self._at = 0  # scanned up to here
        self._depth, self._in_string, self._dropped = 0, False, False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield each item that ends in *chunk*; None for one that was too long."""
        self._data += chunk
        data, start = self._data, 0
        while not self.ended:
            if self._in_string:
                found = _INSIDE.match(data, self._at)
                self._at = found.end() if found else self._at
                if self._at >= len(data) or data[self._at] != 0x22:
                    break
                self._at, self._in_string = self._at + 1, False
                continue
            mark = _OUTSIDE.search(data, self._at)
            if mark is None:
                self._at = len(data)
                break
            self._at = mark.end()
            sign = mark[0]
            if sign == b'"':
                self._in_string = True
            elif sign in b"[{":
                self._depth += 1
            elif self._depth == 0 and self.in_array:  # a comma, or the end of the array
                yield None if self._dropped else bytes(data[start : mark.start()])
                start, self._dropped, self.ended = self._at, False, sign != b","
            elif sign != b",":
                self._depth -= 1
                if self._depth == 0 and not self.in_array:
                    yield None if self._dropped else bytes(data[start : self._at])
                    self.ended = True
        del data[:start]
        self._at -= start
        if len(data) > self._longest or self._dropped:
            self._dropped = True
            del data[: self._at]
            self._at = 0
