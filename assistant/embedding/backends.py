"""Ways to run an embedding model: our light BERT, in torch or before it in numpy, or sentence-transformers.

A backend holds tokenizer and weights from when it is made until it is dropped. ``vectors`` is called on the worker
thread only, but for that of numpy; counting and splitting may come from any thread. Torch is imported on the worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from assistant.errors import ModelBrokenError

from .folder import EmbedderFolder

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

BF16_COPY = "model.bf16.safetensors"
"""Beside a packaged model's fp32 weights: mapped as it is, where converting would take anonymous memory."""

_CHARACTERS_PER_TOKEN = 64
"""Text past this many characters for each token it may have is not even tokenised."""


_Forward: TypeAlias = "Callable[[Sequence[list[int]]], np.ndarray]"


class Backend(Protocol):
    """What ``Embedder`` needs of a loaded model."""

    dimension: int

    def tokens(self, text: str) -> Any:
        """Tokenise without special tokens; the result has ``ids`` and ``offsets``."""

    def specials(self) -> int:
        """Count the special tokens that a text gets."""

    def lengths(self, texts: Sequence[str]) -> tuple[list[Any], list[int]]:
        """Return each text in the form that ``vectors`` takes, and what its length is."""

    def vectors(self, batch: Sequence[Any]) -> np.ndarray:
        """Embed a batch: unit vectors, float32, (len(batch), dimension)."""


class LightBackend:
    """A forward pass over ids from the ``tokenizers`` package.

    Args:
        folder: The model's.
        load: Loads the forward pass, which brings sequences of ids to unit vectors, float32, (how many, dimension).
    """

    def __init__(self, folder: EmbedderFolder, load: Callable[[], _Forward]) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its thread pool brings arenas, and we have one core
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
        except Exception as exc:  # the package raises bare Exception
            raise ModelBrokenError(f"{folder.path / 'tokenizer.json'} can't be read ({exc}).") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = folder.max_tokens
        self.dimension = int(folder.config["hidden_size"])
        self._forward = load()

    def tokens(self, text: str) -> Any:
        """Tokenise without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def specials(self) -> int:
        """Count the special tokens that a text gets."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def lengths(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return each text's ids, cut to what the model reads, and how many they are."""
        most = self._max_tokens
        cut = most * _CHARACTERS_PER_TOKEN
        ids = []
        for text in texts:
            found = self._tokenizer.encode(text if len(text) <= cut else text.lstrip()[:cut]).ids
            ids.append(found if len(found) <= most else [*found[: most - 1], found[-1]])  # keeps the closing [SEP]
        return ids, [len(item) for item in ids]

    def vectors(self, batch: Sequence[list[int]]) -> np.ndarray:
        """Embed sequences of ids."""
        return self._forward(batch)


class SentenceTransformersBackend:
    """Whatever model sentence-transformers reads."""

    def __init__(self, folder: EmbedderFolder, *, bf16: bool) -> None:
        logger.info("%s is not a plain BERT embedder: loading sentence-transformers for it", folder.path.name)
        import torch
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
        from transformers.utils import logging as transformers_logging

        quiet: Any = transformers_logging
        quiet.disable_progress_bar()  # who loads says so; a second bar on stderr helps nobody
        try:
            self._model: Any = SentenceTransformer(
                str(folder.path), device="cpu", local_files_only=True, trust_remote_code=False,
                model_kwargs={"dtype": torch.bfloat16 if bf16 else torch.float32},
            )  # fmt: skip
        except Exception as exc:  # from four libraries; all mean the same to the user
            raise ModelBrokenError(f"sentence-transformers can't load {folder.path} ({exc}).") from exc
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        # A copy of the tokenizer: encode() sets truncation on the model's own, and then counts would stop there.
        self._tokenizer = Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, text: str) -> Any:
        """Tokenise without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def specials(self) -> int:
        """Count the special tokens that a text gets."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def lengths(self, texts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the texts, and how many characters each has."""
        return list(texts), [len(text) for text in texts]

    def vectors(self, batch: Sequence[str]) -> np.ndarray:
        """Embed texts."""
        found = self._model.encode(
            list(batch), batch_size=len(batch), normalize_embeddings=True, convert_to_tensor=True,
            show_progress_bar=False,
        )  # fmt: skip
        result: np.ndarray = found.float().numpy()
        return result


def load_backend(folder: EmbedderFolder, *, bf16: bool) -> Backend:
    """Load the model the light way where that works, else through sentence-transformers."""
    if not folder.light:
        return SentenceTransformersBackend(folder, bf16=bf16)

    def load() -> _Forward:
        import torch

        from .bert import BertForward

        assert folder.pooling != "other"
        copy = folder.path / BF16_COPY
        weights = copy if bf16 and copy.is_file() else folder.path / "model.safetensors"
        dtype = torch.bfloat16 if bf16 else torch.float32
        forward = BertForward(weights, folder.config, pooling=folder.pooling, dtype=dtype)
        return lambda batch: forward(batch).numpy()

    return LightBackend(folder, load)


def load_early(folder: EmbedderFolder) -> Backend | None:
    """Load a model that works without torch; None where there is no such way to run it."""
    if not folder.light:
        return None

    def load() -> _Forward:
        from .early import EarlyBert

        assert folder.pooling != "other"
        return EarlyBert(folder.path / "model.safetensors", folder.config, pooling=folder.pooling)

    try:
        return LightBackend(folder, load)
    except ModelBrokenError as exc:  # torch may read it, or says what is wrong with it
        logger.info("%s", exc)
        return None


def cpu_has_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 itself; emulating it would be slower than fp32."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper() not in ("ALL", "DEFAULT") and not _isa_allows_bf16():
        return False
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def _isa_allows_bf16() -> bool:
    """Read oneDNN's own limit, which tests use to play an older CPU."""
    isa = os.environ["ONEDNN_MAX_CPU_ISA"].upper()
    return "BF16" in isa or "AMX" in isa or "FP16" in isa or isa.startswith("AVX10")


def bf16_copy(path: Path) -> Path:
    """Return where a folder's bf16 copy would be."""
    return path / BF16_COPY
