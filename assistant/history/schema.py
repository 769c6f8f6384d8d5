"""The tables, and connections to them. Knows how SQLite is asked, not what a conversation is."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from assistant.errors import HistoryError, StorageFullError

from .bounds import Bounds

T = TypeVar("T")

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
CREATE TABLE evictions(                  -- to be told to the user once
    user TEXT NOT NULL, session_id TEXT NOT NULL, title TEXT NOT NULL,
    dropped INTEGER NOT NULL, archived INTEGER NOT NULL,
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

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path, self.bounds = path, bounds
        self.damaged = False
        self._lock, self._read_lock = threading.RLock(), threading.RLock()
        self._log = path.with_name(path.name + "-wal")
        self._reserve = path.with_name("history.reserve")
        self._open()
        self.keep_reserve()

    def keep_reserve(self) -> None:
        """Take a little disk while there is plenty, for ending turns and deleting old ones when there is none."""
        try:
            if not self._reserve.exists() and shutil.disk_usage(self.path.parent).free > 3 * self.bounds.reserve_bytes:
                self._reserve.write_bytes(bytes(self.bounds.reserve_bytes))
        except OSError:
            self._reserve.unlink(missing_ok=True)

    def freed(self) -> None:
        """After a deletion: on a full disk give the log's space back, else take the reserve again."""
        if _little_space(self.path):
            with suppress(StorageFullError):  # then the log stays, and its space with it
                self.fold_log()
        self.keep_reserve()

    def _use_reserve(self, share: float) -> bool:
        left = self._reserve.stat().st_size if share and self._reserve.exists() else 0
        if left == 0:
            return False
        keep = left - max(1, int(share * self.bounds.reserve_bytes))
        if share >= 1 or keep <= self.bounds.reserve_bytes // 4:  # the last part is for what frees space
            if share < 1:
                return False
            self._reserve.unlink()
        else:
            with self._reserve.open("r+b") as file:
                file.truncate(keep)
        return True

    def fold_log(self) -> None:
        """Give the space of the log back, as far as nobody reads from it."""
        with self._lock, self._mapped():
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _open(self) -> None:
        with mapped(self.path):
            self._writer = connect(self.path, wal_pages=self.bounds.wal_pages)
            try:
                with self.write() as db:
                    prepare(db)
                self.bounds.limit(self._writer)
                self._reader = connect(self.path, wal_pages=self.bounds.wal_pages)
                self._reader.execute("PRAGMA query_only = 1")
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that writes; it is on the disk when the block ends, or never was."""
        with self._lock, self._mapped():
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite itself rolls back when the disk is full
                    db.execute("ROLLBACK")
                raise
            self.bounds.checkpoint(db, self._log)

    def transact(self, work: Callable[[sqlite3.Connection], T], *, reserve_share: float = 0.0) -> T:
        """Run *work* in a transaction; where the file reached its limit all the same, make room and run it again.

        Args:
            work: Is given the connection; may run more than once.
            reserve_share: How much of the reserve it may use on a full disk: nothing for what begins, a part for
                what ends something begun, all for what frees space.
        """
        for attempt in range(3):
            try:
                with self.write() as db:
                    return work(db)
            except StorageFullError as exc:
                if not isinstance(exc.__cause__, sqlite3.Error):
                    raise
                if _little_space(self.path):
                    if not self._use_reserve(reserve_share):
                        raise
                    continue
                if not self._relieve(gently=attempt == 0):
                    raise
        with self.write() as db:
            return work(db)

    def _relieve(self, *, gently: bool) -> bool:
        """Make room beyond what was planned; return whether anything left."""
        if gently:
            with suppress(StorageFullError), self.write() as db:
                return self.bounds.evict_some(db)
        with self.write() as db:
            return self.bounds.start_anew(db)

    def all(self, sql: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query, as of the last commit."""
        with self._read_lock, self._mapped():
            return self._reader.execute(sql, values).fetchall()

    def one(self, sql: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        with self._read_lock, self._mapped():
            row: sqlite3.Row | None = self._reader.execute(sql, values).fetchone()
            return row

    def close(self) -> None:
        """Close both connections; the last process to close folds the log into the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Close the file while the block puts another in its place, then open that one."""
        with self._lock, self._read_lock:
            self.close()
            try:
                yield
            finally:
                self._open()
                self.damaged = False

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Map errors, and remember that the file is damaged: it will not be sealed as sound."""
        try:
            with mapped(self.path):
                yield
        except HistoryError as exc:
            if isinstance(exc.__cause__, sqlite3.DatabaseError) and is_damage(exc.__cause__):
                self.damaged = True
            raise


def connect(path: Path, *, wal_pages: int = 1000) -> sqlite3.Connection:
    """Open the file so that a commit is durable (``synchronous=FULL`` syncs the log at every commit).

    What is deleted is overwritten (``secure_delete``): it can't be carved out of a damaged file later, nor by others.
    """
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.text_factory = _text
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -1024", "secure_delete = ON",
                       f"wal_autocheckpoint = {wal_pages}", f"journal_size_limit = {wal_pages * 4096}"):  # fmt: skip
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _text(data: bytes) -> str:
    """Decode what is stored; bytes that damage put there become U+FFFD, and the turn's checksum tells."""
    return data.decode("utf-8", "replace")


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables where there are none.

    Raises:
        HistoryError: A newer Thimble made them.
    """
    refuse_newer(db)
    if db.execute("PRAGMA user_version").fetchone()[0] == VERSION:
        return
    for statement in statements(TABLES + SEARCH_TABLES):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def refuse_newer(db: sqlite3.Connection) -> None:
    """Leave a store of a newer Thimble as it is.

    Raises:
        HistoryError: It is one.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise HistoryError(
            f"The conversations were written by a newer Thimble (format {version}, this one reads {VERSION}); update."
        )


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
            f"There is no room to store the conversation in {path.parent.name}/; free some disk space. "
            "What was stored before is unharmed."
        )
    if is_damage(exc):
        return HistoryError(
            f"{path.name} is damaged ({exc}). Close the other Thimbles that use it, then run "
            "`python -m assistant sessions check --repair`: it sets the file aside and recovers what can be read."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HistoryError(f"Another process has kept {path.name} locked for {BUSY_TIMEOUT_S:.0f} s; try again.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HistoryError(f"{path.name} can't be written ({exc}); check the rights of {path.parent}.")
    return HistoryError(f"The conversation store failed: {exc}.")


def is_damage(exc: sqlite3.Error) -> bool:
    """Return whether SQLite says that the file is not what it wrote."""
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _little_space(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_SPACE
    except OSError:
        return False
