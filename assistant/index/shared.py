"""Chroma as several processes share it: one writes at a time, and the others see that they are behind.

SQLite's write lock is the lock for both parts, and each write raises a number by which the other processes see that
their Chroma client is behind and open it again. Knows nothing of what is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import IndexStoreError

from .catalog import Catalog
from .vectors import VectorStore

if TYPE_CHECKING:
    import sqlite3

    import numpy as np

_REOPEN_S = 3.0  # a reader follows another process's running ingest at most this often
_FIRST = "vectors-1"


class SharedVectors:
    """The vectors of an index, opened when first needed, and again when another process wrote.

    Args:
        folder: Of the index; the vectors are in a folder in it, which the catalog names.
        stored: The catalog.
        lock: Held while the client is opened, closed or written.
    """

    def __init__(self, folder: Path, stored: Catalog, lock: threading.RLock) -> None:
        self.folder = folder
        self.closed = False
        self._catalog = stored
        self._lock = lock
        self._open: VectorStore | None = None
        self._seen = -1  # generation that the open client knows
        self._opened_at = 0.0

    @property
    def generation(self) -> int:
        """A number that rises with every write, by any process."""
        return int(self._catalog.fact("generation", "0"))

    def store(self, *, now: bool = False) -> VectorStore:
        """Return the open store; *now* says that not even the last seconds of another process may be missing."""
        if self.closed:
            raise IndexStoreError(f"The index in {self.folder} is closed.")
        generation = self.generation
        stale = self._open is not None and generation != self._seen
        if stale and (now or time.monotonic() - self._opened_at > _REOPEN_S):
            self.release()
        if self._open is None:
            name, directions = self._catalog.vectors()
            self._open = VectorStore(self.folder / (name or _FIRST), directions)
            self._seen, self._opened_at = generation, time.monotonic()
        return self._open

    @contextmanager
    def write(self) -> Iterator[tuple[VectorStore, sqlite3.Connection]]:
        """Hold SQLite's write lock while Chroma is written; the generation rises at the end."""
        with self._lock:
            try:
                with self._catalog.transaction() as connection:
                    yield self.store(now=True), connection
                    self._catalog.raise_fact(connection, "generation", 1)
            except BaseException:
                with suppress(Exception):
                    self.release()
                raise
            self._seen = self.generation

    def put(self, store: VectorStore, connection: sqlite3.Connection, ids: Sequence[str], vectors: np.ndarray,
            metadatas: Sequence[Mapping[str, str]]) -> None:  # fmt: skip
        """Write the vectors of chunks into *store*, and where it holds short ones the exact ones into the catalog.

        Vectors of chunks that are gone meanwhile are left out.
        """
        keys = self._catalog.keys(ids)
        kept = [n for n, name in enumerate(ids) if name in keys]
        named = [keys[ids[n]] for n in kept]
        store.upsert(named, vectors[kept], [metadatas[n] for n in kept])
        if store.directions is not None:
            self._catalog.put_exact(connection, named, vectors[kept])
        # A chunk that was to leave may be back: it stays.
        connection.executemany("DELETE FROM leaving WHERE id = ?", [(key,) for key in named])

    def sweep(self) -> None:
        """Erase folders of vectors that a compaction left when it was killed."""
        if self._strays():
            with self._catalog.transaction():  # else it might be one that is under way
                for folder in self._strays():
                    VectorStore.erase(folder)

    def _strays(self) -> list[Path]:
        current = self._catalog.fact("vectors", _FIRST)
        return [folder for folder in self.folder.glob("vectors-*") if folder.name != current]

    def release(self) -> None:
        """Close the client alone; it opens again when needed."""
        with self._lock:
            if self._open is not None:
                store, self._open = self._open, None
                store.close()

    def close(self) -> None:
        """Close for good."""
        with self._lock:
            self.closed = True
            self.release()
