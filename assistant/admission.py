"""Who runs next, and whether it fits: a bounded queue of turns, and a gate that predicts their peak.

Knows nothing of what a turn does; it is asked in tokens and answers from the memory plan.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from .errors import BusyError, MemoryBudgetError, StoppedError
from .memory import MemoryPlan, anonymous_rss, rss
from .memory.plan import WORKING_SHARE
from .units import format_bytes

_POLL_S = 0.05
_ROOM_POLL_S = 0.5
_SPREAD_BYTES = 12 << 20  # by which the same turn's peak differs between runs; half of the plan's headroom
_BATCH_BYTES = 16 << 20  # of an ingest's growth, what each batch takes anew: activations, vectors, texts


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


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """How many tokens each part of a prompt may have this turn.

    Attributes:
        actions: What was released or shrunk so that the turn fits, in words for people.
    """

    window_tokens: int
    recall_tokens: int
    evidence_tokens: int
    actions: tuple[str, ...] = ()


_SHRINK = (
    (1.0, 1.0, 1.0, ""),
    (0.5, 1.0, 1.0, "fewer recalled turns"),
    (0.0, 1.0, 1.0, "no recalled turns"),
    (0.0, 0.5, 1.0, "no recalled turns and less evidence"),
    (0.0, 0.5, 0.5, "no recalled turns, less evidence and a shorter window"),
    (0.0, 0.25, 0.0, "no recalled turns, little evidence and no window"),
)
"""Shares of (recall, evidence, window), tried in this order: what costs the answer least goes first."""


class MemoryGate:
    """Lets a turn or a batch start only when its predicted peak fits the budget.

    Args:
        plan: What is loaded, and what a turn adds to it.
        free: Gives back what it can (caches, garbage, free heap).
        new_chunks: Says how many chunks the index holds more than when the plan was made.
    """

    def __init__(self, plan: MemoryPlan, free: Callable[[], int], new_chunks: Callable[[], int] = lambda: 0) -> None:
        self.plan = plan
        self._free = free
        self._new_chunks = new_chunks
        self._before_ingest: int | None = None

    def search(self) -> tuple[str, ...]:
        """Let a turn's search start, after giving back what can be given where there is no room otherwise.

        Returns:
            What was done for it, in words for people.

        Raises:
            MemoryBudgetError: There is no room even so; nothing was lost.
        """
        growth = self.plan.part("search")
        if occupied(self.plan) + growth <= self.plan.budget.bytes:
            return ()
        given = self._free()
        predicted = occupied(self.plan) + growth
        if predicted > self.plan.budget.bytes:
            raise self._refusal("This question", predicted)
        return (f"gave back {format_bytes(given)} first",) if given else ()

    def turn(self, *, fixed_tokens: int, reserve_tokens: int, window_tokens: int, recall_tokens: int,
             evidence_tokens: int) -> TurnLimits:  # fmt: skip
        """Choose the parts of a prompt so that the turn's predicted peak fits.

        Args:
            fixed_tokens: Template, system prompt and question: these go in whole.
            reserve_tokens: Kept for the answer.
            window_tokens: Most tokens of earlier turns, wanted.
            recall_tokens: Most tokens of recalled turns, wanted.
            evidence_tokens: Most tokens of quotes, wanted.

        Raises:
            MemoryBudgetError: Not even the question alone fits; nothing was lost.
        """
        actions: list[str] = []
        freed = False
        now = occupied(self.plan)
        predicted = 0
        for recall, evidence, window, words in _SHRINK:
            limits = TurnLimits(int(window_tokens * window), int(recall_tokens * recall),
                                int(evidence_tokens * evidence))  # fmt: skip
            prompt = fixed_tokens + limits.window_tokens + limits.recall_tokens + limits.evidence_tokens
            growth = self.plan.turn_growth(prompt, reserve_tokens) + _SPREAD_BYTES
            predicted = now + growth
            if predicted > self.plan.budget.bytes and not freed:
                freed = True
                given = self._free()
                if given:
                    actions.append(f"gave back {format_bytes(given)} first")
                now = occupied(self.plan)
                predicted = now + growth
            if predicted <= self.plan.budget.bytes:
                said = (*actions, *([words] if words else []))
                return replace(limits, actions=said)
        raise self._refusal("This question", predicted)

    def batch(self, growth_bytes: int, beside_bytes: int = 0, *, share: float = 1.0, patience_s: float = 120.0
              ) -> None:  # fmt: skip
        """Let a batch of an ingest start, when need be after the turn that holds the room.

        Args:
            growth_bytes: By which it makes the index grow; what embedding takes is in the plan.
            beside_bytes: Taken by the parser's process.
            share: Of what embedding takes at most, what this batch takes: a few chunks need little.
            patience_s: How long to wait for room.

        Raises:
            MemoryBudgetError: It does not fit, and for *patience_s* no room came free.
        """
        deadline = time.monotonic() + patience_s
        growth_bytes += beside_bytes
        predicted = self._with_batch(share) + growth_bytes
        while predicted > self.plan.budget.bytes:
            self._free()
            predicted = self._with_batch(share) + growth_bytes
            if predicted <= self.plan.budget.bytes:
                return
            if time.monotonic() > deadline:
                raise self._refusal("The next batch", predicted)
            time.sleep(_ROOM_POLL_S)

    def ingest(self, chunks: int) -> None:
        """Check before an ingest that the index will fit with this many more chunks.

        Raises:
            MemoryBudgetError: It won't; the message says how much would fit.
        """
        new = self._new_chunks()
        needed = self.plan.for_index(new + chunks)
        added = chunks * self.plan.chunk_bytes
        if needed > self.plan.budget.bytes:
            room = max(0, self.plan.chunks_left() - new)
            raise MemoryBudgetError(
                f"These documents are about {chunks:,} passages, which take {format_bytes(added)} of "
                f"RAM in the index; with everything else that is {format_bytes(needed)}, and the budget is "
                f"{format_bytes(self.plan.budget.bytes)}. About {room:,} passages would fit. Nothing was added: raise "
                "memory_budget, or add fewer documents.",
                needed_bytes=needed, budget_bytes=self.plan.budget.bytes,
            )  # fmt: skip

    def _with_batch(self, share: float) -> int:
        """Predict the peak of a batch: what the plan gives an ingest, over what was occupied before the first began.

        What an ingest has grown by already stays, for its next batches and for later ingests, so it is not asked for
        again.
        """
        now = occupied(self.plan)
        self._before_ingest = min(now, self._before_ingest or now)
        return max(now + int(_BATCH_BYTES * share), self._before_ingest + int(self.plan.part("ingest") * share))

    def _refusal(self, what: str, predicted: int) -> MemoryBudgetError:
        budget = self.plan.budget.bytes
        return MemoryBudgetError(
            f"{what} would take the process to {format_bytes(predicted)}, and the memory budget is "
            f"{format_bytes(budget)}. Nothing was lost: raise memory_budget, choose a smaller context_tokens, or close "
            "what else runs in this process.",
            needed_bytes=predicted, budget_bytes=budget,
        )  # fmt: skip


def occupied(plan: MemoryPlan, resident: int | None = None) -> int:
    """Return what counts against the budget, in bytes; see ``memory.plan`` on what a budget counts.

    Args:
        plan: Whose budget.
        resident: RSS as it was measured a moment ago; None measures it.
    """
    now = rss() if resident is None else resident
    if not plan.budget.enforced:
        return now
    anonymous = min(anonymous_rss(), now)
    return anonymous + int((now - anonymous) * WORKING_SHARE)
