"""Short vectors: what Chroma keeps in RAM of the long ones, and the exact cosine afterwards.

Most of what an embedder's vectors differ by lies along a part of their dimensions. Chroma holds their coordinates along
the first principal directions of text in general (no other projection of that length keeps more of the inner products,
Eckart & Young 1936) and gives several times as many candidates as are wanted. The exact vectors wait on disk, in
SQLite, and order the candidates: shortlist and rescore, as Jégou et al. (2011) do it with codes.

The directions belong to an embedder; ``python -m bench.project`` finds them. An embedder that has none keeps its full
vectors in Chroma. An index holds the directions it was made with, so that better ones can come without harm to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import IndexStoreError

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).parent / "directions"

_WIDER = 4
"""Candidates for each result that is wanted; docs/memory.md has what is lost with it."""

_LEAST = 100
"""Candidates at least: Chroma looks at so many for any question (its ``ef_search``), so they cost next to nothing."""


def directions(fingerprint: str, dimension: int) -> np.ndarray | None:
    """Return an embedder's principal directions, float32 (dimension, fewer), orthonormal; None where it has none.

    Raises:
        IndexStoreError: Their file is damaged.
    """
    import numpy as np

    path = FOLDER / f"{fingerprint}.npy"
    if not path.is_file():
        return None
    try:
        found = np.load(path, allow_pickle=False)
        if found.ndim != 2 or not found.shape[1] < found.shape[0] == dimension:
            raise ValueError(f"its shape is {found.shape}")
    except (ValueError, EOFError) as exc:
        raise IndexStoreError(f"{path} is damaged ({exc}). Install this program again.") from exc
    return np.asarray(found, np.float32)


def short_dimension(fingerprint: str, dimension: int) -> int:
    """Return how many numbers a short vector of an embedder has in a new index; 0 where it keeps full ones."""
    found = directions(fingerprint, dimension)
    return 0 if found is None else int(found.shape[1])


def pack(vectors: np.ndarray) -> list[bytes]:
    """Write each of the vectors (n, dimension) as the catalog keeps it: float16, little-endian."""
    return [row.tobytes() for row in vectors.astype("<f2")]


def unpack(packed: Sequence[bytes], rows: int = 0) -> np.ndarray:
    """Return what ``pack`` wrote as float32: (len(packed), dimension), or in *rows* rows."""
    import numpy as np

    return np.frombuffer(b"".join(packed), "<f2").reshape(rows or len(packed), -1).astype(np.float32)


def candidates(k: int) -> int:
    """Return how many candidates to ask for where *k* are wanted."""
    return max(_WIDER * k, _LEAST)


def rescored(found: Sequence[tuple[str, bytes]], vector: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Order candidates, names and packed vectors, by their cosine to *vector*, (dimension,); return the first *k*."""
    import numpy as np

    if not found:
        return []
    own = unpack([packed for _, packed in found])
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(vector)
    cosines = own @ vector / np.maximum(lengths, 1e-9)
    return [(found[n][0], float(cosines[n])) for n in np.argsort(-cosines, kind="stable")[:k]]
