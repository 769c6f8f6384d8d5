"""Documents, chunks and full-text search in one SQLite file. The vectors that are searched are in Chroma.

Where those are short, the exact ones are here: on disk, read a few hundred at a time.

Full-text search is FTS5 with external content: the index refers to the chunks' rows and keeps no second copy of the
text. BM25 is FTS5's own (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.errors import IndexStoreError
from assistant.records import Chunk, DocumentInfo, Scope

from . import short

if TYPE_CHECKING:
    import numpy as np

DatabaseError = sqlite3.DatabaseError
VERSION = 4
_BUSY_S = 30.0
_VARIABLES = 500  # parameters of one statement; SQLite allows 999 in its oldest builds

KEY = "CASE WHEN EXISTS (SELECT 1 FROM directions) THEN chunks.number ELSE chunks.id END"
"""SQL for the name by which Chroma knows a chunk; see ``Catalog.keys``."""

_COUNTING = (
    "CREATE TRIGGER IF NOT EXISTS chunk_counted AFTER INSERT ON chunks BEGIN "
    "UPDATE documents SET chunks = chunks + 1 WHERE number = new.document; END;",
    "CREATE TRIGGER IF NOT EXISTS chunk_discounted AFTER DELETE ON chunks BEGIN "
    "UPDATE documents SET chunks = chunks - 1 WHERE number = old.document; END;",
)

_EXACT = (
    "CREATE TABLE IF NOT EXISTS exact(number INTEGER PRIMARY KEY REFERENCES chunks(number) ON DELETE CASCADE, "
    "vector BLOB NOT NULL);",  # of a chunk, as short.pack writes it
    "CREATE TABLE IF NOT EXISTS directions(matrix BLOB NOT NULL);",  # one row where Chroma's vectors are short
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents(
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, content_hash TEXT NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    added_at REAL NOT NULL, reason TEXT NOT NULL, owner TEXT NOT NULL, session_id TEXT, metadata TEXT NOT NULL,
    chunks INTEGER NOT NULL DEFAULT 0);                 -- how many it has, by _COUNTING
CREATE TABLE IF NOT EXISTS chunks(
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    document INTEGER NOT NULL REFERENCES documents(number) ON DELETE CASCADE,
    position INTEGER NOT NULL, text TEXT NOT NULL, "start" INTEGER NOT NULL, "end" INTEGER NOT NULL,
    page INTEGER, line INTEGER, "row" INTEGER, heading TEXT NOT NULL,
    dense INTEGER NOT NULL DEFAULT 0,                   -- 1 once its vector is in Chroma
    places TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS chunks_of_document ON chunks(document, position);
CREATE INDEX IF NOT EXISTS chunks_pending ON chunks(number) WHERE dense = 0;
CREATE TABLE IF NOT EXISTS leaving(id TEXT PRIMARY KEY) WITHOUT ROWID;   -- Chroma must still delete it, a KEY
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
    text, heading, content='chunks', content_rowid='number', tokenize="porter unicode61 remove_diacritics 2");
CREATE TRIGGER IF NOT EXISTS chunk_added AFTER INSERT ON chunks BEGIN
    INSERT INTO words(rowid, text, heading) VALUES (new.number, new.text, new.heading); END;
CREATE TRIGGER IF NOT EXISTS chunk_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO words(words, rowid, text, heading) VALUES ('delete', old.number, old.text, old.heading); END;
CREATE TRIGGER IF NOT EXISTS chunk_changed AFTER UPDATE OF text, heading ON chunks BEGIN
    INSERT INTO words(words, rowid, text, heading) VALUES ('delete', old.number, old.text, old.heading);
    INSERT INTO words(rowid, text, heading) VALUES (new.number, new.text, new.heading); END;
"""

_CHUNK = (
    'c.id, d.id, c.position, c.text, c."start", c."end", c.page, c.line, c."row", c.heading, c.places '
    "FROM chunks c JOIN documents d ON d.number = c.document"
)
_DOCUMENT = (
    "id, source, name, status, content_hash, size_bytes, mtime_ns, "
    "chunks, added_at, reason, owner, session_id, metadata FROM documents"
)


class Catalog:
    """The SQLite file. One connection writes, one searches words and one reads the rest, so any thread may call.

    Each is behind a lock. A search for words takes milliseconds, and nothing else need wait for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write = self._connect(8)
        self._words = self._connect(8)
        self._read = self._connect(2)
        self._writing = threading.RLock()
        self._searching = threading.RLock()
        self._reading = threading.RLock()
        version = self._write.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise IndexStoreError(
                f"The index in {path.parent} was written by a newer version (format {version}, this one knows "
                f"{VERSION}). Update, or set another store_dir."
            )
        if 0 < version < VERSION:
            self._upgrade()
        elif version < VERSION:
            self._write.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} {' '.join(_COUNTING + _EXACT)} PRAGMA user_version = {VERSION}; COMMIT;"
            )

    def _connect(self, cache_mib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON",
                       f"cache_size = -{cache_mib * 1024}", "journal_size_limit = 16777216"):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _upgrade(self) -> None:
        """Bring an index of an earlier format up to date; its chunks keep the places that they have."""
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
            if version == 1:
                connection.execute("ALTER TABLE chunks ADD COLUMN places TEXT NOT NULL DEFAULT ''")
            if version < 3:
                connection.execute("ALTER TABLE documents ADD COLUMN chunks INTEGER NOT NULL DEFAULT 0")
                connection.execute("UPDATE documents SET chunks = "
                                   "(SELECT count(*) FROM chunks WHERE document = documents.number)")  # fmt: skip
                for statement in _COUNTING:
                    connection.execute(statement)
            if version < VERSION:
                for statement in _EXACT:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")

    def vacuum(self) -> None:
        """Give free pages back to the file system."""
        with self._reading, self._searching, self._writing:
            self._write.execute("VACUUM")
            self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def shrink(self) -> None:
        """Free the pages that the connections keep, up to 18 MiB; they are read again when they are needed."""
        for lock, connection in (
            (self._reading, self._read), (self._searching, self._words), (self._writing, self._write)
        ):  # fmt: skip
            with lock:
                connection.execute("PRAGMA shrink_memory")

    def close(self) -> None:
        """Close the connections."""
        with self._reading, self._searching, self._writing:
            for connection in (self._read, self._words, self._write):
                connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of the whole store, other processes included, and commit at the end."""
        with self._writing:
            self._write.execute("BEGIN IMMEDIATE")
            try:
                yield self._write
            except BaseException:
                self._write.rollback()
                raise
            self._write.commit()

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Return the rows of one reading statement."""
        with self._reading:
            return self._read.execute(sql, values).fetchall()

    def _of(self, sql: str, values: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """Yield the rows of *sql*, which ends with ``IN``, for any number of values."""
        for start in range(0, len(values), _VARIABLES):
            part = values[start : start + _VARIABLES]
            yield from self.rows(f"{sql} ({marks(part)})", part)

    # Facts

    def fact(self, name: str, default: str = "") -> str:
        """Return a stored fact about the index."""
        found = self.rows("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0][0]) if found else default

    @staticmethod
    def raise_fact(connection: sqlite3.Connection, name: str, by: int) -> None:
        """Add to a fact that is a number."""
        connection.execute("UPDATE facts SET value = CAST(value AS INTEGER) + ? WHERE name = ?", (by, name))

    # Vectors

    def vectors(self) -> tuple[str, np.ndarray | None]:
        """Return the name of Chroma's folder and the directions of the vectors in it, None where they are full."""
        found = self.rows("SELECT value, matrix FROM facts LEFT JOIN directions WHERE name = 'vectors'")
        if not found or found[0][1] is None:
            return str(found[0][0]) if found else "", None
        return str(found[0][0]), short.unpack([_bytes(found[0][1])], int(self.fact("dimension")))

    @staticmethod
    def put_directions(connection: sqlite3.Connection, directions: np.ndarray) -> None:
        """Note that Chroma's vectors are short, and by what."""
        connection.execute("DELETE FROM directions")
        connection.execute("INSERT INTO directions VALUES (?)", (b"".join(short.pack(directions)),))
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('short', ?)", (str(directions.shape[1]),))

    def keys(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Return by what name Chroma knows chunks, all or those of *ids* that exist.

        That is their id, or, where vectors are short, their number: Chroma keeps it in RAM twice.
        """
        if ids is None:
            return {str(name): str(key) for name, key in self.rows(f"SELECT id, {KEY} FROM chunks")}
        return {str(name): str(key) for name, key in self._of(f"SELECT id, {KEY} FROM chunks WHERE id IN", ids)}

    @staticmethod
    def put_exact(connection: sqlite3.Connection, numbers: Sequence[str], vectors: np.ndarray) -> None:
        """Write the vectors of chunks; those they had are replaced."""
        connection.executemany(
            "INSERT OR REPLACE INTO exact VALUES (?, ?)", zip(numbers, short.pack(vectors), strict=True)
        )

    def exact(self, numbers: Sequence[str]) -> dict[str, bytes]:
        """Return by number the packed vectors of those of the chunks that have one."""
        sql = "SELECT number, vector FROM exact WHERE number IN"
        return {str(number): _bytes(vector) for number, vector in self._of(sql, numbers)}

    def ids(self, numbers: Sequence[str]) -> dict[str, str]:
        """Return by number the ids of those of the chunks that exist."""
        return {
            str(number): str(name)
            for number, name in self._of("SELECT number, id FROM chunks WHERE number IN", numbers)
        }

    def without_exact(self) -> list[str]:
        """Return the ids of chunks that have no vector here."""
        rows = self.rows("SELECT id FROM chunks WHERE number NOT IN (SELECT number FROM exact)")
        return [str(row[0]) for row in rows]

    # Documents

    def put_document(self, connection: sqlite3.Connection, info: DocumentInfo) -> None:
        """Write or replace the row of a document; its chunks stay."""
        connection.execute(
            "INSERT INTO documents(id, source, name, status, content_hash, size_bytes, mtime_ns, added_at, reason, "
            "owner, session_id, metadata) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(id) DO UPDATE SET "
            "source=excluded.source, name=excluded.name, status=excluded.status, content_hash=excluded.content_hash, "
            "size_bytes=excluded.size_bytes, mtime_ns=excluded.mtime_ns, added_at=excluded.added_at, "
            "reason=excluded.reason, owner=excluded.owner, session_id=excluded.session_id, metadata=excluded.metadata",
            (info.id, info.source, info.name, info.status, info.content_hash, info.size_bytes, info.mtime_ns,
             info.added_at, info.reason, info.owner, info.session_id, json.dumps(dict(info.metadata))),
        )  # fmt: skip

    def documents(self, where: str = "", values: Sequence[object] = ()) -> list[DocumentInfo]:
        """Return documents, newest first; *where* is SQL over the table's columns."""
        sql = f"SELECT {_DOCUMENT} {'WHERE ' + where if where else ''} ORDER BY added_at DESC, number DESC"
        return [_document(row) for row in self.rows(sql, values)]

    # Chunks

    def put_chunks(self, connection: sqlite3.Connection, document: int, chunks: Sequence[Chunk]) -> None:
        """Write chunk rows as pending: their vectors are not in Chroma yet.

        No number is given twice: Chroma may know chunks by them, and another process's client may be behind.
        """
        last = connection.execute(
            "SELECT max(ifnull((SELECT max(number) FROM chunks), 0), "
            "ifnull((SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'last'), 0))"
        ).fetchone()[0]
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('last', ?)", (str(last + len(chunks)),))
        connection.executemany(
            'INSERT INTO chunks(number, id, document, position, text, "start", "end", page, line, "row", heading, '
            "places, dense) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,0) ON CONFLICT(id) DO UPDATE SET "
            'document=excluded.document, position=excluded.position, text=excluded.text, "start"=excluded."start", '
            '"end"=excluded."end", page=excluded.page, line=excluded.line, "row"=excluded."row", '
            "heading=excluded.heading, places=excluded.places, dense=0",
            [(number, c.id, document, c.position, c.text, c.start, c.end, c.page, c.line, c.row, c.heading, _places(c))
             for number, c in enumerate(chunks, last + 1)],
        )  # fmt: skip

    def move_chunks(self, connection: sqlite3.Connection, chunks: Sequence[Chunk]) -> None:
        """Update the places of chunks; their text stays."""
        connection.executemany(
            'UPDATE chunks SET position=?, "start"=?, "end"=?, page=?, line=?, "row"=?, places=? WHERE id=?',
            [(c.position, c.start, c.end, c.page, c.line, c.row, _places(c), c.id) for c in chunks],
        )
        connection.executemany(
            "UPDATE chunks SET heading=? WHERE id=? AND heading<>?", [(c.heading, c.id, c.heading) for c in chunks]
        )

    def chunks(self, where: str, values: Sequence[object] = (), tail: str = "") -> list[Chunk]:
        """Return chunks; *where* is SQL over ``c`` (chunks) and ``d`` (documents)."""
        return [_chunk(row) for row in self.rows(f"SELECT {_CHUNK} WHERE {where} {tail}", values)]

    def chunks_by_id(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Return the chunks of these ids that exist."""
        found: dict[str, Chunk] = {}
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            found.update((chunk.id, chunk) for chunk in self.chunks(f"c.id IN ({marks(part)})", part))
        return found

    def match(self, expression: str, k: int, filters: str, values: Sequence[object]) -> list[tuple[str, float]]:
        """Return the ids of the *k* best chunks for an FTS5 expression, with their BM25 (higher is better).

        Args:
            expression: FTS5 query syntax.
            k: At most so many.
            filters: SQL over ``c`` and ``d`` that a chunk must meet, or nothing.
            values: Parameters of *filters*.
        """
        if filters:
            sql = (
                "SELECT c.id, -words.rank FROM words JOIN chunks c ON c.number = words.rowid "
                f"JOIN documents d ON d.number = c.document WHERE words MATCH ? AND {filters} ORDER BY rank LIMIT ?"
            )
        else:  # ranks first and joins only what is left: faster by the number of matches
            sql = (
                "SELECT c.id, -w.rank FROM (SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?) w "
                "JOIN chunks c ON c.number = w.rowid ORDER BY w.rank"
            )
        return [(str(name), float(score)) for name, score in self._found(sql, (expression, *values, k))]

    def frequency(self, term: str) -> int:
        """Return in how many chunks a word (in its stem's forms) occurs, counting to 2,000 at most."""
        sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT 2000)"
        return int(self._found(sql, (phrase(term),))[0][0])

    def _found(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._searching:
            return self._words.execute(sql, values).fetchall()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def phrase(term: str) -> str:
    """Write a word or phrase for an FTS5 expression so that nothing in it is an operator."""
    return '"' + term.replace('"', '""').replace("\0", " ") + '"'


def marks(values: Sequence[object]) -> str:
    """Return one ``?`` for each value."""
    return ",".join("?" * len(values))


def visible(scope: Scope) -> tuple[str, tuple[object, ...]]:
    """Return SQL over documents, and its values, for what *scope* may see."""
    return "owner IN ('', ?) AND (session_id IS NULL OR session_id = ?)", (scope.user, scope.session_id)


def _chunk(row: Sequence[Any]) -> Chunk:
    places = tuple(tuple(place) for place in json.loads(row[-1] or "[]"))
    return Chunk(*[*row[:-1], places])


def _places(chunk: Chunk) -> str:
    return json.dumps(chunk.places, separators=(",", ":")) if chunk.places else ""


def _document(row: Sequence[object]) -> DocumentInfo:
    names = DocumentInfo.__slots__  # in the order of _DOCUMENT
    values: dict[str, Any] = dict(zip(names, row, strict=True))
    return DocumentInfo(**{**values, "metadata": json.loads(values["metadata"])})
