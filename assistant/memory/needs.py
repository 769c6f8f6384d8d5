"""What models and libraries take, before they are loaded: measured constants, and sums over ``config.json``.

The constants come from ``python -m bench.memory`` on Linux x86-64 with the pinned requirements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assistant.errors import ModelBrokenError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """RSS in bytes, and how much of it is clean file pages."""

    bytes: int
    file: int = 0


LIBRARIES: Mapping[str, Cost] = {
    "base": Cost(315 * MIB, 126 * MIB),  # interpreter, torch, Chroma, LangChain
    "browser": Cost(75 * MIB, 11 * MIB),
    "store": Cost(12 * MIB),
    "search": Cost(12 * MIB),
    "remote": Cost(50 * MIB, 5 * MIB),
}
EMBEDDER = Cost(56 * MIB, 43 * MIB)

TOKENIZER_BYTES = 30 * MIB
"""What a loaded model keeps beside its weights: a tokenizer of 49,152 tokens, norms, oneDNN's code for its products."""

KERNELS_BYTES = 30 * MIB
"""The same where our own kernels compute: their working space instead of oneDNN's code."""

TRANSFORMERS_BYTES = 110 * MIB
"""The transformers library, which runs the architectures that our own decoder does not."""

TURN_BYTES = 8 * MIB
"""What a turn takes beside KV cache and activations: oneDNN's scratch, strings, the answer."""


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """What one way to run a chat model takes.

    Attributes:
        dtype: ``int8``, ``bf16`` or ``fp32``.
        max_context: Tokens it was made for.
        mapped: Bytes of weights in mapped files.
        anonymous: Bytes of weights and tables in memory of its own.
        kv_per_token: Bytes of keys and values a token.
        fixed: Bytes a turn takes whatever its length.
        per_prompt_token: Bytes of activations a token of the prompt, while it is read.
        one_layer: Bytes of one layer's stored weights: reading maps them a layer at a time.
    """

    name: str
    dtype: str
    max_context: int
    mapped: int
    anonymous: int
    kv_per_token: int
    fixed: int
    per_prompt_token: int
    one_layer: int = 0

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the KV cache of *tokens*, which comes in blocks of 64."""
        return self.kv_per_token * (-(-tokens // 64) * 64)

    def activations(self, prompt_tokens: int) -> int:
        """Bytes that reading a prompt takes at its peak."""
        return self.fixed + self.per_prompt_token * prompt_tokens


def read_needs(
    folder: Path, name: str, dtypes: tuple[str, ...] = ("auto", "bf16", "fp32"), *, kernels: bool = False
) -> list[ModelNeeds]:
    """Read what the model in *folder* takes in each of *dtypes*.

    ``auto`` is int4 where the file of 4-bit weights is there already (it is made only where it loses nothing), else
    int8. A file of small weights that is there counts at its size. *kernels* says that small weights run on our own.

    Raises:
        ModelBrokenError: ``config.json`` is missing or is no causal language model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if "hidden_size" in config and "intermediate_size" in config:
            return [_at_size(folder, needs(config, name, dtype, kernels=kernels)) for dtype in dtypes]
        return [_needs_by_size(config, folder, name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelBrokenError(f"{path} can't be read as a chat model's ({type(exc).__name__}: {exc}).") from exc


def _at_size(folder: Path, estimate: ModelNeeds) -> ModelNeeds:
    """Replace the sum over small weights by the size of their file, and name the form that ``auto`` comes to."""
    dtype = estimate.dtype
    if dtype == "auto":
        dtype = "int4" if (folder / "model.int4.safetensors").is_file() else "int8"
    path = folder / f"model.{dtype}.safetensors"
    if not path.is_file():
        return replace(estimate, dtype=dtype)
    return replace(estimate, dtype=dtype, mapped=path.stat().st_size + estimate.one_layer)


def _needs_by_size(config: Mapping[str, Any], folder: Path, name: str) -> ModelNeeds:
    """Take the weights at their size on disk, for architectures that name their widths otherwise (GPT-2: n_embd)."""
    width = int(config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 1024)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 24)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    return ModelNeeds(
        name=name, dtype="bf16", max_context=context, mapped=weights, anonymous=TOKENIZER_BYTES + TRANSFORMERS_BYTES,
        kv_per_token=2 * layers * width * 2, fixed=TURN_BYTES, per_prompt_token=2 * 16 * width,
    )  # fmt: skip


def needs(config: Mapping[str, Any], name: str, dtype: str, *, kernels: bool = False) -> ModelNeeds:
    """Sum up a Llama-like model from its Hugging Face config.

    Weights are mapped in the type they are stored in, and copied where another is wanted. Running int8 maps the int8
    file and, while a prompt is read by torch, the stored weights one layer at a time.
    """
    kernels = kernels and dtype in ("int8", "auto")
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    intermediate, vocab = int(config["intermediate_size"]), int(config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings", False))
    stored = 4 if str(config.get("dtype") or config.get("torch_dtype")) == "float32" else 2

    embedding = vocab * hidden
    layer = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * intermediate
    weights = layers * layer + embedding * (1 if tied else 2)
    itemsize = 4 if dtype == "fp32" else 2
    mapped, anonymous = weights * stored, 0
    if dtype in ("int8", "auto"):
        mapped = layers * layer + embedding + (0 if kernels else stored * layer)
    elif itemsize != stored:
        anonymous = weights * itemsize
    context = int(config.get("max_position_embeddings") or 2048)
    rope_tables = 2 * min(context, 8192) * head_dim * (4 if kernels else itemsize)
    # Reading holds, a token: the residual twice, normed input, q, k, v and the mixture, gate, up and their product. The
    # kernels hold the residual, and the embedding it begins with.
    widths = 4 * hidden + 2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * intermediate
    return ModelNeeds(
        name=name, dtype=dtype, max_context=context, mapped=mapped,
        anonymous=anonymous + rope_tables + 4 * layers * hidden + (KERNELS_BYTES if kernels else TOKENIZER_BYTES),
        kv_per_token=2 * layers * kv_heads * (head_dim * itemsize + (4 if kernels else 0)),  # kernels: a scale each
        fixed=TURN_BYTES + 4 * vocab,
        per_prompt_token=(4 + stored) * hidden if kernels else widths * itemsize,
        one_layer=0 if kernels else stored * layer,
    )  # fmt: skip
