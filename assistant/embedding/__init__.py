"""Text to vectors: one embedding model, loaded once, run on the worker thread.

It knows tokens, vectors and its own folder; it knows nothing about documents, chunks or stores.

::

    folder.py    what a sentence-transformers folder says about itself
    bert.py      the forward pass of BERT-like embedders, over memory-mapped weights
    early.py     the same in numpy, for a first question that need not wait for torch
    backends.py  these, or sentence-transformers for every other kind of model
    cache.py     vectors of texts seen before, on disk, bounded
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.embeddings import Embeddings

from assistant.errors import ModelBrokenError, ModelNotFoundError

from .folder import EmbedderFolder, read_folder

if TYPE_CHECKING:
    import numpy as np

    from assistant.models import ResolvedModel
    from assistant.worker import TorchWorker

    from .backends import Backend
    from .cache import EmbeddingCache

__all__ = ["BATCH_TEXTS", "Embedder", "load_embedder"]

BATCH_TEXTS = 8
"""Texts that go through the model at a time, at most."""

_TOKENS_A_STEP = 1024
"""Padded tokens a batch may have: bounds activations, and how long a generation waits for one batch."""


_SHORT = 96
"""Padded tokens of a batch that one core embeds about as fast as two."""

_FEW = 64
"""Texts that are embedded without torch where it is not loaded yet: a question and the sentences to quote."""


def load_embedder(resolved: ResolvedModel, worker: TorchWorker, *, dtype: Literal["auto", "bf16", "fp32"] = "auto",
                  cache_dir: Path | None = None, cache_bytes: int = 0, early: bool = False) -> Embedder:  # fmt: skip
    """Load an embedding model from its folder.

    Args:
        resolved: From ``models.resolve(..., kind="embedder")``.
        worker: Does the torch work.
        dtype: ``auto`` is bf16 where the CPU multiplies it and fp32 elsewhere.
        cache_dir: Where vectors of known texts are kept; None keeps none.
        cache_bytes: What they may take on disk; 0 keeps none.
        early: Load nothing yet, and embed a few texts without torch where torch is not loaded.

    Raises:
        ModelNotFoundError: It is not a folder.
        ModelBrokenError: The folder is not whole or can't be run.
    """
    if resolved.path is None:
        raise ModelNotFoundError(f"{resolved.name} is not an embedding model; name a folder, a hub id or `packaged`.")
    embedder = Embedder(
        read_folder(resolved.path),
        worker,
        name=resolved.name,
        dtype=dtype,
        cache_dir=cache_dir,
        cache_bytes=cache_bytes,
        early=early,
    )
    if embedder.dimension < 1:
        raise ModelBrokenError(f"{resolved.path} says its vectors have {embedder.dimension} numbers.")
    if not early:
        embedder.load()
    return embedder


class Embedder(Embeddings):
    """A LangChain ``Embeddings`` whose weights come and go.

    Methods may be called from any thread. After ``unload`` the next use loads again, by memory-mapping.

    Attributes:
        name: For people.
        fingerprint: Same for the same tokenizer and weights; vectors of another one can't be compared.
        max_tokens: Longest text it reads, special tokens included; the rest of a longer one is not seen.
    """

    def __init__(self, folder: EmbedderFolder, worker: TorchWorker, *, name: str,
                 dtype: Literal["auto", "bf16", "fp32"] = "auto", cache_dir: Path | None = None,
                 cache_bytes: int = 0, early: bool = False) -> None:  # fmt: skip
        self.name = name
        self.fingerprint = folder.fingerprint
        self.max_tokens = folder.max_tokens
        self._folder = folder
        self._worker = worker
        self._dtype = dtype
        self._cache_dir = cache_dir if cache_bytes > 0 else None
        self._cache_bytes = cache_bytes
        self._cache: EmbeddingCache | None = None
        self._backend: Backend | None = None
        self._early: Backend | None = None  # in numpy, until torch is there
        self._may_be_early = early
        self._lock = threading.RLock()

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self._folder.config["hidden_size"]) if self._folder.light else self._loaded().dimension

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._backend is not None

    @property
    def dtype(self) -> Literal["bf16", "fp32"]:
        """What it computes in."""
        if self._dtype == "auto":
            from .backends import cpu_has_bf16

            self._dtype = "bf16" if cpu_has_bf16() else "fp32"
        return self._dtype

    def load(self) -> None:
        """Map the weights now instead of at first use."""
        self._loaded()

    def unload(self) -> None:
        """Drop weights and tokenizer from memory; waits for a batch that is running."""
        with self._lock:
            backend, self._backend, self._early = self._backend, None, None
        if backend is not None and not self._worker.closed:
            self._worker.run(int)  # the batch that runs now may still hold them
        del backend

    def close(self) -> None:
        """Unload, and close the cache."""
        self.unload()
        with self._lock:
            cache, self._cache, self._cache_dir = self._cache, None, None
        if cache is not None:
            cache.close()

    def embed(self, texts: Sequence[str], *, batch_size: int = BATCH_TEXTS, remember: bool = False,
              beside: bool = False) -> np.ndarray:  # fmt: skip
        """Embed texts; batches hold texts of like length, and other work is served between two of them.

        Args:
            texts: Any number.
            batch_size: Most texts in a batch.
            remember: Look texts up in the disk cache first, and put new ones in.
            beside: Other work needs a core meanwhile: a short batch takes one and no more. Two threads that wait for
                each other while a third is busy take twice as long as one (7 ms against 3.4 for a question).

        Returns:
            Unit vectors in the order of *texts*, float32, (len(texts), dimension).
        """
        import numpy as np

        early = None if remember or len(texts) > _FEW else self._without_torch()
        backend = early or self._loaded()
        result = np.empty((len(texts), backend.dimension), dtype=np.float32)
        cache = self._open_cache() if remember else None
        known = cache.get(texts) if cache is not None else {}
        for position, vector in known.items():
            result[position] = vector
        missing = [position for position in range(len(texts)) if position not in known]
        if not missing:
            return result
        inputs, lengths = backend.lengths([texts[position] for position in missing])
        for batch in _batches(lengths, batch_size):
            part = [inputs[n] for n in batch]
            if early is not None:
                vectors = early.vectors(part)
            else:
                alone = beside and len(batch) * lengths[batch[0]] <= _SHORT
                vectors = self._worker.run(_on_one_core if alone else _call, backend.vectors, part)
            result[[missing[n] for n in batch]] = vectors
        if cache is not None:
            cache.put({texts[position]: result[position] for position in missing})
        return result

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts that are to be found (LangChain's interface); known ones come from the disk cache."""
        found: list[list[float]] = self.embed(texts, remember=True).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """Embed a question (LangChain's interface)."""
        found: list[float] = self.embed([text])[0].tolist()
        return found

    def count(self, text: str) -> int:
        """Count a text's tokens, special ones included."""
        backend = self._loaded()
        return len(backend.tokens(text).ids) + backend.specials()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the span of characters of each token, special ones left out."""
        spans: list[tuple[int, int]] = self._loaded().tokens(text).offsets
        return spans

    def _loaded(self) -> Backend:
        backend = self._backend
        if backend is not None:
            return backend
        with self._lock:
            if self._backend is None:
                self._backend = self._worker.run(self._load)
                self._early = None
            return self._backend

    def _without_torch(self) -> Backend | None:
        """Return what embeds a few texts now, where torch is not loaded and the model can do without."""
        if not self._may_be_early or self._backend is not None or self._worker.ready:
            return None
        with self._lock:
            if self._early is None:
                from .backends import load_early

                self._early = load_early(self._folder)
                self._may_be_early = self._early is not None
            return self._early

    def _load(self) -> Backend:
        from .backends import load_backend

        return load_backend(self._folder, bf16=self.dtype == "bf16")

    def _open_cache(self) -> EmbeddingCache | None:
        with self._lock:
            if self._cache is None and self._cache_dir is not None:
                from .cache import EmbeddingCache

                model = f"{self.fingerprint} {self.dtype}"
                self._cache = EmbeddingCache(self._cache_dir, max_bytes=self._cache_bytes, model=model)
            return self._cache


def _call(vectors: Callable[[list[Any]], np.ndarray], batch: list[Any]) -> np.ndarray:
    return vectors(batch)


def _on_one_core(vectors: Callable[[list[Any]], np.ndarray], batch: list[Any]) -> np.ndarray:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return vectors(batch)
    finally:
        torch.set_num_threads(threads)


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group positions by like length, longest first, so that little is padded and the peak comes at once."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        last = batches[-1] if batches else None
        if last is None or len(last) >= batch_size or (len(last) + 1) * lengths[last[0]] > _TOKENS_A_STEP:
            batches.append([position])
        else:
            last.append(position)
    return batches
