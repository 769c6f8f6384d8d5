"""What this process occupies: RSS, its exact peak over a stretch of work, and giving memory back.

Knows nothing of models, plans or budgets. On Linux everything is read from ``/proc/self``; elsewhere psutil answers and
the peak is sampled.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from assistant.units import format_bytes

logger = logging.getLogger(__name__)

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_SAMPLE_S = 0.01
_RESET_SLACK_BYTES = 4 << 20

_MMAP_THRESHOLD_BYTES = 4 << 20
"""Above the blocks that reading a prompt takes and frees in each layer: with 1 MiB their pages were mapped anew each
time, 170,000 faults for 1,500 tokens instead of 24,000."""
_ONEDNN_SHAPES = 32
"""What a prompt of 1,500 tokens needs in each layer. With fewer each layer makes the code anew: 16 took 5 MiB less and
15 % longer."""

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def rss() -> int:
    """Return the resident set of this process in bytes: anonymous memory and mapped file pages, as ``ps`` shows it."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return int(psutil.Process().memory_info().rss)


def anonymous_rss() -> int:
    """Return the part of RSS that no file backs, in bytes: what the kernel can't drop and read again.

    Where the system does not tell the two apart (no ``/proc``), this is the memory unique to the process.
    """
    try:
        return _status_bytes("RssAnon")
    except OSError:
        return int(psutil.Process().memory_full_info().uss)


def tree_rss(pid: int) -> int:
    """Return the RSS of a process and of its children together, in bytes; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:  # it ended between listing and reading
            continue
    return total


def log_rss(event: str) -> int:
    """Log the resident set under the name of what just happened, and return it."""
    now = rss()
    logger.info("RSS after %s: %s (%s anonymous)", event, format_bytes(now), format_bytes(anonymous_rss()))
    return now


class PeakMeter:
    """Measures the highest RSS between entering and leaving, also of a spike too short to sample.

    The kernel keeps the high-water mark of the process (``VmHWM``), and writing 5 to ``/proc/self/clear_refs`` resets
    it (proc(5), since Linux 4.0). There is one mark for the whole process, so meters that overlap hand on what the mark
    held before each reset. Where it can't be reset a thread samples RSS every 10 ms; *exact* says which it was.

    Attributes:
        before: RSS on entering, in bytes.
        after: RSS on leaving, in bytes; 0 until then.
        exact: Whether the kernel's mark was used.
    """

    _open: set[PeakMeter] = set()  # noqa: RUF012 - one registry for the process, as there is one mark
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.before = 0
        self.after = 0
        self.exact = False
        self._peak = 0
        self._done = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> PeakMeter:
        self.exact = _mark_can_be_reset()
        with self._lock:
            if self.exact:
                self._hand_on()
                _CLEAR_REFS.write_text("5")
            self.before = self._peak = rss()
            self._open.add(self)
        if not self.exact:
            self._sampler = threading.Thread(target=self._sample, name="rss-sampler", daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._done.set()
        if self._sampler is not None:
            self._sampler.join()
        with self._lock:
            if self.exact:
                self._hand_on()
            self._open.discard(self)
        self.after = rss()
        self._peak = max(self._peak, self.after)

    @property
    def peak(self) -> int:
        """Highest RSS so far, in bytes."""
        with self._lock:
            if self in self._open:
                if self.exact:
                    self._hand_on()
                else:
                    self._peak = max(self._peak, rss())
            return self._peak

    @classmethod
    def _hand_on(cls) -> None:
        mark = _status_bytes("VmHWM")
        for meter in cls._open:
            meter._peak = max(meter._peak, mark)

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._peak = max(self._peak, rss())


def release() -> int:
    """Give back what nobody uses: collect garbage, return free heap pages to the system, empty CUDA's cache.

    Returns:
        Bytes by which RSS fell, 0 when it did not.
    """
    before = rss()
    gc.collect()
    torch: Any = sys.modules.get("torch")  # never imported for this
    if torch is not None and getattr(torch, "cuda", None) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim()
    return max(0, before - rss())


def trim() -> None:
    """Return free pages of the heap to the system, where libc can: what loading a model leaves is 15 to 40 MiB."""
    give = _libc_function("malloc_trim")
    if give is not None:
        give(ctypes.c_size_t(0))


def cap_arenas(arenas: int = 2) -> bool:
    """Cap the heaps that malloc keeps for threads; call it first thing, before threads start.

    glibc gives each new thread a heap of its own, up to eight a core, and what one frees the others can't use. This is
    ``MALLOC_ARENA_MAX`` without needing it in the environment before the process starts.

    Returns:
        Whether libc took it (musl, macOS and Windows have no such thing).
    """
    os.environ.setdefault("MALLOC_ARENA_MAX", str(arenas))  # for child processes
    mallopt = _libc_function("mallopt")
    return mallopt is not None and bool(mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(arenas)))


def set_mmap_threshold(threshold_bytes: int) -> bool:
    """Take blocks of this size and more from the system directly, so that freeing one gives it back at once.

    By default glibc raises its threshold, up to 32 MiB, when such a block is freed; setting it stops that
    (mallopt(3)), and free memory at the top of the heap goes back from twice this size on.
    """
    mallopt = _libc_function("mallopt")
    if mallopt is None:
        return False
    took = bool(mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(threshold_bytes)))
    return bool(mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(2 * threshold_bytes))) and took


def set_up_process() -> None:
    """Set what keeps memory from growing for nothing; call it first thing, before torch is imported.

    Measured over 20 turns (docs/memory.md): anonymous RSS ends at 349 MiB with the defaults and at 259 MiB with these.
    Half of it was oneDNN, which keeps half a megabyte of code for each shape of a matrix product it meets, for up to
    1,024 shapes, and each prompt has a length of its own; the other half were holes in malloc's heaps.
    """
    cap_arenas()
    set_mmap_threshold(_MMAP_THRESHOLD_BYTES)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_ONEDNN_SHAPES))


def settle() -> None:
    """Take what is loaded now out of the garbage collector's sight: it stays for good, and each collection is shorter.

    Call it once, after the libraries and models are in.
    """
    gc.collect()
    gc.freeze()


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")


@cache
def _mark_can_be_reset() -> bool:
    """Try it: some sandboxes offer no clear_refs, take the write and ignore it, or refuse it."""
    try:
        block = bytearray(16 << 20)
        block[::_PAGE_BYTES] = b"x" * len(block[::_PAGE_BYTES])
        raised = _status_bytes("VmHWM")
        del block
        _CLEAR_REFS.write_text("5")
        return _status_bytes("VmHWM") <= min(raised, rss() + _RESET_SLACK_BYTES)
    except OSError:
        return False


@cache
def _libc_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no CDLL(None)
        return None
