"""Turns that left the history for want of space: compressed JSON Lines, in files that only grow.

Each batch is a gzip member of its own, synced before the turns are deleted. How far a file is valid stands in the
database, in the transaction that deletes them: a batch cut off by a kill, or whose turns were not deleted after all, is
cut away before the next one. So a turn is in the history or in the archive, never in both and never in neither.
"""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.errors import StorageFullError

_LARGEST = 16_000_000  # bytes, after which a new file is begun
_META = "archive"


class Archive:
    """The folder of archive files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, db: sqlite3.Connection, turns: list[dict[str, Any]]) -> None:
        """Store turns, durably; the caller deletes them in the same transaction.

        Raises:
            StorageFullError: They could not be written.
        """
        name, length = self._current(db)
        lines = "".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in turns)
        data = gzip.compress(lines.encode("utf-8", "replace"), 6, mtime=0)
        path = self.folder / name
        try:
            self.folder.mkdir(exist_ok=True)
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(length)
                file.seek(length)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if length == 0:
                _sync_folder(self.folder)
        except OSError as exc:
            raise StorageFullError(
                f"The conversations are at their limit and old turns can't be archived in {self.folder.name}/ "
                f"({exc.strerror}); free some disk space, or switch history_archive off."
            ) from exc
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_META, json.dumps([name, length + len(data)])))

    def turns(self, db_state: str | None) -> Iterator[dict[str, Any]]:
        """Yield every archived turn, oldest file first; *db_state* is the database's word on the last file."""
        name, length = json.loads(db_state) if db_state else ("", 0)
        for path in sorted(self.folder.glob("turns-*.jsonl.gz")):
            data = path.read_bytes()
            yield from _lines(data[:length] if path.name == name else data)

    def forget(self, db: sqlite3.Connection, user: str, session_id: str) -> int:
        """Take a deleted session's turns out of every file; returns how many there were.

        Each file that holds some is written anew and put in place at once. Call it in the transaction that deletes the
        session: after a crash in between, deleting again finishes the work.

        Raises:
            StorageFullError: There is no room for the new file; the old one is unharmed.
        """
        row = db.execute("SELECT value FROM meta WHERE name = ?", (_META,)).fetchone()
        current, length = json.loads(row[0]) if row else ("", 0)
        gone = 0
        for path in sorted(self.folder.glob("turns-*.jsonl.gz")):
            data = path.read_bytes()
            turns = list(_lines(data[:length] if path.name == current else data))
            kept = [turn for turn in turns if (turn["user"], turn["session_id"]) != (user, session_id)]
            if len(kept) == len(turns):
                continue
            gone += len(turns) - len(kept)
            lines = "".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in kept)
            fresh = gzip.compress(lines.encode("utf-8", "replace"), 6, mtime=0) if kept else b""
            self._replace(path, fresh)
            if path.name == current:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_META, json.dumps([current, len(fresh)])))
        return gone

    def _replace(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(self.folder)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise StorageFullError(
                f"The archive {self.folder.name}/ can't be written ({exc.strerror}), so nothing was deleted; free some "
                "disk space and delete it again."
            ) from exc

    def _current(self, db: sqlite3.Connection) -> tuple[str, int]:
        row = db.execute("SELECT value FROM meta WHERE name = ?", (_META,)).fetchone()
        name, length = json.loads(row[0]) if row else ("", 0)
        path = self.folder / name
        if name and length < _LARGEST and path.is_file() and path.stat().st_size >= length:
            return name, length
        numbers = [int(found.name[6:12]) for found in self.folder.glob("turns-??????.jsonl.gz")]
        return f"turns-{max(numbers, default=0) + 1:06d}.jsonl.gz", 0


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the turns of all whole members."""
    while data:
        unpack = zlib.decompressobj(wbits=31)
        try:
            text = unpack.decompress(data)
        except zlib.error:
            return
        if not unpack.eof:
            return
        data = unpack.unused_data
        for line in text.decode().splitlines():
            yield json.loads(line)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable; Windows needs and allows no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
