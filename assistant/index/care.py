"""Care of an index: hold its parts against each other, mend what differs, give disk space back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import short
from .catalog import Catalog, DatabaseError
from .shared import SharedVectors
from .vectors import VectorStore

if TYPE_CHECKING:
    import sqlite3

_WASTE = 0.25  # compact once this share of the vectors written was deleted: the copying is worth it then
_LEAST_WASTE = 100  # and so many: below, it is a few hundred kilobytes


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a check found.

    Attributes:
        missing_vectors: Ids of chunks whose vector, short or exact, is not there: lexical search alone finds them.
        stray_vectors: Names in Chroma that no chunk has.
        problems: What is wrong, in words for people; empty when all is well.
    """

    documents: int
    chunks: int
    vectors: int
    missing_vectors: tuple[str, ...] = ()
    stray_vectors: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(stored: Catalog, chroma: SharedVectors, *, thorough: bool) -> IndexReport:
    """Compare both stores, and SQLite with itself; *thorough* compares every id, else numbers alone."""
    problems: list[str] = []
    missing: list[str] = []
    stray: list[str] = []
    if thorough:
        verdict = str(stored.rows("PRAGMA quick_check(1)")[0][0])
        if verdict != "ok":
            problems.append(f"the SQLite file is damaged: {verdict}")
        problems.extend(_word_problems(stored))
    store = chroma.store(now=True)
    vectors = store.count()
    if thorough:
        known = stored.keys()
        present = {key for page in store.ids() for key in page}
        missing = [name for name, key in known.items() if key not in present]
        stray = sorted(present.difference(known.values()))
        if store.directions is not None:
            missing += stored.without_exact()
    pending = [str(row[0]) for row in stored.rows("SELECT id FROM chunks WHERE dense = 0")]
    missing = sorted({*missing, *pending})
    chunks = _count(stored, "chunks")
    if missing:
        problems.append(f"{len(missing)} chunks have no vector")
    if stray or (not thorough and vectors != chunks - len(missing)):
        problems.append(f"{len(stray) or abs(vectors - chunks)} vectors belong to no chunk")
    return IndexReport(_count(stored, "documents"), chunks, vectors, tuple(missing), tuple(stray), tuple(problems))


def mend(stored: Catalog, chroma: SharedVectors, report: IndexReport) -> None:
    """Rebuild the words and drop stray vectors, as far as *report* asks for it."""
    if any("word" in problem for problem in report.problems):
        with stored.transaction() as connection:
            connection.execute("INSERT INTO words(words) VALUES ('rebuild')")
    if report.stray_vectors:
        with chroma.write() as (store, _):
            store.delete(report.stray_vectors)


def worth_compacting(stored: Catalog) -> bool:
    """Tell whether enough of what was written has been removed."""
    written = int(stored.fact("written", "0"))
    waste = written - _count(stored, "chunks")
    return waste >= _LEAST_WASTE and waste >= _WASTE * written


def compact(stored: Catalog, chroma: SharedVectors, *, force: bool) -> int:
    """Give the disk space of removed documents back; returns the bytes.

    Chroma keeps deleted vectors in its files: the living ones are copied into a new folder, which then takes over.
    Full vectors of an embedder that has directions are made short on the way.
    """
    if not force and not worth_compacting(stored):
        return 0
    before = VectorStore.bytes_on_disk(chroma.folder)
    with chroma.write() as (store, connection):
        old = store.folder
        target = chroma.folder / f"vectors-{int(old.name.rpartition('-')[2]) + 1}"
        VectorStore.erase(target)  # what a killed compaction had copied
        directions = store.directions
        if directions is None:
            directions = short.directions(stored.fact("embedder"), int(stored.fact("dimension")))
        fresh = VectorStore(target, directions)
        try:
            if directions is store.directions:
                store.copy_to(fresh)
            else:
                _shorten(stored, connection, store, fresh)
        except Exception:
            fresh.close()
            VectorStore.erase(target)
            raise
        fresh.close()
        connection.execute("UPDATE facts SET value = ? WHERE name = 'vectors'", (fresh.folder.name,))
        connection.execute("UPDATE facts SET value = ? WHERE name = 'written'", (str(_count(stored, "chunks")),))
    chroma.release()
    VectorStore.erase(old)
    with stored.transaction() as connection:
        connection.execute("INSERT INTO words(words) VALUES ('optimize')")
    stored.vacuum()
    return max(0, before - VectorStore.bytes_on_disk(chroma.folder))


def _shorten(stored: Catalog, connection: sqlite3.Connection, store: VectorStore, fresh: VectorStore) -> None:
    """Copy full vectors into a store of short ones, which knows chunks by their numbers."""
    assert fresh.directions is not None
    numbers = {str(name): str(number) for name, number in stored.rows("SELECT id, number FROM chunks")}
    for ids, vectors, metadatas in store.pages():
        kept = [n for n, name in enumerate(ids) if name in numbers]
        named = [numbers[ids[n]] for n in kept]
        fresh.upsert(named, vectors[kept], [metadatas[n] for n in kept])
        stored.put_exact(connection, named, vectors[kept])
    connection.execute("DELETE FROM leaving")  # what was to leave was not copied
    stored.put_directions(connection, fresh.directions)


def _count(stored: Catalog, table: str) -> int:
    return int(str(stored.rows(f"SELECT count(*) FROM {table}")[0][0]))


def _word_problems(stored: Catalog) -> list[str]:
    try:
        with stored.transaction() as connection:
            connection.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    except DatabaseError as exc:
        return [f"the full-text index of words is out of step ({exc})"]
    return []
