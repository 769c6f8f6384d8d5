"""What makes the start short: no garbage collection while libraries and models load."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_waiting = 0  # blocks of undisturbed() that are open
_was_on = False


@contextmanager
def undisturbed() -> Iterator[None]:
    """Collect no garbage meanwhile: what libraries make while they load stays, and to look through it takes a second.

    Blocks may be nested and overlap, in any threads; the last to end switches the collector back on, if it was on.
    """
    global _waiting, _was_on
    with _lock:
        if not _waiting:
            _was_on = gc.isenabled()
            gc.disable()
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
            if not _waiting and _was_on:
                gc.enable()
