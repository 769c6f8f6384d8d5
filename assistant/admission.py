"""Who runs next, and whether it fits: a bounded queue of turns.

Knows nothing of what a turn does; memory enters as a number of bytes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from .errors import BusyError, StoppedError

_POLL_S = 0.05


@dataclass(eq=False, slots=True)
class _Ticket:
    user: str
    position: int = 0
    told: int = 0
    running: bool = False
    left: bool = False
    since: float = field(default_factory=time.monotonic)


class Admission:
    """A first-come queue with a bound; each waiting caller hears its place.

    Args:
        queue_size: How many may wait; the next is told busy at once.
        slots: How many run at the same time. The chat model is one, so more than 1 gains little.
        per_user: How many of one user's turns may wait or run; 0 is no such bound.
    """

    def __init__(self, queue_size: int, *, slots: int = 1, per_user: int = 0) -> None:
        self._queue_size = queue_size
        self._slots = slots
        self._per_user = per_user
        self._changed = threading.Condition()
        self._waiting: deque[_Ticket] = deque()
        self._running = 0
        self._users: Counter[str] = Counter()
        self._closed = False

    @contextmanager
    def enter(self, user: str, on_position: Callable[[int], None] | None = None,
              cancelled: threading.Event | None = None) -> Iterator[float]:  # fmt: skip
        """Wait for a place, hold it while the block runs.

        Args:
            user: Who asks.
            on_position: Called in the waiting thread with 1 for "next", whenever the place changes; never when there
                is nothing to wait for.
            cancelled: Set it to give the place up while waiting.

        Yields:
            Seconds spent waiting.

        Raises:
            BusyError: The queue is full, this user has too many turns in it, or the assistant is closing.
            StoppedError: *cancelled* was set before the turn's time came.
        """
        place = self.join(user)
        try:
            for position in place.positions(cancelled):
                if on_position is not None:
                    on_position(position)
            yield place.waited_s
        finally:
            place.leave()

    def join(self, user: str) -> Place:
        """Take a place in the queue without waiting for its turn; :meth:`enter` in two steps, for generators.

        Raises:
            BusyError: As :meth:`enter`.
        """
        return Place(self, self._join(user))

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many run now."""
        return self._running

    def close(self) -> None:
        """Send those who wait away with BusyError and let nobody in; those who run may finish."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _join(self, user: str) -> _Ticket:
        with self._changed:
            if self._closed:
                raise BusyError("The assistant is closing; ask again when it is back.")
            if self._per_user and self._users[user] >= self._per_user:
                raise BusyError(f"You have {self._users[user]} questions under way; wait for one of them to finish.")
            ticket = _Ticket(user)
            if self._running < self._slots and not self._waiting:
                self._start(ticket)
            elif len(self._waiting) >= self._queue_size:
                raise BusyError(f"{len(self._waiting)} questions are waiting already; try again in a moment.")
            else:
                self._waiting.append(ticket)
                ticket.position = len(self._waiting)
            self._users[user] += 1
            return ticket

    def _positions(self, ticket: _Ticket, cancelled: threading.Event | None) -> Iterator[int]:
        told = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    partial(self._news, ticket, told, cancelled),
                    timeout=_POLL_S if cancelled is not None else None,
                )
                if ticket.running:
                    return
                if _is_set(cancelled):
                    raise StoppedError("Stopped while waiting; nothing was asked of the model.")
                if self._closed:
                    raise BusyError("The assistant is closing; ask again when it is back.")
                position = ticket.position
            if position != told:
                yield position  # outside the lock: what is done with it may be slow
            told = position

    def _news(self, ticket: _Ticket, told: int, cancelled: threading.Event | None) -> bool:
        return ticket.running or self._closed or ticket.position != told or _is_set(cancelled)

    def _leave(self, ticket: _Ticket) -> None:
        with self._changed:
            if ticket.left:
                return
            ticket.left = True
            if ticket.running:
                self._running -= 1
            else:
                self._waiting.remove(ticket)
            self._users[ticket.user] -= 1
            if not self._users[ticket.user]:
                del self._users[ticket.user]
            while self._waiting and self._running < self._slots and not self._closed:
                self._start(self._waiting.popleft())
            for position, other in enumerate(self._waiting, 1):
                other.position = position
            self._changed.notify_all()

    def _start(self, ticket: _Ticket) -> None:
        ticket.running = True
        self._running += 1


class Place:
    """A place in the queue, from :meth:`Admission.join`; leave it whatever happens."""

    def __init__(self, admission: Admission, ticket: _Ticket) -> None:
        self._admission = admission
        self._ticket = ticket
        self._admitted = ticket.since

    def positions(self, cancelled: threading.Event | None = None) -> Iterator[int]:
        """Yield the place in the queue (1 is next) whenever it changes, and end when it is this caller's turn.

        Raises:
            BusyError: The assistant is closing.
            StoppedError: *cancelled* was set before the turn's time came.
        """
        yield from self._admission._positions(self._ticket, cancelled)
        self._admitted = time.monotonic()

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting."""
        return self._admitted - self._ticket.since

    def leave(self) -> None:
        """Give the place to the next; doing it twice does nothing."""
        self._admission._leave(self._ticket)


def _is_set(event: threading.Event | None) -> bool:
    return event is not None and event.is_set()
