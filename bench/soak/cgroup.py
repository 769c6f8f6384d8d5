"""A memory cgroup of version 1 or 2 for one run: made, filled by a child process, read, and removed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

ROOT_V1 = Path("/sys/fs/cgroup/memory")
ROOT_V2 = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """A cgroup that holds its processes to *limit* bytes and gives them no swap.

    Raises:
        SystemExit: It can't be made: not root, or no memory controller here.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.v1 = (ROOT_V1 / "memory.limit_in_bytes").exists()
        self.folder = (ROOT_V1 if self.v1 else ROOT_V2) / name
        try:
            self.folder.mkdir()
            if self.v1:
                self._write("memory.limit_in_bytes", limit)
                self._write("memory.swappiness", 0)
            else:
                self._write("memory.max", limit)
                if (self.folder / "memory.swap.max").exists():
                    self._write("memory.swap.max", 0)
        except OSError as exc:
            raise SystemExit(f"a memory cgroup can't be made here ({exc}); the soak needs root for it") from exc

    def __enter__(self) -> MemoryCgroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for _ in range(50):
            try:
                if self.v1:  # else the file pages charged here stay, and come for nothing in the next run
                    self._write("memory.force_empty", 0)
                self.folder.rmdir()
                return
            except OSError:  # its last process is still on its way out
                time.sleep(0.1)

    def join(self) -> None:
        """Put the calling process in; meant for ``preexec_fn``."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def kills(self) -> int:
        """Processes that the kernel killed for memory."""
        return self._fields("memory.oom_control" if self.v1 else "memory.events").get("oom_kill", 0)

    @property
    def peak(self) -> int:
        """Highest charge so far, file cache included, in bytes; 0 where the kernel does not keep it."""
        return self._read("memory.max_usage_in_bytes" if self.v1 else "memory.peak")

    @property
    def hits(self) -> int:
        """How often the limit was hit and the kernel had to reclaim."""
        return self._read("memory.failcnt") if self.v1 else self._fields("memory.events").get("max", 0)

    def stat(self) -> dict[str, int]:
        """Anonymous memory and file cache charged now, in bytes, and major page faults so far."""
        fields = self._fields("memory.stat")
        if self.v1:
            return {"anonymous": fields["total_rss"], "cache": fields["total_cache"],
                    "mapped": fields["total_mapped_file"], "major_faults": fields["total_pgmajfault"]}  # fmt: skip
        return {"anonymous": fields["anon"], "cache": fields["file"], "mapped": fields["file_mapped"],
                "major_faults": fields["pgmajfault"]}  # fmt: skip

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def _read(self, name: str) -> int:
        path = self.folder / name
        return int(path.read_text()) if path.exists() else 0

    def _fields(self, name: str) -> dict[str, int]:
        rows = (line.split() for line in (self.folder / name).read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2}
