"""Embeddings of texts seen before, on disk, never more than so many bytes.

Losing it costs time only; so whatever goes wrong with it turns it off for the rest of the process, with a line in the
log.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from diskcache import Cache, Timeout

logger = logging.getLogger(__name__)


class EmbeddingCache:
    """A bounded map from text to vector, for one model at one precision.

    Args:
        folder: Where it lives; made when missing.
        max_bytes: What it may take on disk; the longest unused entries leave first.
        model: What the vectors come from; other models' entries don't match.
    """

    def __init__(self, folder: Path, *, max_bytes: int, model: str) -> None:
        self._model = model
        self._cache: Cache | None = None
        try:
            # 4 MiB of SQLite page cache instead of 32: this is RAM that the budget would have to carry.
            self._cache = Cache(
                str(folder), size_limit=max_bytes, eviction_policy="least-recently-stored", sqlite_cache_size=1024,
                sqlite_mmap_size=0, timeout=5,
            )  # fmt: skip
        except (OSError, sqlite3.Error, Timeout) as exc:
            self._give_up(exc)

    def get(self, texts: Sequence[str]) -> dict[int, np.ndarray]:
        """Return the vectors of the texts that are known, by position."""
        cache = self._cache
        if cache is None:
            return {}
        found = {}
        try:
            for position, text in enumerate(texts):
                data = cache.get(self._key(text))
                if isinstance(data, bytes):
                    found[position] = np.frombuffer(data, dtype="<f4")
        except (OSError, sqlite3.Error, Timeout) as exc:
            self._give_up(exc)
        return found

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Remember the vectors of these texts, in one transaction."""
        cache = self._cache
        if cache is None or not vectors:
            return
        try:
            with cache.transact():
                for text, vector in vectors.items():
                    cache.set(self._key(text), vector.astype("<f4").tobytes())
        except (OSError, sqlite3.Error, Timeout) as exc:
            self._give_up(exc)

    def close(self) -> None:
        """Close the files."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._model}\0{text}".encode("utf-8", "surrogatepass")).digest()

    def _give_up(self, exc: Exception) -> None:
        logger.warning("the embedding cache is off: %s", exc)
        self._cache = None
