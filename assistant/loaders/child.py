"""The child process that parses: one job a line on its standard input, frames of segments on its standard output.

It limits itself (memory, CPU time, no core files), dies with its parent, and imports only what the file at hand needs.
Whatever a library prints goes nowhere, so that it can't be mistaken for a frame.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from assistant.errors import DamagedDocumentError, DocumentError, DocumentTooLargeError, ParserLimitError
from assistant.records import Segment

from .base import Source, one_line
from .registry import segments

_FRAME_CHARACTERS = 1 << 15
_FRAME_SECONDS = 0.5
_MOST_TEXT = 64 << 20  # characters any file may give; larger ones 20 for each byte they have


def main(argv: list[str]) -> int:
    """Serve jobs until standard input ends."""
    parent, max_bytes, cpu_s = int(argv[1]), int(argv[2]), float(argv[3])
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _die_with(parent)
    sys.modules["numpy"] = None  # type: ignore[assignment]  # openpyxl would load it, and 100 MB of address space
    _limit_memory(max_bytes)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        source = Source(Path(job["path"]), job["name"], tuple(job["passwords"]))
        _serve(source, out, cpu_s, max_bytes)
    return 0


def _serve(source: Source, out: BinaryIO, cpu_s: float, max_bytes: int) -> None:
    """Run one job; ends with a frame that says how it went."""
    _limit_cpu(cpu_s)
    error: DocumentError | None = None
    try:
        for batch in _batches(_bounded(source)):
            _send(out, {"segments": batch})
            _limit_cpu(cpu_s)
    except Exception as exc:  # noqa: BLE001 - whatever a parser throws costs this file alone
        error = explained(source, exc, max_bytes)
    if error is None:
        _send(out, {"done": True, "rss": _rss()})
    else:
        _send(out, {"error": type(error).__name__, "reason": error.reason, "remedy": error.remedy, "rss": _rss()})


def explained(source: Source, exc: Exception, max_bytes: int) -> DocumentError:
    """Turn what a parser threw into the error a user reads."""
    if isinstance(exc, DocumentError):
        return exc
    if isinstance(exc, MemoryError):
        return ParserLimitError(source.name, f"reading it takes more than {max_bytes >> 20} MiB of memory",
                                "split it, or raise parser_max_bytes or memory_budget")  # fmt: skip
    if isinstance(exc, RecursionError):
        return DamagedDocumentError(source.name, "it is nested too deeply")
    if isinstance(exc, FileNotFoundError):
        return DocumentError(source.name, "there is no such file")
    if isinstance(exc, PermissionError):
        return DocumentError(source.name, "you may not read it", "check its permissions")
    if isinstance(exc, OSError) and not isinstance(exc, zipfile.BadZipFile) and exc.errno is not None:
        return DocumentError(source.name, f"it can't be read ({exc.strerror})")
    words = one_line(f"{type(exc).__name__} {exc}")[:100]
    return DamagedDocumentError(source.name, f"it is damaged ({words})", "open and save it anew")


def _bounded(source: Source) -> Iterator[Segment]:
    """Give a file's segments; stop one that gives far more text than its size can hold."""
    most = max(_MOST_TEXT, 20 * source.path.stat().st_size)
    total = 0
    for segment in segments(source):
        total += len(segment.text)
        if total > most:
            raise DocumentTooLargeError(source.name, "it unpacks to far more text than a document of its size holds")
        yield segment


def _batches(found: Iterator[Segment]) -> Iterator[list[list[Any]]]:
    """Gather segments into frames, so that a pipe is not written for every line."""
    batch: list[list[Any]] = []
    size, began = 0, time.monotonic()
    for item in found:
        batch.append(
            [item.text, item.page, item.label, item.heading, item.row, item.line, item.kind, item.glue],
        )
        size += len(item.text)
        if size >= _FRAME_CHARACTERS or len(batch) >= 256 or time.monotonic() - began > _FRAME_SECONDS:
            yield batch
            batch, size, began = [], 0, time.monotonic()
    if batch:
        yield batch


def _send(out: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[out.write(view) or 0 :]


def _die_with(parent: int) -> None:
    """Ask Linux to end this process with its parent; elsewhere the end of standard input does."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(max_bytes: int) -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))


def _limit_cpu(seconds: float) -> None:
    """Allow *seconds* more of CPU time from now on; past them the kernel sends SIGXCPU, which kills."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def _rss() -> int:
    """Return this process's resident memory in bytes; 0 where that can't be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
