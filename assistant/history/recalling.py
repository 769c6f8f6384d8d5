"""What recall reads from the store: the order of turns, where words occur, and the vectors of turns.

Knows tables, not ranking. Every query names its user.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from assistant.records import Turn

from .rows import turn_from
from .schema import TOKENIZER, Database

_ROWS = 2048  # rows in RAM at once while vectors are scanned


# Each walks an index in its own order: a page must not cost sorting everything that comes after it.
_VECTORS_OF_SESSION = """
SELECT id, vectors FROM turns CROSS JOIN turn_vectors ON turn_id = id
WHERE user = :user AND session_id = :session AND id > :last ORDER BY id LIMIT :rows
"""
_VECTORS_OF_USER = """
SELECT id, vectors FROM turn_vectors CROSS JOIN turns ON id = turn_id
WHERE turn_id > :last AND user = :user ORDER BY turn_id LIMIT :rows
"""


@dataclass(frozen=True, slots=True)
class Branch:
    """The turns of a session's shown branch, oldest first."""

    session_id: str
    turn_ids: list[int]


class RecallIndex:
    """Reads for recall, and writes of the vectors it makes."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lock = threading.Lock()
        self._stemmer = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._stemmer.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, tokenize='{TOKENIZER}')")
        self._stemmer.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, row)")

    def stems(self, text: str) -> list[str]:
        """Return the distinct terms that the full-text index makes of *text*."""
        with self._lock:
            self._stemmer.execute("DELETE FROM words")
            self._stemmer.execute("INSERT INTO words VALUES (?)", (text,))
            return [row[0] for row in self._stemmer.execute("SELECT term FROM stems ORDER BY term")]

    def state(self, user: str, session_id: str | None) -> tuple[tuple[str, int, int | None], ...]:
        """Return (id, version, head) of the session, or of all the user's: equal states have equal branches."""
        rows = self._db.all(
            "SELECT id, version, head_turn_id FROM sessions WHERE user = :user AND (:id IS NULL OR id = :id)"
            " ORDER BY touched",
            {"user": user, "id": session_id},
        )
        return tuple((row[0], row[1], row[2]) for row in rows)

    def branches(self, user: str, session_id: str | None) -> list[Branch]:
        """Return the shown branch of the session, or of every session of the user."""
        found = []
        for known_id, _, head in self.state(user, session_id):
            rows = self._db.all("SELECT id, parent_id FROM turns WHERE user = ? AND session_id = ?", (user, known_id))
            parents = {row[0]: row[1] for row in rows}
            ids: list[int] = []
            turn_id = head
            while turn_id is not None and turn_id in parents:
                ids.append(turn_id)
                turn_id = parents[turn_id]
            found.append(Branch(known_id, ids[::-1]))
        return found

    def sizes(self, user: str, session_id: str | None) -> dict[int, tuple[int, int]]:
        """Return how many words question and answer have, by turn, as the full-text index counted them."""
        rows = self._db.all(
            "SELECT turns.id, sz FROM turns JOIN turns_text_docsize ON turns_text_docsize.id = turns.id"
            " WHERE user = :user AND (:id IS NULL OR session_id = :id)",
            {"user": user, "id": session_id},
        )
        return {row[0]: _two_varints(row[1]) for row in rows}

    def occurrences(self, stem: str, user: str, session_id: str | None) -> list[tuple[int, int, int]]:
        """Return (turn id, 0 for question or 1 for answer, how often) wherever a term occurs."""
        rows = self._db.all(
            "SELECT doc, col = 'answer', count(*) FROM turns_terms CROSS JOIN turns ON turns.id = doc"
            " WHERE term = :stem AND user = :user AND (:id IS NULL OR session_id = :id) GROUP BY doc, col",
            {"stem": stem, "user": user, "id": session_id},
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def vectors(self, user: str, session_id: str | None) -> Iterator[tuple[list[int], bytes]]:
        """Yield ids and packed vectors of turns, some thousand at a time."""
        last, sql = 0, _VECTORS_OF_USER if session_id is None else _VECTORS_OF_SESSION
        while True:
            rows = self._db.all(sql, {"user": user, "session": session_id, "last": last, "rows": _ROWS})
            if not rows:
                return
            last = rows[-1][0]
            yield [row[0] for row in rows], b"".join(row[1] for row in rows)

    def embedded(self, user: str, session_id: str | None) -> list[int]:
        """Return the ids of turns that have vectors."""
        rows = self._db.all(
            "SELECT id FROM turns CROSS JOIN turn_vectors ON turn_id = id WHERE user = :user"
            " AND (:session IS NULL OR session_id = :session)",
            {"user": user, "session": session_id},
        )
        return [row[0] for row in rows]

    def keep_vectors(self, user: str, vectors: Iterable[tuple[int, bytes]], made_by: str) -> None:
        """Store vectors; those of another embedder are dropped first. Turns gone meanwhile are passed over."""
        with self._db.write() as db:
            known = db.execute("SELECT value FROM meta WHERE name = 'embedder'").fetchone()
            if known is None or known[0] != made_by:
                db.execute("DELETE FROM turn_vectors")
                db.execute("INSERT OR REPLACE INTO meta VALUES ('embedder', ?)", (made_by,))
            db.executemany(
                "INSERT OR REPLACE INTO turn_vectors SELECT id, ? FROM turns WHERE id = ? AND user = ?",
                ((blob, turn_id, user) for turn_id, blob in vectors),
            )

    def made_by(self) -> str:
        """Return the fingerprint of the embedder whose vectors are stored; empty when there are none."""
        row = self._db.one("SELECT value FROM meta WHERE name = 'embedder'")
        return "" if row is None else str(row[0])

    def turns(self, user: str, turn_ids: Iterable[int]) -> dict[int, Turn]:
        """Return turns by id; those that are not the user's are left out."""
        found = {}
        for turn_id in dict.fromkeys(turn_ids):
            row = self._db.one("SELECT * FROM turns WHERE id = ? AND user = ?", (turn_id, user))
            if row is not None:
                found[turn_id] = turn_from(row)
        return found

    def titles(self, user: str, session_ids: Iterable[str]) -> dict[str, str]:
        """Return titles by session id."""
        found = {}
        for session_id in set(session_ids):
            row = self._db.one("SELECT title FROM sessions WHERE user = ? AND id = ?", (user, session_id))
            found[session_id] = "" if row is None else str(row[0])
        return found

    def close(self) -> None:
        """Close what this holds of its own."""
        with self._lock:
            self._stemmer.close()


def _two_varints(blob: bytes) -> tuple[int, int]:
    """Read the two column sizes of an FTS5 ``docsize`` record (SQLite's varints, big end first)."""
    values, value = [], 0
    for byte in blob:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            values.append(value)
            value = 0
    return values[0], values[1]
