"""Turns that left the history for want of space: compressed JSON Lines, in files that only grow.

Each batch is a gzip member of its own, synced before the turns are deleted. How far a file is valid stands in the
database, in the transaction that deletes them: a batch cut off by a kill, or whose turns were not deleted after all, is
cut away before the next one. So a turn is in the history or in the archive, never in both and never in neither.

The archive may take as much disk as the history itself. When it is full its oldest file goes as a whole: first its
turns are noted as dropped, in the same transaction, so that their users are told; the file is deleted by the next
batch, when that note is known to be on the disk.
"""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from assistant.errors import StorageFullError

_LARGEST = 16_000_000  # bytes, after which a new file is begun
_FILES = 16  # at least so many files share the limit, so that what goes at once is a small part
_READ = 1 << 16
_LEAVING = "archive_leaving"
_META = "archive"


class Archive:
    """The folder of archive files.

    Args:
        folder: Made when the first turn leaves.
        max_bytes: Most disk for it; the oldest file goes first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._largest = min(_LARGEST, max_bytes // _FILES)

    def put(self, db: sqlite3.Connection, turns: list[dict[str, Any]]) -> None:
        """Store turns, durably; the caller deletes them in the same transaction.

        Raises:
            StorageFullError: They could not be written.
        """
        self._make_room(db)
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
        for path in self._files():
            for line in _lines(path, length if path.name == name else None):
                yield json.loads(line)

    def forget(self, db: sqlite3.Connection, user: str, session_id: str) -> int:
        """Take a deleted session's turns out of every file; returns how many there were.

        Each file that holds some is written anew and put in place at once. Call it in the transaction that deletes the
        session: after a crash in between, deleting again finishes the work.

        Raises:
            StorageFullError: There is no room for the new file; the old one is unharmed.
        """
        current, length = self._state(db)
        gone = 0

        def kept(path: Path, valid: int | None) -> Iterator[bytes]:
            nonlocal gone
            for line in _lines(path, valid):
                if marked in line:  # cheap to see; most lines need no parsing
                    turn = json.loads(line)
                    if (turn["user"], turn["session_id"]) == (user, session_id):
                        gone += 1
                        continue
                yield line

        marked = json.dumps(session_id, ensure_ascii=False).encode("utf-8", "replace")
        for path in self._files():
            valid = length if path.name == current else None
            if not any(marked in line for line in _lines(path, valid)):
                continue
            before = gone
            size = self._replace(path, kept(path, valid), lambda before=before: gone > before)  # type: ignore[misc]
            if path.name == current and size is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_META, json.dumps([current, size])))
        return gone

    def _make_room(self, db: sqlite3.Connection) -> None:
        """Delete the file that was given up before, and give up the oldest when the limit is near."""
        row = db.execute("SELECT value FROM meta WHERE name = ?", (_LEAVING,)).fetchone()
        if row is not None:
            try:
                (self.folder / row[0]).unlink(missing_ok=True)
            except OSError:  # the next batch tries again
                return
            db.execute("DELETE FROM meta WHERE name = ?", (_LEAVING,))
        files = self._files()
        if len(files) < 2 or sum(path.stat().st_size for path in files) < self.max_bytes - 2 * self._largest:
            return
        dropped: Counter[tuple[str, str, str]] = Counter()
        for line in _lines(files[0], None):
            turn = json.loads(line)
            dropped[turn["user"], turn["session_id"], turn["title"]] += 1
        db.executemany(
            "INSERT INTO evictions VALUES (?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET"
            " dropped = dropped + excluded.dropped",
            ((*key, count) for key, count in dropped.items()),
        )
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_LEAVING, files[0].name))

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("turns-*.jsonl.gz"))

    def _replace(self, path: Path, lines: Iterator[bytes], changed: Callable[[], bool]) -> int | None:
        """Write *lines* in place of a file, unless they turn out to be the same; return the new size, or None."""
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    packed.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if not changed():
                part.unlink()
                return None
            part.replace(path)
            _sync_folder(self.folder)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise StorageFullError(
                f"The archive {self.folder.name}/ can't be written ({exc.strerror}), so nothing was deleted; free some "
                "disk space and delete it again."
            ) from exc
        return size

    def _state(self, db: sqlite3.Connection) -> tuple[str, int]:
        row = db.execute("SELECT value FROM meta WHERE name = ?", (_META,)).fetchone()
        name, length = json.loads(row[0]) if row else ("", 0)
        return name, length

    def _current(self, db: sqlite3.Connection) -> tuple[str, int]:
        name, length = self._state(db)
        path = self.folder / name
        if name and length < self._largest and path.is_file() and path.stat().st_size >= length:
            return name, length
        known = [name] if name else [found.name for found in self._files()]
        last = max((int(found[6:12]) for found in known), default=0)
        return f"turns-{last + 1:06d}.jsonl.gz", 0  # one that is there was never said to be valid


def _lines(path: Path, length: int | None) -> Iterator[bytes]:
    """Yield the lines of all whole members within the first *length* bytes; a member in RAM at a time."""
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        unpack, parts, data = zlib.decompressobj(wbits=31), [b""], b""
        while True:
            if not data:
                data = file.read(min(_READ, left))
                left -= len(data)
                if not data:
                    return
            try:
                text = unpack.decompress(data)
            except zlib.error:
                return
            data = unpack.unused_data
            *whole, rest = (parts.pop() + text).split(b"\n")
            yield from (line for line in whole if line)
            parts.append(rest)
            if unpack.eof:
                unpack = zlib.decompressobj(wbits=31)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable; Windows needs and allows no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
