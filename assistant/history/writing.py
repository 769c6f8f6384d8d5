"""Answers as they grow: text is gathered in RAM for a moment and put on disk at least once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

FLUSH_S = 0.4
"""How long shown text may wait for the disk; half of the second that is promised, less a slow disk's sync."""


class Buffer:
    """Text of running turns that is not on disk yet.

    The first piece after a quiet moment is written at once; what follows within `FLUSH_S` is gathered. A thread of its
    own writes what waits, so that a model that stalls does not keep text in RAM.
    """

    def __init__(self, write: Callable[[int, str], None], *, flush_s: float = FLUSH_S) -> None:
        self._write = write
        self._flush_s = flush_s
        self._changed = threading.Condition()
        self._pieces: dict[int, list[str]] = {}
        self._flushed_at: dict[int, float] = {}
        self._failed: dict[int, BaseException] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._one_writer = threading.RLock()

    def add(self, turn_id: int, text: str) -> None:
        """Take more text of a turn, and write it when it is time.

        Raises:
            StorageFullError: An earlier piece could not be written.
        """
        with self._changed:
            if turn_id in self._failed:
                raise self._failed.pop(turn_id)
            self._pieces.setdefault(turn_id, []).append(text)
            due = time.monotonic() - self._flushed_at.get(turn_id, 0.0) >= self._flush_s
            if not due:
                self._start()
                self._changed.notify()
        if due:
            self.flush(turn_id)

    def flush(self, turn_id: int) -> None:
        """Write what waits of a turn, now; what can't be written is kept for the next try."""
        with self._one_writer:
            with self._changed:
                pieces = self._pieces.pop(turn_id, [])
            if not pieces:
                return
            try:
                self._write(turn_id, "".join(pieces))
            except BaseException:
                with self._changed:
                    self._pieces[turn_id] = pieces + self._pieces.get(turn_id, [])
                raise
            finally:
                with self._changed:
                    self._flushed_at[turn_id] = time.monotonic()

    def held(self) -> AbstractContextManager[object]:
        """Keep everybody else from writing for a while: nothing may be added to a turn that is just being ended."""
        return self._one_writer

    def forget(self, turn_id: int) -> None:
        """Drop what is known of a turn that is over."""
        with self._changed:
            for known in (self._pieces, self._flushed_at, self._failed):
                known.pop(turn_id, None)

    def close(self) -> None:
        """Write everything and end the thread."""
        with self._changed:
            self._closed = True
            waiting = list(self._pieces)
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for turn_id in waiting:
            self.flush(turn_id)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="history-flush", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._pieces.keys() - self._failed.keys()))
                if self._closed:
                    return
                self._changed.wait(self._flush_s / 2)
                now = time.monotonic()
                due = [
                    turn_id for turn_id in self._pieces
                    if turn_id not in self._failed and now - self._flushed_at.get(turn_id, 0.0) >= self._flush_s
                ]  # fmt: skip
            for turn_id in due:
                try:
                    self.flush(turn_id)
                except Exception as exc:  # noqa: BLE001  # told to the writer at its next piece or at finish
                    with self._changed:
                        self._failed[turn_id] = exc
