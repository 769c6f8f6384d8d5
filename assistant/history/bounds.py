"""How much disk the history may take, and who leaves when it is full.

The database file and its write-ahead log together stay within ``max_bytes``. Room is made inside the transaction that
needs it: the oldest turns of the least recently used session leave first. The turn being written and the newest of all
never leave. The archive is beside the limit, and may take as much again.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from assistant.errors import StorageFullError
from assistant.units import format_bytes

from .archive import Archive

_PAGE = 4096
_BATCH = 16  # turns that leave at once
_MERGE_PAGES = 64  # of the full-text index, merged after each batch: deleting adds to it until then
_NAMED = 3  # sessions that a notice names
_SLACK = 12  # pages kept free beyond what a write should need: index pages that split


class Bounds:
    """The limit, in pages of the database.

    Args:
        max_bytes: Most disk for the database and its log.
        archive: Where turns go; None drops them.
    """

    def __init__(self, max_bytes: int, archive: Archive | None) -> None:
        self.max_bytes = max_bytes
        self.archive = archive
        # The log gets an eighth, up to 4 MB; a large transaction may need twice that for a moment.
        self.wal_pages = max(16, min(1000, max_bytes // 8 // _PAGE))
        self.reserve_bytes = max(4096, min(1 << 18, max_bytes // 16))
        self.hard_pages = (max_bytes - 2 * self.wal_pages * _PAGE - self.reserve_bytes - 64 * 1024) // _PAGE
        # Merges of the full-text index need room for the new segment beside the old ones.
        self.soft_pages = int(self.hard_pages * 0.85)

    def limit(self, db: sqlite3.Connection) -> None:
        """Let SQLite itself refuse to grow the file beyond the limit."""
        db.execute(f"PRAGMA max_page_count = {self.hard_pages}")

    def make_room(self, db: sqlite3.Connection, text_bytes: int, *, key: tuple[str, str],
                  keep: int | None = None) -> None:  # fmt: skip
        """Evict old turns until a write of *text_bytes* fits.

        Args:
            db: In a transaction.
            text_bytes: What is about to be written.
            key: User and session that write: their turns leave last.
            keep: The turn being written.

        Raises:
            StorageFullError: It would not fit though everything else left.
        """
        need = 2 * -(-text_bytes // _PAGE) + _SLACK  # the text, and its share of indexes
        if need > self.soft_pages // 2:
            raise StorageFullError(
                f"This turn alone has {format_bytes(text_bytes)}, too much for a history of "
                f"{format_bytes(self.max_bytes)}; raise history_max_bytes, or put the text into a document."
            )
        if self._free(db) >= need:
            return
        goal = need + min(self.soft_pages // 50, 256)  # a little more, so that not every write has to
        while self._free(db) < goal:
            if not self._evict(db, keep, key):
                # What left still has its marks in the full-text index until segments are merged.
                db.execute("INSERT INTO turns_text(turns_text) VALUES ('optimize')")
                if self._free(db) >= need:
                    return
                raise StorageFullError(
                    f"The history is at its limit of {format_bytes(self.max_bytes)} and nothing else can leave; raise "
                    "history_max_bytes."
                )

    def evict_some(self, db: sqlite3.Connection) -> bool:
        """Evict a tenth of what is allowed; return whether anything left."""
        goal, some = self._free(db) + self.soft_pages // 10, False
        while self._free(db) < goal and self._evict(db, None, ("", "")):
            some = True
        return some

    def start_anew(self, db: sqlite3.Connection) -> bool:
        """As a last resort, evict most turns and make the full-text index anew; return whether anything left.

        Deleting from the index adds to it until segments are merged. Where nearly every word is another one (keys,
        hashes, logs) the index is larger than the text, and neither the deletions nor the merge find room.
        """
        (trigger,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'turns_text_removed'").fetchone()
        some = False
        for share in (0.7, 0.85, 0.95):
            db.execute("INSERT INTO turns_text(turns_text) VALUES ('delete-all')")
            db.execute("DROP TRIGGER turns_text_removed")  # there is nothing to take out of the index
            while self._free(db) < share * self.soft_pages and self._evict(db, None, ("", "")):
                some = True
            db.execute(trigger)
            rebuild_search(db)
            if self._free(db) > 0.4 * self.soft_pages:  # else the next few turns would be here again
                break
        return some

    def checkpoint(self, db: sqlite3.Connection, log: Path) -> None:
        """Fold the log into the file when it outgrew its share; a reader elsewhere may postpone it."""
        try:
            if log.stat().st_size > 2 * self.wal_pages * _PAGE:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except (OSError, sqlite3.OperationalError):
            return

    def _free(self, db: sqlite3.Connection) -> int:
        (pages,), (unused,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count"))
        return int(self.soft_pages - pages + unused)

    def _evict(self, db: sqlite3.Connection, keep: int | None, using: tuple[str, str]) -> bool:
        """Move the oldest turns of the least recently used session out; return whether there were any."""
        (newest,) = db.execute("SELECT max(id) FROM turns").fetchone()
        for session in (
            db.execute(
                "SELECT * FROM sessions WHERE turn_count > 0 AND (user, id) != (?, ?) ORDER BY touched LIMIT 20", using
            ).fetchall()
            + db.execute("SELECT * FROM sessions WHERE (user, id) = (?, ?)", using).fetchall()
        ):
            key = (session["user"], session["id"])
            rows = db.execute(
                "SELECT * FROM turns WHERE user = ? AND session_id = ? AND status != 'running' AND id NOT IN (?, ?)"
                " ORDER BY id LIMIT ?", (*key, newest, keep or 0, _BATCH),
            ).fetchall()  # fmt: skip
            if not rows:
                continue
            if self.archive is not None:
                self.archive.put(db, [archived(row, session) for row in rows])
            self._remove(db, session, [row["id"] for row in rows], using)
            db.execute("INSERT INTO turns_text(turns_text, rank) VALUES ('merge', ?)", (_MERGE_PAGES,))
            return True
        return False

    def _remove(
        self, db: sqlite3.Connection, session: sqlite3.Row, turn_ids: list[int], using: tuple[str, str]
    ) -> None:
        key = (session["user"], session["id"])
        for turn_id in turn_ids:
            db.execute("DELETE FROM turns WHERE id = ?", (turn_id,))
        kept = self.archive is not None
        db.execute(
            "INSERT INTO evictions VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " dropped = dropped + excluded.dropped, archived = archived + excluded.archived",
            (*key, session["title"], 0 if kept else len(turn_ids), len(turn_ids) if kept else 0),
        )
        if len(turn_ids) == session["turn_count"] and key != using:
            db.execute("DELETE FROM sessions WHERE user = ? AND id = ?", key)
            return
        db.execute(
            "UPDATE sessions SET archived_count = archived_count + ?, head_turn_id = CASE"
            " WHEN head_turn_id IN (SELECT id FROM turns WHERE user = :user AND session_id = :id) THEN head_turn_id"
            " ELSE (SELECT max(id) FROM turns WHERE user = :user AND session_id = :id) END"
            " WHERE user = :user AND id = :id".replace("?", ":count"),
            {"count": len(turn_ids), "user": key[0], "id": key[1]},
        )


def rebuild_search(db: sqlite3.Connection) -> None:
    """Make the full-text index anew from the turns."""
    db.execute("INSERT INTO turns_text(turns_text) VALUES ('delete-all')")
    db.execute("INSERT INTO turns_text(rowid, question, answer) SELECT id, question, answer FROM turns WHERE indexed")


def archived(row: sqlite3.Row, session: sqlite3.Row) -> dict[str, Any]:
    """Return a turn as a line of the archive, which is a line of an export."""
    return {
        "type": "turn", "user": row["user"], "session_id": row["session_id"], "title": session["title"],
        "id": row["id"], "parent_id": row["parent_id"], "question": row["question"], "answer": row["answer"],
        "status": row["status"], "created_at": row["created_at"], "finished_at": row["finished_at"],
        "error": row["error"], "feedback": row["feedback"],
        "details": _loaded(row["details"]),
    }  # fmt: skip


def _loaded(details: str) -> Any:
    try:
        return json.loads(details) if details else {}
    except ValueError:  # changed on the disk; the text of the turn still goes to the archive
        return {}


def told(db: sqlite3.Connection, user: str, bounds: Bounds) -> list[str]:
    """Return, once, what the user should know about turns that left."""
    rows = db.execute("SELECT * FROM evictions WHERE user = ? ORDER BY archived + dropped DESC", (user,)).fetchall()
    db.execute("DELETE FROM evictions WHERE user = ?", (user,))
    full = f"The history is full ({format_bytes(bounds.max_bytes)})"
    notes = _counted(rows, "archived", full, "moved to the archive")
    if bounds.archive is not None:
        full = f"The archive of old conversations is full ({format_bytes(bounds.max_bytes)})"
    return notes + _counted(rows, "dropped", full, "deleted")


def _counted(rows: list[sqlite3.Row], column: str, full: str, what: str) -> list[str]:
    """Name the sessions that lost most, and count the others: there may be thousands after an import."""
    left = [(row[column], row["title"]) for row in rows if row[column]]
    notes = [f"{full}: the {count} oldest turns of “{title}” were {what}." for count, title in left[:_NAMED]]
    others = left[_NAMED:]
    if others:
        notes.append(f"{full}: {sum(count for count, _ in others)} turns of {len(others)} others were {what} too.")
    return notes
