"""One write path into SQLite and Chroma, so that a crash between the two is seen and mended.

Chunks are first written to SQLite as pending, then their vectors to Chroma, then the mark is taken off; leaving chunks
first leave SQLite, which notes their ids, then Chroma. Where Chroma's vectors are short, the exact ones are written
with the mark and leave with their row. Whatever breaks off in between is on record: opening finishes what needs no
vectors, running the ingest again or ``repair`` does the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import IndexStoreError, StorageFullError, UnknownDocumentError
from assistant.records import Chunk, DocumentInfo, Scope

from . import care, short
from .care import IndexReport
from .catalog import KEY, Catalog, marks, visible
from .failures import mapped
from .shared import SharedVectors

if TYPE_CHECKING:
    import numpy as np

_BATCH = 256
_NUMBER = "SELECT number FROM documents WHERE id = ?"


class Index:
    """Documents, chunks, their words and their vectors. Any thread may call; close it to give its RAM back."""

    def __init__(self, folder: Path, stored: Catalog, dimension: int) -> None:
        self.folder = folder
        self.dimension = dimension
        self._catalog = stored
        self._lock = threading.RLock()
        self._chroma = SharedVectors(folder, stored, self._lock)

    @classmethod
    def open(cls, folder: Path, *, dimension: int, fingerprint: str) -> Index:
        """Open the index in *folder*, making it if there is none; Chroma itself opens when first needed.

        Args:
            folder: Where it is kept.
            dimension: Length of the embedder's vectors.
            fingerprint: Names the embedder: vectors of two embedders can't be compared.

        Raises:
            IndexStoreError: It can't be opened, or was made by another embedder.
            StorageFullError: The disk is full.
        """
        with mapped(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stored = Catalog(folder / "index.sqlite3")
            known = stored.fact("embedder")
            if not known:
                directions = short.directions(fingerprint, dimension)
                with stored.transaction() as connection:
                    if directions is not None and not connection.execute("SELECT 1 FROM facts LIMIT 1").fetchone():
                        stored.put_directions(connection, directions)
                    for name, value in (("embedder", fingerprint), ("dimension", dimension), ("vectors", "vectors-1"),
                                        ("generation", 0), ("written", 0)):  # fmt: skip
                        connection.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, str(value)))
                known = stored.fact("embedder")
            if (known, stored.fact("dimension")) != (fingerprint, str(dimension)):
                stored.close()
                raise IndexStoreError(
                    f"The index in {folder} was made by another embedder ({known}, not {fingerprint}), and their "
                    "vectors can't be compared. Set embedder back, or set another store_dir and ingest again."
                )
            index = cls(folder, stored, dimension)
            index._sweep()
        return index

    def close(self) -> None:
        """Close both stores; the RAM of the vectors goes back to the allocator."""
        with self._lock:
            if not self._chroma.closed:
                self._chroma.close()
                self._catalog.close()

    def __enter__(self) -> Index:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def release(self) -> None:
        """Close Chroma's client alone, giving back the RAM of the vectors; the next search opens it again."""
        self._chroma.release()

    def shrink(self) -> None:
        """Free what SQLite keeps of the catalog in RAM; the vectors stay."""
        with mapped(self.folder):
            self._catalog.shrink()

    # Writing

    def begin_document(self, info: DocumentInfo) -> None:
        """Write the row of a document whose chunks follow, or bring a known one up to date."""
        with mapped(self.folder), self._catalog.transaction() as connection:
            self._catalog.put_document(connection, info)

    def refuse_document(self, info: DocumentInfo) -> None:
        """Record a document that could not be read, with its reason; what chunks it had before leave."""
        self.begin_document(info)
        with mapped(self.folder):
            rows = self._catalog.rows(f"SELECT id FROM chunks WHERE document = ({_NUMBER})", (info.id,))
        self.drop_chunks(info.id, [str(row[0]) for row in rows])

    def finish_document(self, document_id: str, *, info: DocumentInfo) -> None:
        """Write what is now known of a document; rows of it that a crash left without a vector leave."""
        with mapped(self.folder), self._catalog.transaction() as connection:
            self._catalog.put_document(connection, info)
            connection.execute(
                "DELETE FROM chunks WHERE dense = 0 AND document = (SELECT number FROM documents WHERE id = ?)",
                (document_id,),
            )

    def add_chunks(self, document_id: str, chunks: Sequence[Chunk], vectors: np.ndarray) -> None:
        """Write chunks and their vectors, shape (len(chunks), dimension); known ids are replaced.

        Raises:
            UnknownDocumentError: ``begin_document`` was not called for it.
            StorageFullError: The disk is full; the batch counts as not written.
        """
        if vectors.shape != (len(chunks), self.dimension):
            raise ValueError(f"{len(chunks)} chunks need vectors of shape {(len(chunks), self.dimension)}")
        if not chunks:
            return
        with mapped(self.folder):
            found = self._catalog.rows("SELECT number, owner, session_id FROM documents WHERE id = ?", (document_id,))
            if not found:
                raise UnknownDocumentError(f"No document {document_id} is in the index.")
            number, owner, session_id = found[0]
            meta = {"document_id": document_id, "owner": str(owner), "session_id": str(session_id or "")}
            with self._catalog.transaction() as connection:
                self._catalog.put_chunks(connection, int(str(number)), chunks)
            ids = [chunk.id for chunk in chunks]
            with self._chroma.write() as (store, connection):
                self._chroma.put(store, connection, ids, vectors, [meta] * len(ids))
                connection.executemany("UPDATE chunks SET dense = 1 WHERE id = ?", [(name,) for name in ids])
                self._catalog.raise_fact(connection, "written", len(ids))

    def move_chunks(self, document_id: str, chunks: Sequence[Chunk]) -> None:
        """Give chunks that are there already their new places in the document."""
        with mapped(self.folder), self._catalog.transaction() as connection:
            self._catalog.move_chunks(connection, chunks)

    def drop_chunks(self, document_id: str, ids: Sequence[str]) -> None:
        """Remove some chunks of a document from both stores."""
        if not ids:
            return
        with mapped(self.folder):
            with self._catalog.transaction() as connection:
                rows = [(name,) for name in ids]
                connection.executemany(f"INSERT OR IGNORE INTO leaving SELECT {KEY} FROM chunks WHERE id = ?", rows)
                connection.executemany("DELETE FROM chunks WHERE id = ?", rows)
            self._sweep()

    def remove_document(self, document_id: str) -> None:
        """Remove a document with all its chunks; once enough were removed, their disk space is given back.

        Raises:
            UnknownDocumentError: There is no such document.
        """
        with mapped(self.folder):
            with self._catalog.transaction() as connection:
                connection.execute(
                    f"INSERT OR IGNORE INTO leaving SELECT {KEY} FROM chunks WHERE document = ({_NUMBER})",
                    (document_id,),
                )
                connection.execute(f"DELETE FROM chunks WHERE document = ({_NUMBER})", (document_id,))
                if not connection.execute("DELETE FROM documents WHERE id = ?", (document_id,)).rowcount:
                    raise UnknownDocumentError(f"No document {document_id} is in the index.")
            self._sweep()
            if care.worth_compacting(self._catalog):
                with suppress(StorageFullError):  # no room for the copy; the document is gone all the same
                    self.compact()

    # Reading

    def documents(self, scope: Scope | None = None) -> list[DocumentInfo]:
        """Return the documents that *scope* may see (None: all), newest first."""
        with mapped(self.folder):
            return self._catalog.documents(*(visible(scope) if scope else ("", ())))

    def all_documents(self) -> list[DocumentInfo]:
        """Return every document, whoever owns it, newest first."""
        return self.documents()

    def get_document(self, document_id: str) -> DocumentInfo | None:
        """Return a document by id, or None."""
        with mapped(self.folder):
            return next(iter(self._catalog.documents("id = ?", (document_id,))), None)

    def find_document(self, name_or_id: str, scope: Scope | None = None) -> DocumentInfo:
        """Return the document of that id, source or name (the newest of that name).

        Raises:
            UnknownDocumentError: There is none; names what there is when that is short.
        """
        known = self.documents(scope)
        for field in ("id", "source", "name"):
            for info in known:
                if getattr(info, field) == name_or_id:
                    return info
        names = ", ".join(sorted({info.name for info in known})[:10])
        raise UnknownDocumentError(
            f"No document {name_or_id!r} is in the index." + (f" It has: {names}." if names else "")
        )

    def chunk_ids(self, document_id: str) -> list[str]:
        """Return the ids of a document's chunks that are fully written, in order."""
        with mapped(self.folder):
            rows = self._catalog.rows(
                "SELECT c.id FROM chunks c JOIN documents d ON d.number = c.document WHERE d.id = ? AND c.dense = 1 "
                "ORDER BY c.position", (document_id,))  # fmt: skip
        return [str(row[0]) for row in rows]

    def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Return the chunks of *ids* in that order; ids that are not there are left out."""
        with mapped(self.folder):
            found = self._catalog.chunks_by_id(list(ids))
        return [found[name] for name in ids if name in found]

    def chunk_count(self) -> int:
        """Return how many chunks there are."""
        with mapped(self.folder):
            return int(str(self._catalog.rows("SELECT count(*) FROM chunks")[0][0]))

    def neighbours(self, chunk: Chunk, before: int, after: int) -> list[Chunk]:
        """Return the chunks of the same document from *before* places ahead to *after* behind, without *chunk*."""
        with mapped(self.folder):
            found = self._catalog.chunks(
                "d.id = ? AND c.position BETWEEN ? AND ?",
                (chunk.document_id, chunk.position - before, chunk.position + after), "ORDER BY c.position",
            )  # fmt: skip
        return [other for other in found if other.id != chunk.id]

    def text(self, document_id: str, start: int, end: int) -> str:
        """Return the extracted text of a document from *start* to *end*, as far as chunks hold it.

        Whitespace between chunks that none of them holds comes back as one line break.
        """
        with mapped(self.folder):
            found = self._catalog.chunks('d.id = ? AND c."start" < ? AND c."end" > ?', (document_id, end, start),
                                         'ORDER BY c."start"')  # fmt: skip
        parts: list[str] = []
        at = start
        for chunk in found:
            if chunk.end <= at:
                continue
            if chunk.start > at and parts:
                parts.append("\n")
            parts.append(chunk.text[max(at - chunk.start, 0) : end - chunk.start])
            at = min(chunk.end, end)
        return "".join(parts)

    def dense(self, vector: np.ndarray, k: int, scope: Scope, document_ids: Sequence[str] | None = None
              ) -> list[tuple[str, float]]:  # fmt: skip
        """Return the ids of the *k* chunks nearest to a vector of shape (dimension,), with their cosine."""
        return self.dense_many(vector[None], k, scope, document_ids)[0]

    def dense_many(self, vectors: np.ndarray, k: int, scope: Scope, document_ids: Sequence[str] | None = None
                   ) -> list[list[tuple[str, float]]]:  # fmt: skip
        """Return what ``dense`` does, for each row of *vectors* (n, dimension) in one call."""
        if document_ids is not None and not document_ids:
            return [[] for _ in vectors]
        with mapped(self.folder), self._lock:
            where = self._where(scope, document_ids)
            for attempt in (0, 1):
                try:
                    return self._nearest(vectors, k, where)
                except Exception as exc:
                    # A client that is behind another process's writes may trip over them: open it again, once.
                    if attempt or not type(exc).__module__.startswith("chromadb"):
                        raise
                    self._chroma.release()
        raise AssertionError("unreachable")

    def _nearest(self, vectors: np.ndarray, k: int, where: dict[str, object] | None) -> list[list[tuple[str, float]]]:
        store = self._chroma.store()
        if store.directions is None:
            return store.query(vectors, k, where)
        found = store.query(vectors, short.candidates(k), where)
        exact = self._catalog.exact(list({key for ranking in found for key, _ in ranking}))
        best = [
            short.rescored([(key, exact[key]) for key, _ in ranking if key in exact], vector, k)
            for ranking, vector in zip(found, vectors, strict=True)
        ]
        names = self._catalog.ids(list({key for ranking in best for key, _ in ranking}))
        return [[(names[key], cosine) for key, cosine in ranking if key in names] for ranking in best]

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return the vectors of chunks, shape (len(ids), dimension): exact, but for float16 in a short index.

        Raises:
            IndexStoreError: One of them has none.
        """
        with mapped(self.folder), self._lock:
            store = self._chroma.store()
            if store.directions is None:
                return store.vectors_of(ids)
            keys = self._catalog.keys(ids)
            exact = self._catalog.exact(list(keys.values()))
            if missing := [name for name in ids if keys.get(name) not in exact]:
                raise IndexStoreError(f"{len(missing)} chunks have no vector; repair the index.")
            return short.unpack([exact[keys[name]] for name in ids], len(ids))

    def lexical(self, match: str, k: int, scope: Scope, document_ids: Sequence[str] | None = None
                ) -> list[tuple[str, float]]:  # fmt: skip
        """Return the ids of the *k* best chunks for an FTS5 expression, with their BM25 (higher is better)."""
        if not match or (document_ids is not None and not document_ids):
            return []
        with mapped(self.folder):
            filters = ""
            values: tuple[object, ...] = ()
            if document_ids is not None or not self._all_visible(scope):
                filters, values = visible(scope)
            if document_ids is not None:
                filters += f" AND d.id IN ({marks(document_ids)})"
                values = (*values, *document_ids)
            return self._catalog.match(match, k, filters, values)

    def frequency(self, term: str) -> int:
        """Return in how many chunks a word occurs, in any form with the same stem, counting to 2,000 at most."""
        with mapped(self.folder):
            return self._catalog.frequency(term)

    @property
    def generation(self) -> int:
        """A number that rises with every write, by any process."""
        return self._chroma.generation

    # Care

    def check(self, *, thorough: bool = True) -> IndexReport:
        """Compare both stores, and SQLite with itself.

        Args:
            thorough: Compare every id and verify the full-text index; else only count.
        """
        with mapped(self.folder), self._lock:
            return care.check(self._catalog, self._chroma, thorough=thorough)

    def repair(self, embed: Callable[[Sequence[str]], np.ndarray]) -> IndexReport:
        """Mend what ``check`` finds: embed what lacks a vector, drop what belongs to nothing, rebuild the words.

        Args:
            embed: From texts to vectors of shape (n, dimension).
        """
        report = self.check()
        with mapped(self.folder), self._lock:
            care.mend(self._catalog, self._chroma, report)
        for start in range(0, len(report.missing_vectors), _BATCH):
            chunks = self.chunks(report.missing_vectors[start : start + _BATCH])
            for document_id in sorted({chunk.document_id for chunk in chunks}):
                own = [chunk for chunk in chunks if chunk.document_id == document_id]
                self.add_chunks(document_id, own, embed([chunk.text for chunk in own]))
        return self.check()

    def compact(self, *, force: bool = False) -> int:
        """Give the disk space of removed documents back, if there is enough of it to be worth the copying.

        Returns:
            Bytes given back.
        """
        with mapped(self.folder), self._lock:
            return care.compact(self._catalog, self._chroma, force=force)

    # Inside

    def _sweep(self) -> None:
        """Finish what a crash left: vectors of removed chunks, folders of a compaction."""
        if self._catalog.rows("SELECT 1 FROM leaving LIMIT 1"):
            with self._chroma.write() as (store, connection):
                store.delete([str(row[0]) for row in self._catalog.rows("SELECT id FROM leaving")])
                connection.execute("DELETE FROM leaving")
        self._chroma.sweep()

    def _all_visible(self, scope: Scope) -> bool:
        mask, values = visible(scope)
        return not self._catalog.rows(f"SELECT 1 FROM documents WHERE NOT ({mask}) LIMIT 1", values)

    def _where(self, scope: Scope, document_ids: Sequence[str] | None) -> dict[str, object] | None:
        """Return Chroma's filter, or None where everything may be seen: an unfiltered query is many times faster."""
        parts: list[dict[str, object]] = []
        if document_ids is not None:
            parts.append({"document_id": {"$in": list(document_ids)}})
        if not self._all_visible(scope):
            parts.append({"owner": {"$in": ["", scope.user]}})
            parts.append({"session_id": {"$in": ["", scope.session_id or ""]}})
        return {"$and": parts} if len(parts) > 1 else parts[0] if parts else None
