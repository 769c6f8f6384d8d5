"""Chroma as a store of vectors: open, write, query, copy, close. Knows ids and vectors, never texts.

Where it has directions to project them to it holds short vectors; full ones go in and ask all the same.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from assistant.errors import IndexStoreError
from assistant.starting import undisturbed

if TYPE_CHECKING:
    import numpy as np

COLLECTION = "chunks"
_BATCH = 2_000  # rows a call when copying or listing; below Chroma's own limit of 5,461
_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"


def load_chroma() -> ModuleType:
    """Import Chroma; the exporter for its traces, and gRPC with it, only when somebody has Chroma export traces.

    Chroma imports both whether or not they are used: 11 MiB of RAM. What stands for the exporter meanwhile brings the
    real one when it is called, and is gone for everybody else in this process.
    """
    if "chromadb" in sys.modules:
        return importlib.import_module("chromadb")
    with undisturbed():
        spare = _EXPORTER not in sys.modules
        if spare:
            sys.modules[_EXPORTER] = _Exporter(_EXPORTER)
        try:
            return importlib.import_module("chromadb")
        finally:
            if spare:
                sys.modules.pop(_EXPORTER, None)


class _Exporter(ModuleType):
    """Stands for the exporter's module."""

    @staticmethod
    def OTLPSpanExporter(*args: Any, **options: Any) -> Any:
        return importlib.import_module(_EXPORTER).OTLPSpanExporter(*args, **options)


class VectorStore:
    """One Chroma collection in a folder, in its own process-wide client.

    Distances are cosine. A folder must not be open twice in a process: Chroma shares its system by path, and closing
    one handle would leave the other's memory behind.

    Args:
        folder: Where it is.
        directions: What vectors are projected to, (dimension, fewer); None keeps them whole.
    """

    def __init__(self, folder: Path, directions: np.ndarray | None = None) -> None:
        chromadb: Any = load_chroma()

        self.folder = folder
        self.directions = directions
        self._client: Any = chromadb.PersistentClient(
            str(folder), settings=chromadb.Settings(anonymized_telemetry=False, is_persistent=True, allow_reset=False)
        )
        self._rows = self._client.get_or_create_collection(
            COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def count(self) -> int:
        """Return how many vectors there are."""
        return int(self._rows.count())

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, metadatas: Sequence[Mapping[str, str]]) -> None:
        """Write vectors of shape (len(ids), dimension); those of known ids are replaced."""
        self._put(ids, self._held(vectors), metadatas)

    def _held(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.directions is None else vectors @ self.directions

    def _put(self, ids: Sequence[str], vectors: np.ndarray, metadatas: Sequence[Mapping[str, str]]) -> None:
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            self._rows.upsert(
                ids=list(ids[part]), embeddings=vectors[part], metadatas=[dict(item) for item in metadatas[part]]
            )

    def delete(self, ids: Sequence[str]) -> None:
        """Remove vectors; ids that are not there are no error."""
        for start in range(0, len(ids), _BATCH):
            self._rows.delete(ids=list(ids[start : start + _BATCH]))

    def query(self, vectors: np.ndarray, k: int, where: dict[str, Any] | None = None) -> list[list[tuple[str, float]]]:
        """Return for each of the vectors (n, dimension) the *k* nearest ids with their cosine, nearest first.

        The cosine is that of what is held: a guess where that is short.

        There may be fewer than *k*; counting first would take longer than the query.
        """
        found = self._rows.query(query_embeddings=self._held(vectors), n_results=k, where=where, include=["distances"])
        return [
            [(name, 1.0 - float(distance)) for name, distance in zip(names, distances, strict=True)]
            for names, distances in zip(found["ids"], found["distances"] or [], strict=True)
        ]

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return the vectors of *ids* as they are held, in that order."""
        import numpy as np

        found: dict[str, Any] = {}
        for start in range(0, len(ids), _BATCH):
            rows: Any = self._rows.get(ids=list(ids[start : start + _BATCH]), include=["embeddings"])
            found.update(zip(rows["ids"], rows["embeddings"], strict=True))
        if missing := [name for name in ids if name not in found]:
            raise IndexStoreError(f"{len(missing)} chunks have no vector; repair the index.")
        return np.array([found[name] for name in ids], np.float32)

    def ids(self) -> Iterator[list[str]]:
        """Yield all ids, a page at a time."""
        for start in range(0, self.count(), _BATCH):
            yield list(self._rows.get(limit=_BATCH, offset=start, include=[])["ids"])

    def pages(self) -> Iterator[tuple[list[str], np.ndarray, list[Mapping[str, str]]]]:
        """Yield all ids, vectors as they are held, and metadata, a page at a time."""
        for ids in self.ids():
            rows: Any = self._rows.get(ids=ids, include=["embeddings", "metadatas"])
            yield rows["ids"], rows["embeddings"], rows["metadatas"]

    def copy_to(self, other: VectorStore) -> None:
        """Write every vector into *other*, which holds them in the same way."""
        for ids, vectors, metadatas in self.pages():
            other._put(ids, vectors, metadatas)

    def close(self) -> None:
        """Close the client: its RAM goes back to the allocator."""
        self._client.close()

    @staticmethod
    def bytes_on_disk(folder: Path) -> int:
        """Return what a store's files take."""
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    @staticmethod
    def erase(folder: Path) -> None:
        """Delete a closed store."""
        shutil.rmtree(folder, ignore_errors=True)
