"""Which lines of Python hold more memory than before: tracemalloc around a turn.

It sees what Python's allocator and numpy report, not what torch or Chroma take in C++; RSS is the books, this is the
magnifying glass. It slows a turn down, so it runs only under ``--trace-memory``.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

from assistant.units import format_bytes


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

    def __str__(self) -> str:
        grown, held = format_bytes(self.grown), format_bytes(self.held)
        return f"{self.file}:{self.line}: +{grown} in {self.blocks:+} blocks, {held} held"


class MemoryTrace:
    """Top growers by line, each time since the last time.

    Args:
        top: How many lines to name.
    """

    def __init__(self, top: int = 10) -> None:
        self._top = top
        self._started = False
        self._last: tracemalloc.Snapshot | None = None

    def start(self) -> None:
        """Begin tracing; what is held already counts as no growth, though what was allocated before is not seen."""
        if not tracemalloc.is_tracing():
            self._started = True
            tracemalloc.start()
        self._last = self._snapshot()

    def growth(self) -> tuple[Growth, ...]:
        """Return the lines that grew most since the last call, largest first; nothing before :meth:`start`."""
        if self._last is None:
            return ()
        now = self._snapshot()
        rows = now.compare_to(self._last, "lineno")
        self._last = now
        grown = sorted((row for row in rows if row.size_diff > 0), key=lambda row: -row.size_diff)[: self._top]
        return tuple(
            Growth(row.traceback[0].filename, row.traceback[0].lineno, row.size_diff, row.size, row.count_diff)
            for row in grown
        )

    def stop(self) -> tuple[Growth, ...]:
        """Return the last growth, and stop tracing if this started it."""
        last = self.growth()
        if self._started:
            tracemalloc.stop()
        self._started, self._last = False, None
        return last

    @staticmethod
    def _snapshot() -> tracemalloc.Snapshot:
        return tracemalloc.take_snapshot().filter_traces(
            (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__))
        )
