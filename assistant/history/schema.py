"""The tables, and connections to them. Knows how SQLite is asked, not what a conversation is."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from assistant.errors import HistoryError, StorageFullError

FILE = "history.sqlite3"
VERSION = 1
BUSY_TIMEOUT_S = 30.0
_LITTLE_SPACE = 1 << 20  # with less than this free, an I/O error is a full disk

# turns.user and turns.session_id repeat the session's key: every query on turns can name its user, and turns whose
# session row is lost to damage can still be given back to whom they belong.
TABLES = """
CREATE TABLE sessions(
    user TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, titled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, updated_at REAL NOT NULL,
    touched INTEGER NOT NULL,            -- a counter, not a clock: clocks run backwards
    turn_count INTEGER NOT NULL DEFAULT 0, archived_count INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0, head_turn_id INTEGER,
    PRIMARY KEY (user, id)
);
CREATE UNIQUE INDEX sessions_touched ON sessions(touched);
CREATE INDEX sessions_user ON sessions(user, touched);
CREATE TABLE turns(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL, session_id TEXT NOT NULL, parent_id INTEGER,
    depth INTEGER NOT NULL,              -- 1 for the first question of a branch
    status TEXT NOT NULL, owner TEXT NOT NULL DEFAULT '', indexed INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, finished_at REAL, feedback INTEGER NOT NULL DEFAULT 0,
    crc INTEGER NOT NULL,
    question TEXT NOT NULL, answer TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
    details TEXT NOT NULL DEFAULT ''
);
CREATE INDEX turns_session ON turns(user, session_id, id);
CREATE INDEX turns_parent ON turns(user, session_id, parent_id, id);
CREATE INDEX turns_running ON turns(owner) WHERE status = 'running';
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE evictions(
    user TEXT NOT NULL, session_id TEXT NOT NULL, title TEXT NOT NULL,
    turns INTEGER NOT NULL, archived INTEGER NOT NULL,
    PRIMARY KEY (user, session_id)
) WITHOUT ROWID;
CREATE TABLE turn_vectors(turn_id INTEGER PRIMARY KEY, vectors BLOB NOT NULL);
CREATE TRIGGER turns_added AFTER INSERT ON turns BEGIN
    UPDATE sessions SET turn_count = turn_count + 1 WHERE user = new.user AND id = new.session_id;
END;
CREATE TRIGGER turns_removed AFTER DELETE ON turns BEGIN
    UPDATE sessions SET turn_count = turn_count - 1 WHERE user = old.user AND id = old.session_id;
    DELETE FROM turn_vectors WHERE turn_id = old.id;
END;
"""

TOKENIZER = "porter unicode61 remove_diacritics 2"

# Full-text index over turns that are no longer being written; it holds no copy of the text.
SEARCH_TABLES = """
CREATE VIRTUAL TABLE turns_text USING fts5(
    question, answer, content='turns', content_rowid='id', tokenize='%TOKENIZER%'
);
CREATE VIRTUAL TABLE turns_terms USING fts5vocab(turns_text, instance);
CREATE TRIGGER turns_text_added AFTER INSERT ON turns WHEN new.indexed BEGIN
    INSERT INTO turns_text(rowid, question, answer) VALUES (new.id, new.question, new.answer);
END;
CREATE TRIGGER turns_text_removed AFTER DELETE ON turns WHEN old.indexed BEGIN
    INSERT INTO turns_text(turns_text, rowid, question, answer) VALUES ('delete', old.id, old.question, old.answer);
END;
CREATE TRIGGER turns_text_out BEFORE UPDATE OF question, answer, indexed ON turns WHEN old.indexed BEGIN
    INSERT INTO turns_text(turns_text, rowid, question, answer) VALUES ('delete', old.id, old.question, old.answer);
END;
CREATE TRIGGER turns_text_in AFTER UPDATE OF question, answer, indexed ON turns WHEN new.indexed BEGIN
    INSERT INTO turns_text(rowid, question, answer) VALUES (new.id, new.question, new.answer);
END;
""".replace("%TOKENIZER%", TOKENIZER)


class Database:
    """One writing and one reading connection to the file, each used by one thread at a time.

    Reading does not wait for writing (SQLite's write-ahead log), neither here nor in other processes.
    """

    def __init__(self, path: Path, *, wal_pages: int = 1000) -> None:
        self.path = path
        self._lock, self._read_lock = threading.RLock(), threading.RLock()
        self._writer = connect(path, wal_pages=wal_pages)
        try:
            with self.write() as db:
                prepare(db)
            self._reader = connect(path, wal_pages=wal_pages)
            self._reader.execute("PRAGMA query_only = 1")
        except BaseException:
            self._writer.close()
            raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that writes; it is on the disk when the block ends, or never was."""
        with self._lock, mapped(self.path):
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite itself rolls back when the disk is full
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def outside(self) -> Iterator[sqlite3.Connection]:
        """Use the writing connection outside of a transaction, for pragmas."""
        with self._lock, mapped(self.path):
            yield self._writer

    def all(self, sql: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query, as of the last commit."""
        with self._read_lock, mapped(self.path):
            return self._reader.execute(sql, values).fetchall()

    def one(self, sql: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        with self._read_lock, mapped(self.path):
            row: sqlite3.Row | None = self._reader.execute(sql, values).fetchone()
            return row

    def close(self) -> None:
        """Close both connections; the last process to close folds the log into the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._writer.close()


def connect(path: Path, *, wal_pages: int = 1000) -> sqlite3.Connection:
    """Open the file so that a commit is durable (``synchronous=FULL`` syncs the log at every commit)."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -1024", "secure_delete = FAST",
                       f"wal_autocheckpoint = {wal_pages}", f"journal_size_limit = {wal_pages * 4096}"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables where there are none.

    Raises:
        HistoryError: A newer Thimble made them.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    if version > VERSION:
        raise HistoryError(
            f"The conversations were written by a newer Thimble (format {version}, this one reads {VERSION}); update."
        )
    for statement in statements(TABLES + SEARCH_TABLES):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def statements(script: str) -> Iterator[str]:
    """Split a script into statements: ``executescript`` would commit the open transaction."""
    part = ""
    for line in script.splitlines():
        part += line + "\n"
        if sqlite3.complete_statement(part):
            yield part
            part = ""


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into errors of ours; all of it passes here."""
    try:
        yield
    except sqlite3.Error as exc:
        raise mapped_error(exc, path) from exc


def mapped_error(exc: sqlite3.Error, path: Path) -> Exception:
    """Return the error of ours that says what *exc* means."""
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _little_space(path)):
        return StorageFullError(
            f"There is no room to store the conversation in {path.parent.name}/; free some disk space or delete old "
            "conversations. What was stored before is unharmed."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return HistoryError(
            f"{path.name} is damaged ({exc}). Close the other Thimbles that use it, then run "
            "`python -m assistant sessions check --repair`: it sets the file aside and recovers what can be read."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HistoryError(f"Another process has kept {path.name} locked for {BUSY_TIMEOUT_S:.0f} s; try again.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HistoryError(f"{path.name} can't be written ({exc}); check the rights of {path.parent}.")
    return HistoryError(f"The conversation store failed: {exc}.")


def _little_space(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_SPACE
    except OSError:
        return False
