"""Which lines of Python hold more memory than before: tracemalloc around a turn.

It sees what Python's allocator and numpy report, not what torch or Chroma take in C++; RSS is the books, this is the
magnifying glass. It slows a turn down, so it runs only under ``--trace-memory``.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Growth:
    """A source line that holds more than when the trace was last taken.

    Attributes:
        grown: Bytes more than then.
        held: Bytes now.
        blocks: Blocks more than then.
    """

    file: str
    line: int
    grown: int
    held: int
    blocks: int


class MemoryTrace:
    """Top growers by line, each time since the last time.

    Args:
        top: How many lines to name.
    """

    def __init__(self, top: int = 10) -> None:
        self._top = top
        self._started = not tracemalloc.is_tracing()
        if self._started:
            tracemalloc.start()
        self._last = self._snapshot()

    def growth(self) -> tuple[Growth, ...]:
        """Return the lines that grew most since the last call, largest first."""
        now = self._snapshot()
        rows = now.compare_to(self._last, "lineno")
        self._last = now
        grown = sorted((row for row in rows if row.size_diff > 0), key=lambda row: -row.size_diff)[: self._top]
        return tuple(Growth(row.traceback[0].filename, row.traceback[0].lineno, row.size_diff, row.size,
                            row.count_diff) for row in grown)  # fmt: skip

    def close(self) -> None:
        """Stop tracing, if this started it."""
        if self._started:
            tracemalloc.stop()

    @staticmethod
    def _snapshot() -> tracemalloc.Snapshot:
        return tracemalloc.take_snapshot().filter_traces(
            (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
        )
