"""Sessions and turns: what is asked and answered, as a tree of turns in each session.

Knows nothing about models, windows in tokens, or screens. A turn's parent is the turn it follows; a session's *head*
is the last turn of the branch that is shown. Editing a question makes a sibling and moves the head; nothing is lost.
Turns are ordered by id, never by time: clocks run backwards.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from assistant.errors import (
    AssistantError,
    SessionExistsError,
    StaleSessionError,
    StorageFullError,
    UnknownTurnError,
)
from assistant.records import LOCAL_USER, Turn, TurnStatus

from .archive import Archive
from .bounds import Bounds, told
from .opening import check_store, open_store
from .owners import alive, this_process
from .presence import Presence
from .reading import Reader, key_of, unknown
from .recalling import RecallIndex
from .repair import HistoryReport
from .rows import NewTurn, Session, as_json, turn_from
from .schema import Database
from .text import checked_name, checksum, clean_title, extend, storable, title_from
from .writing import FLUSH_S, Buffer

logger = logging.getLogger(__name__)

FOLLOW: Final = -1
"""As *parent_id* of `History.begin`: the new turn follows the head of its session."""


class History(Reader):
    """The conversations of all users, in one SQLite file that several processes may use at once.

    Every method that takes a *user* sees that user's sessions only.
    """

    def __init__(self, database: Database, presence: Presence, recovered: HistoryReport | None = None, *,
                 flush_s: float = FLUSH_S) -> None:  # fmt: skip
        self.folder, self.recovered = database.path.parent, recovered
        self._db, self._presence = database, presence
        self._owner = this_process()
        self._crcs: dict[int, int] = {}
        self._told: set[str] = set()
        self._buffer = Buffer(self._write_more, flush_s=flush_s)
        self._closed = False
        self.recall_index = RecallIndex(database)
        self.mark_interrupted()

    @classmethod
    def open(cls, folder: Path, *, max_bytes: int = 256_000_000, archive: bool = True,
             flush_s: float = FLUSH_S) -> History:  # fmt: skip
        """Open the conversations in *folder*, or start there.

        A store that was not closed well is inspected; a damaged one is set aside and what can be read of it is
        recovered: then `recovered` says what happened, and so does the next notice to each user.

        Args:
            folder: Where the database is kept; made when missing.
            max_bytes: Most disk for the database; the oldest turns leave first.
            archive: Whether turns that leave go to a compressed archive instead of away. It may take *max_bytes* too;
                then its oldest leave.
            flush_s: How long text of a running answer may wait for the disk.
        """
        bounds = Bounds(max_bytes, Archive(folder / "archive", max_bytes) if archive else None)
        database, presence, recovered = open_store(folder, bounds)
        try:
            return cls(database, presence, recovered, flush_s=flush_s)
        except BaseException:
            database.close()
            presence.close(clean=False)
            raise

    def close(self) -> None:
        """Write what waits, and close the file. A turn still running is left to be marked as interrupted."""
        if self._closed:
            return
        self._closed = True
        clean = False
        try:
            self._buffer.close()
            clean = not self._db.damaged
        except AssistantError as exc:  # a full disk: whoever writes was told, and what is stored is whole
            logger.warning("the last text of a running turn could not be stored: %s", exc)
        finally:
            self.recall_index.close()
            self._db.close()
            self._presence.close(clean=clean)

    def check(self, *, repair: bool = False) -> HistoryReport:
        """Look for damage, thoroughly; mend it when asked.

        Raises:
            HistoryError: The file must be replaced, and other processes have it open.
        """
        return check_store(self._db, self._presence, repair=repair)

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Sessions

    def create_session(self, user: str = LOCAL_USER, title: str = "") -> Session:
        """Start an empty session with an id of its own."""
        session_id = uuid.uuid4().hex[:12]
        with self._db.write() as db:
            self._ensure_session(db, checked_name(user, "user name"), session_id, title)
        return self.session(session_id, user)

    def rename(self, session_id: str, title: str, user: str = LOCAL_USER) -> Session:
        """Give a session another title; an empty one brings back the one made from its first question."""
        key = key_of(session_id, user)
        text = clean_title(title)
        with self._db.write() as db:
            self._row(db, key)
            if not text:
                first = db.execute(
                    "SELECT question FROM turns WHERE user = ? AND session_id = ? ORDER BY id LIMIT 1", key
                ).fetchone()
                db.execute(
                    "UPDATE sessions SET title = ?, titled = 0 WHERE user = ? AND id = ?",
                    (title_from(first[0]) if first else title_from(""), *key),
                )
            else:
                db.execute("UPDATE sessions SET title = ?, titled = 1 WHERE user = ? AND id = ?", (text, *key))
        return self.session(session_id, user)

    def delete(self, session_id: str, user: str = LOCAL_USER) -> None:
        """Delete a session with all its turns and branches, archived ones included."""
        key = key_of(session_id, user)

        def work(db: sqlite3.Connection) -> None:
            self._row(db, key)
            Archive(self.folder / "archive", self._db.bounds.max_bytes).forget(db, *key)
            db.execute("DELETE FROM evictions WHERE user = ? AND session_id = ?", key)
            db.execute("DELETE FROM turns WHERE user = ? AND session_id = ?", key)
            db.execute("DELETE FROM sessions WHERE user = ? AND id = ?", key)

        def some(db: sqlite3.Connection) -> int:
            self._row(db, key)
            return db.execute(
                "DELETE FROM turns WHERE id IN (SELECT id FROM turns WHERE user = ? AND session_id = ? LIMIT 4)", key
            ).rowcount

        try:
            self._db.transact(work, reserve_share=1)
        except StorageFullError:  # no room for a log of all that changes; bit by bit there may be
            while self._db.transact(some, reserve_share=1):
                self._db.freed()
            self._db.transact(work, reserve_share=1)
        self._db.freed()

    # Turns being written

    def begin(self, session_id: str, question: str, *, user: str = LOCAL_USER, parent_id: int | None = FOLLOW,
              expected_version: int | None = None) -> Turn:  # fmt: skip
        """Store a question; it is on the disk when this returns.

        Args:
            session_id: Any name; the session is made when it is new.
            question: As asked.
            user: Whose session.
            parent_id: The turn it follows; by default the head. To retry or edit a turn, the parent of that turn
                (None for the first): the old one stays as another branch.
            expected_version: `Session.version` as the caller last saw it; None does not check.

        Raises:
            SessionNameError: No such name can be stored.
            StaleSessionError: The session changed since the caller saw it (in another tab, by a script).
            UnknownTurnError: *parent_id* is not in this session.
            StorageFullError: There is no room for it.
        """
        key, text, now = key_of(session_id, user), storable(question), time.time()

        def work(db: sqlite3.Connection) -> Turn:
            self._reap(db)
            row = self._ensure_session(db, *key)
            if expected_version is not None and row["version"] != expected_version:
                raise StaleSessionError(
                    "This conversation went on elsewhere (another tab, or a script) since you last saw it; "
                    "reload it, then ask again."
                )
            parent = row["head_turn_id"] if parent_id == FOLLOW else parent_id
            depth = 1 if parent is None else 1 + self._turn_row(db, parent, key)["depth"]
            self._db.bounds.make_room(db, len(text.encode()), key=key, keep=parent)
            crc = checksum((*key, parent, text), "", "")
            turn_id = db.execute(
                "INSERT INTO turns(user, session_id, parent_id, depth, status, owner, created_at, crc, question)"
                " VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?)",
                (*key, parent, depth, self._owner, now, crc, text),
            ).lastrowid
            assert turn_id is not None
            if not row["titled"] and row["turn_count"] == 0:
                db.execute("UPDATE sessions SET title = ? WHERE user = ? AND id = ?", (title_from(text), *key))
            self._move_head(db, key, turn_id)
            return Turn(turn_id, key[1], parent, text, "", "running", now)

        turn = self._db.transact(work)
        self._crcs[turn.id] = checksum((*key, turn.parent_id, text), "", "")
        return turn

    def append(self, turn_id: int, text: str) -> None:
        """Add to the answer of a turn that this process began. It is on the disk within a second.

        Raises:
            StorageFullError: What came before could not be stored.
        """
        if turn_id not in self._crcs:
            raise UnknownTurnError(f"Turn {turn_id} is not being written here.")
        if text:
            self._buffer.add(turn_id, text)

    def finish(self, turn_id: int, *, answer: str | None = None, status: TurnStatus = "done",
               details: Mapping[str, Any] | None = None, error: str = "") -> Turn:  # fmt: skip
        """End a turn that this process began; all of it is on the disk when this returns.

        Args:
            turn_id: From `begin`.
            answer: The whole answer; by default what was appended.
            status: How it ended.
            details: Quotes, receipts and the like, as JSON values.
            error: Why it failed, in words for people.
        """
        if turn_id not in self._crcs:
            raise UnknownTurnError(f"Turn {turn_id} is not being written here.")
        kept = as_json(details)
        if answer is None:
            self._buffer.flush(turn_id)

        def work(db: sqlite3.Connection) -> Turn:
            row = db.execute("SELECT * FROM turns WHERE id = ?", (turn_id,)).fetchone()
            if row is None:
                raise UnknownTurnError(f"Turn {turn_id} was deleted while it was being answered.")
            text = row["answer"] if answer is None else storable(answer)
            head = (row["user"], row["session_id"], row["parent_id"], row["question"])
            now = time.time()
            self._db.bounds.make_room(db, len(text.encode()) + len(kept), key=head[:2], keep=turn_id)
            db.execute(
                "UPDATE turns SET answer = ?, status = ?, details = ?, error = ?, finished_at = ?, owner = '',"
                " indexed = 1, crc = ? WHERE id = ?",
                (text, status, kept, storable(error), now, checksum(head, text, kept), turn_id),
            )
            db.execute("UPDATE sessions SET updated_at = ? WHERE user = ? AND id = ?", (now, *head[:2]))
            return turn_from(db.execute("SELECT * FROM turns WHERE id = ?", (turn_id,)).fetchone())

        with self._buffer.held():  # else a piece on its way to the disk would come after the end
            done = self._db.transact(work, reserve_share=0.2)
            self._crcs.pop(turn_id, None)
            self._buffer.forget(turn_id)
        return done

    def add(self, session_id: str, turns: Iterable[NewTurn], *, user: str = LOCAL_USER, title: str = "",
            head: str | None = None) -> Session:  # fmt: skip
        """Take a whole conversation in, all of it or nothing.

        Args:
            session_id: Of a new session.
            turns: Parents before children.
            user: Whose session it will be.
            title: By default made from the first question.
            head: Key of the last turn of the branch to show; by default, or when it did not come, the last of *turns*.

        Raises:
            SessionExistsError: The user has a session of that id.
            StorageFullError: There is no room for it.
        """
        key = key_of(session_id, user)

        def work(db: sqlite3.Connection) -> None:
            if db.execute("SELECT 1 FROM sessions WHERE user = ? AND id = ?", key).fetchone():
                raise SessionExistsError(f"There is a conversation {key[1][:60]!r} already; delete or keep it.")
            self._ensure_session(db, *key, title)
            ids: dict[str, int] = {}
            depths: dict[str, int] = {}
            last = None
            for turn in turns:
                if not ids and not clean_title(title):
                    db.execute(
                        "UPDATE sessions SET title = ? WHERE user = ? AND id = ?", (title_from(turn.question), *key)
                    )
                parent = None if turn.parent is None else ids[turn.parent]
                depths[turn.key] = 1 + (0 if turn.parent is None else depths[turn.parent])
                ids[turn.key] = last = self._insert(db, key, turn, parent, depths[turn.key])
            self._move_head(db, key, ids.get(head or "", last))

        if isinstance(turns, Sequence):  # it can be read a second time, after making more room
            self._db.transact(work)
        else:
            with self._db.write() as db:
                work(db)
        return self.session(session_id, user)

    def _insert(self, db: sqlite3.Connection, key: tuple[str, str], turn: NewTurn, parent: int | None,
                depth: int) -> int:  # fmt: skip
        question, answer, details = storable(turn.question), storable(turn.answer), as_json(turn.details)
        self._db.bounds.make_room(db, len(question.encode()) + len(answer.encode()) + len(details), key=key)
        status = "interrupted" if turn.status == "running" else turn.status
        turn_id = db.execute(
            "INSERT INTO turns(user, session_id, parent_id, depth, status, indexed, created_at, finished_at, feedback,"
            " crc, question, answer, error, details) VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, parent, depth, status, turn.created_at, turn.finished_at, turn.feedback,
             checksum((*key, parent, question), answer, details), question, answer, storable(turn.error), details),
        ).lastrowid  # fmt: skip
        assert turn_id is not None
        return turn_id

    def mark_interrupted(self) -> int:
        """Mark running turns whose process is gone as ``interrupted``; return how many."""
        if self._db.one("SELECT 1 FROM turns WHERE status = 'running' AND owner != ? LIMIT 1", (self._owner,)) is None:
            return 0
        with self._db.write() as db:
            return self._reap(db)

    # Branches

    def undo(self, session_id: str, user: str = LOCAL_USER) -> Turn | None:
        """Step back before the last turn and return that turn, or None at the start; `switch` returns to it."""
        key = key_of(session_id, user)
        with self._db.write() as db:
            head = self._row(db, key)["head_turn_id"]
            if head is None:
                return None
            row = self._turn_row(db, head, key)
            known = db.execute("SELECT 1 FROM turns WHERE id = ?", (row["parent_id"],)).fetchone()
            self._move_head(db, key, row["parent_id"] if known else None)
        return turn_from(row)

    def switch(self, session_id: str, turn_id: int, user: str = LOCAL_USER) -> Session:
        """Show the branch through *turn_id*, down to its newest turn."""
        key = key_of(session_id, user)
        with self._db.write() as db:
            self._turn_row(db, turn_id, key)
            leaf = turn_id
            while row := db.execute(
                "SELECT max(id) AS id FROM turns WHERE parent_id = ? AND user = ? AND session_id = ?", (leaf, *key)
            ).fetchone():
                if row["id"] is None:
                    break
                leaf = row["id"]
            self._move_head(db, key, leaf)
        return self.session(session_id, user)

    def set_feedback(self, session_id: str, turn_id: int, feedback: int, user: str = LOCAL_USER) -> None:
        """Keep what the user thinks of an answer: 1, -1, or 0 to take it back."""
        key = key_of(session_id, user)
        with self._db.write() as db:
            self._turn_row(db, turn_id, key)
            db.execute("UPDATE turns SET feedback = ? WHERE id = ?", (max(-1, min(1, int(feedback))), turn_id))

    def notices(self, user: str = LOCAL_USER) -> list[str]:
        """Return what the user should be told about the store, once: turns that left, and damage that was mended."""
        notes = []
        if self.recovered is not None and user not in self._told:
            self._told.add(user)
            notes.append(str(self.recovered))
        if self._db.one("SELECT 1 FROM evictions WHERE user = ?", (user,)) is not None:
            notes += self._db.transact(lambda db: told(db, user, self._db.bounds))
        return notes

    # Inside a transaction

    def _ensure_session(self, db: sqlite3.Connection, user: str, session_id: str, title: str = "") -> sqlite3.Row:
        now, text = time.time(), clean_title(title)
        db.execute(
            "INSERT INTO sessions(user, id, title, titled, created_at, updated_at, touched)"
            " SELECT ?, ?, ?, ?, ?, ?, coalesce(max(touched), 0) + 1 FROM sessions WHERE true"
            " ON CONFLICT(user, id) DO NOTHING",
            (user, session_id, text or title_from(""), bool(text), now, now),
        )
        return self._row(db, (user, session_id))

    def _row(self, db: sqlite3.Connection, key: tuple[str, str]) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute("SELECT * FROM sessions WHERE user = ? AND id = ?", key).fetchone()
        if row is None:
            raise unknown(key[1])
        return row

    def _turn_row(self, db: sqlite3.Connection, turn_id: int, key: tuple[str, str]) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(
            "SELECT * FROM turns WHERE id = ? AND user = ? AND session_id = ?", (turn_id, *key)
        ).fetchone()
        if row is None:
            raise UnknownTurnError(f"There is no turn {turn_id} in this conversation.")
        return row

    def _move_head(self, db: sqlite3.Connection, key: tuple[str, str], turn_id: int | None) -> None:
        db.execute(
            "UPDATE sessions SET head_turn_id = ?, version = version + 1, updated_at = ?,"
            " touched = (SELECT max(touched) + 1 FROM sessions) WHERE user = ? AND id = ?",
            (turn_id, time.time(), *key),
        )

    def _write_more(self, turn_id: int, text: str) -> None:
        text = storable(text)
        crc = extend(self._crcs[turn_id], text)

        def work(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT user, session_id, length(answer) AS long FROM turns WHERE id = ?", (turn_id,))
            turn = row.fetchone()
            if turn is None:
                raise UnknownTurnError(f"Turn {turn_id} was deleted while it was being answered.")
            self._db.bounds.make_room(db, turn["long"] + len(text.encode()), key=(turn["user"], turn["session_id"]),
                                      keep=turn_id)  # fmt: skip
            db.execute("UPDATE turns SET answer = answer || ?, crc = ? WHERE id = ?", (text, crc, turn_id))

        self._db.transact(work, reserve_share=0.2)
        self._crcs[turn_id] = crc

    def _reap(self, db: sqlite3.Connection) -> int:
        owners = [row[0] for row in db.execute("SELECT DISTINCT owner FROM turns WHERE status = 'running'")]
        gone = [owner for owner in owners if owner != self._owner and not alive(owner)]
        count = 0
        for owner in gone:
            count += db.execute(
                "UPDATE turns SET status = 'interrupted', owner = '', indexed = 1"
                " WHERE status = 'running' AND owner = ?",
                (owner,),
            ).rowcount
        return count
