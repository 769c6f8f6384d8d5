"""Which uploads are on their way, on disk: a killed or closed chat goes on with them at its next start.

Each process has a folder of its own with one small file an upload, and holds a lock in it for as long as it lives. A
folder whose lock can be had belongs to a process that is gone; what lies there is taken over, once. Knows nothing of
what an upload is beyond a JSON object.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: no lock to tell a living process by, so nothing is taken over
    fcntl = None  # type: ignore[assignment]

Json = dict[str, Any]
LOCK = "lock"


class Spool:
    """The notes of one process.

    Args:
        folder: Where all processes keep theirs; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._mine.mkdir(parents=True)
        self._lock = _locked(self._mine / LOCK)

    def put(self, key: str, note: Json) -> None:
        """Write a note, or write it anew."""
        fresh = self._mine / f"{key}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._mine / f"{key}.json")

    def drop(self, key: str) -> None:
        """Forget a note, if there is one."""
        (self._mine / f"{key}.json").unlink(missing_ok=True)

    def notes(self) -> Iterator[Json]:
        """Yield the notes of all processes, living or not."""
        for path in sorted(self._folder.glob("*/*.json")):
            note = _read(path)
            if note is not None:
                yield note

    def take_over(self) -> list[Json]:
        """Return the notes of processes that are gone, oldest first; they are this process's now."""
        taken = []
        for folder in sorted(self._folder.iterdir()):
            lock = _locked(folder / LOCK) if folder != self._mine and folder.is_dir() else None
            if lock is None:
                continue
            with lock:
                for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
                    note = _read(path)
                    if note is not None:
                        path.replace(self._mine / path.name)
                        taken.append(note)
                shutil.rmtree(folder, ignore_errors=True)
        return taken

    def close(self) -> None:
        """Let the next process have what is left."""
        if not any(self._mine.glob("*.json")):
            shutil.rmtree(self._mine, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _locked(path: Path) -> IO[bytes] | None:
    """Lock a file without waiting; None where somebody holds it or there are no locks."""
    if fcntl is None:
        return None
    try:
        file = path.open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _read(path: Path) -> Json | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None
