"""The one thread that does all torch work.

``encode`` from changing threads leaks, each thread brings its own malloc arena and OpenMP pool, and two models that run
at once on two cores are slower than in turn. So there is one long-lived thread; others hand it work and wait. A
generation is handed over as an iterator and advances one step at a time: between two of its tokens other work is
served, round robin.

The worker knows nothing about models; it imports torch when its first work comes.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

from assistant.errors import ClosedError

P = ParamSpec("P")
T = TypeVar("T")

_CLOSED = "The assistant was closed while this was waiting."
_AHEAD = 8
"""Items a stream may be ahead of its reader: a slow reader holds back its own stream, nobody else's."""


class TorchWorker:
    """Run functions and iterators on one thread, inside ``torch.inference_mode``.

    Args:
        threads: CPU threads torch may use; 0 is one per core this process may run on.
    """

    def __init__(self, threads: int = 0) -> None:
        # Before torch, whose OpenMP reads it once: a thread that waits for the other must soon sleep, not spin, or two
        # cores that are busy with other work slow a decoding step tenfold. 1,000 turns are over before the next product
        # comes, and waking the thread up took a fifth of a step.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
        self.threads = threads or usable_cores()
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._ready = False
        self._thread: threading.Thread | None = None

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* on the worker and wait for its result; called on the worker itself, run it at once.

        Raises:
            ClosedError: The worker was closed.
            Exception: Whatever *function* raises.
        """
        if self.is_current():
            return function(*args, **kwargs)
        call = _Call(lambda: function(*args, **kwargs))
        self._submit(call)
        return call.wait()

    def stream(self, make_iterator: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Advance an iterator on the worker, one step a turn of the round, and give what it yields.

        The iterator is made on the worker too. Closing what is returned (or dropping it) closes the inner iterator, on
        the worker. Called on the worker itself, it is the inner iterator.

        Raises:
            ClosedError: The worker was closed.
            Exception: Whatever the inner iterator raises.
        """
        if self.is_current():
            return make_iterator()
        return self._stream(make_iterator)

    def is_current(self) -> bool:
        """Tell whether the caller is on the worker thread."""
        return threading.current_thread() is self._thread

    @property
    def ready(self) -> bool:
        """Whether torch is loaded, so that work starts at once."""
        return self._ready

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Finish what is running, close open streams, end the thread. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._inbox.put(None)
        atexit.unregister(self.close)
        if thread is not None and not self.is_current():
            thread.join()

    def _stream(self, make_iterator: Callable[[], Iterator[T]]) -> Iterator[T]:
        job = _Stream(make_iterator, wake=self._wake)
        self._submit(job)
        try:
            while (item := job.items.get()) is not _END:
                job.taken()
                yield item
            if job.error is not None:
                raise job.error
        finally:
            job.cancelled.set()
            self._wake()
            if not self.is_current():  # dropped by the worker itself: it ends the stream at its next turn
                job.finished.wait()

    def _wake(self) -> None:
        self._inbox.put(_NOTHING)

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError(_CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="torch-worker", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a thread inside torch while the interpreter ends would crash it
            self._inbox.put(job)

    def _loop(self) -> None:
        try:
            import torch
        except BaseException as exc:  # noqa: BLE001  handed to whoever waits; nobody may wait for ever
            self._refuse(exc)
            return
        torch.set_num_threads(self.threads)
        self._ready = True
        with torch.inference_mode():
            self._serve()

    def _serve(self) -> None:
        """Give each job one step in turn; sleep when none can go on."""
        ring: deque[_Job] = deque()
        idle = 0  # jobs in a row that could not go on
        while True:
            try:
                job = self._inbox.get(block=idle >= len(ring))
            except queue.Empty:
                pass
            else:
                if job is None:
                    for open_job in ring:
                        open_job.abandon(ClosedError(_CLOSED))
                    return
                idle = 0
                if job is not _NOTHING:
                    ring.append(job)
                continue
            job = ring.popleft()
            state = job.step()
            idle = idle + 1 if state == "waiting" else 0
            if state != "done":
                ring.append(job)
            del job  # a finished job must not live on in this frame until the next one comes

    def _refuse(self, error: BaseException) -> None:
        """Answer everything with *error*, until closed."""
        while (job := self._inbox.get()) is not None:
            job.abandon(error)


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """Something the worker advances step by step."""

    def step(self) -> str:
        """Go one step; return ``done``, ``more`` or ``waiting``."""
        return "done"

    def abandon(self, error: BaseException) -> None:
        """End with *error* instead of finishing."""


class _Call(_Job, Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    def step(self) -> str:
        assert self._function is not None
        try:
            self._result = self._function()
        except BaseException as exc:  # noqa: BLE001  handed to the caller, who raises it
            self._error = exc
        self._function = None
        self._done.set()
        return "done"

    def abandon(self, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> T:
        self._done.wait()
        try:
            if self._error is not None:
                raise self._error
            return self._result  # type: ignore[return-value]
        finally:
            self._error = None  # a traceback keeps every frame's locals alive


_END: Any = object()


class _Stream(_Job, Generic[T]):
    def __init__(self, make_iterator: Callable[[], Iterator[T]], wake: Callable[[], None]) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self._make: Callable[[], Iterator[T]] | None = make_iterator
        self._iterator: Iterator[T] | None = None
        self._wake = wake
        self._lock = threading.Lock()
        self._ahead = 0
        self._starved = False

    def taken(self) -> None:
        """Note that the reader took an item; wake the worker where it waits for that."""
        with self._lock:
            self._ahead -= 1
            wake, self._starved = self._starved, False
        if wake:
            self._wake()

    def step(self) -> str:
        if self.cancelled.is_set():
            return self._end(None)
        with self._lock:
            if self._ahead >= _AHEAD:
                self._starved = True
                return "waiting"
        try:
            if self._iterator is None:
                assert self._make is not None
                self._iterator = iter(self._make())
                self._make = None
            item = next(self._iterator)
        except StopIteration:
            return self._end(None)
        except BaseException as exc:  # noqa: BLE001  handed to the reader, who raises it
            return self._end(exc)
        with self._lock:
            self._ahead += 1
        self.items.put(item)
        return "more"

    def abandon(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> str:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as exc:  # noqa: BLE001  handed to the reader, who raises it
                error = error or exc
        self._iterator = self._make = None
        self.error = error
        self.items.put(_END)
        self.finished.set()
        return "done"


_NOTHING = _Job()
"""Wakes the worker without giving it anything to do."""
