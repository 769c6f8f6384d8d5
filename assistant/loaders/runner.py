"""Runs loaders in a child process, so that a bad file costs itself alone and its memory goes back.

Knows no format. One child serves many files and is replaced when it has grown, after many files, or when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from assistant import errors
from assistant.errors import DocumentError, ParserLimitError
from assistant.memory import tree_rss
from assistant.records import Segment

_MAX_FILES = 200
_MAX_RSS = 200 << 20
_POLL_S = 0.2
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_ROOT = Path(__file__).resolve().parent.parent.parent


class Cancelled(Exception):
    """The caller's ``cancelled`` said so while a file was being read."""


class Parser:
    """Parses files one at a time in a child process; use as a context manager, from one thread.

    Args:
        timeout_s: Seconds (of the clock, and of CPU time) a file may take without giving text.
        max_bytes: Address space the child may use.
    """

    def __init__(self, *, timeout_s: float = 60.0, max_bytes: int = 1 << 30) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._files = 0

    def __enter__(self) -> Parser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._child.pid if self._child else None

    @property
    def rss(self) -> int:
        """Resident set of the child and of what it started, in bytes; 0 while there is none."""
        return tree_rss(self._child.pid) if self._child else 0

    def load(self, path: str | Path, *, name: str = "", passwords: Sequence[str] = (),
             cancelled: Callable[[], bool] = lambda: False) -> Iterator[Segment]:  # fmt: skip
        """Yield the segments of a file as its loader gives them; it reads on no faster than they are taken.

        Args:
            path: The file.
            name: How errors call it; its path otherwise.
            passwords: To try on encrypted PDF and Office files.
            cancelled: Asked while waiting.

        Raises:
            DocumentError: It can't be read; the message has the reason and the remedy.
            Cancelled: ``cancelled()`` became true.
        """
        shown = name or str(path)
        child = self._ready()
        job = {"path": os.path.abspath(path), "name": shown, "passwords": [*passwords]}  # noqa: PTH100 - links are kept
        finished = False
        try:
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(job).encode("ascii") + b"\n")
                child.stdin.flush()
            except OSError:
                raise self._died(child, shown) from None
            while not finished:
                frame = self._frame(child, shown, cancelled)
                if "segments" in frame:
                    for text, page, label, heading, row, line, kind, glue in frame["segments"]:
                        yield Segment(text, page, label, tuple(heading), row, line, kind, glue)
                    continue
                finished = True
                self._files += 1
                if frame["rss"] > min(_MAX_RSS, self._max_bytes // 2) or self._files >= _MAX_FILES:
                    self.close()
                if "error" in frame:
                    raise getattr(errors, frame["error"])(shown, frame["reason"], frame["remedy"])
        finally:
            if not finished:  # given up half-way: what the child still has to say belongs to nobody
                self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child, self._files = self._child, None, 0
        if child is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)  # with whatever converter it may have started
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        child.wait()

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return a living child."""
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            environ = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
            environ |= {"PYTHONPATH": str(_ROOT), "PYTHONUTF8": "1", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-P", "-m", "assistant.loaders.child", str(os.getpid()), str(self._max_bytes),
                       str(self._timeout_s)]  # fmt: skip
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ,
                start_new_session=True,
            )  # fmt: skip
        return self._child

    def _frame(self, child: subprocess.Popen[bytes], name: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
        size = struct.unpack(">I", self._read(child, 4, name, cancelled))[0]
        frame: dict[str, Any] = json.loads(self._read(child, size, name, cancelled))
        return frame

    def _read(self, child: subprocess.Popen[bytes], size: int, name: str, cancelled: Callable[[], bool]) -> bytes:
        """Read exactly *size* bytes; the clock runs only while the caller waits for the child."""
        assert child.stdout is not None
        parts, missing = [], size
        deadline = time.monotonic() + self._timeout_s
        descriptor = child.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while missing:
                if selector.select(_POLL_S):
                    part = os.read(descriptor, min(missing, 1 << 16))
                    if not part:
                        raise self._died(child, name)
                    parts.append(part)
                    missing -= len(part)
                elif cancelled():
                    raise Cancelled
                elif time.monotonic() > deadline:
                    raise ParserLimitError(name, f"its parser gave no text for {self._timeout_s:g} s",
                                           "split it, or raise parser_timeout_s")  # fmt: skip
        return b"".join(parts)

    def _died(self, child: subprocess.Popen[bytes], name: str) -> DocumentError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        if child.returncode == -signal.SIGXCPU:
            return ParserLimitError(name, f"its parser computed for {self._timeout_s:g} s without giving text",
                                    "split it, or raise parser_timeout_s")  # fmt: skip
        how = signal.Signals(-child.returncode).name if child.returncode and child.returncode < 0 else "without a word"
        return ParserLimitError(name, f"its parser died ({how}): the file is damaged or takes more than "
                                f"{self._max_bytes >> 20} MiB of memory", "save it anew, or split it")  # fmt: skip


def load(path: str | Path, *, password: str | None = None, timeout_s: float = 60.0,
         max_bytes: int = 1 << 30) -> Iterator[Segment]:  # fmt: skip
    """Load one file in a child process of its own; see ``Parser`` for many.

    Raises:
        DocumentError: It can't be read.
    """
    with Parser(timeout_s=timeout_s, max_bytes=max_bytes) as parser:
        yield from parser.load(path, passwords=[password] if password else [])
