"""The forward pass of ``bert.py`` in numpy: a first question does not wait for torch, which takes two seconds to load.

The same arithmetic in float32, over the same file, as slow as numpy is on the parts that are no matrix products. It
knows token ids, not text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assistant.errors import ModelBrokenError

_ROWS = 96
"""Rows that go through a layer's second half at a time: what they make stays in the CPU's cache."""


class EarlyBert:
    """A BERT encoder, its pooling, and unit length at the end.

    Args:
        weights: A safetensors file; it is mapped.
        config: The folder's ``config.json``.
        pooling: ``mean`` over all tokens, or the first token (``cls``).

    Raises:
        ModelBrokenError: A weight is missing, or is not in float32.
    """

    def __init__(self, weights: Path, config: Mapping[str, Any], *, pooling: Literal["mean", "cls"]) -> None:
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._eps = np.float32(config.get("layer_norm_eps", 1e-12))
        self._pooling = pooling
        self._tensors = _mapped(weights)
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        products = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                    "intermediate.dense", "output.dense")  # fmt: skip
        needed = {"embeddings.LayerNorm", *(f"encoder.layer.{n}.{name}" for n in range(self._layers)
                                            for name in (*norms, *products))}  # fmt: skip
        tables = {f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
        missing = (tables | {f"{name}.{part}" for name in needed for part in ("weight", "bias")}) - set(self._tensors)
        if missing:
            raise ModelBrokenError(f"{weights} can't be used as a BERT embedder: no {min(missing)} in float32.")
        self._words = self._tensors["embeddings.word_embeddings.weight"]
        self._places = self._tensors["embeddings.position_embeddings.weight"]
        self._kind = self._tensors["embeddings.token_type_embeddings.weight"][0]

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Embed token ids, each with its special tokens. Nothing is padded: the rows of all texts lie side by side.

        Args:
            ids: At least one sequence, none of them empty.

        Returns:
            Unit vectors, (len(ids), hidden), float32.
        """
        ends = np.cumsum([len(item) for item in ids])
        texts = [slice(end - len(item), end) for item, end in zip(ids, ends, strict=True)]
        places = np.concatenate([np.arange(len(item)) for item in ids]).clip(max=len(self._places) - 1)
        hidden = self._words[np.concatenate(ids)] + (self._places[places] + self._kind)  # (tokens of all, hidden)
        hidden = self._normed(hidden, "embeddings.LayerNorm")
        for n in range(self._layers):
            hidden = self._encode(hidden, f"encoder.layer.{n}.", texts)
        pooled = np.stack([hidden[text][0] if self._pooling == "cls" else hidden[text].mean(axis=0) for text in texts])
        pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.float32(1e-12))
        return pooled

    def _encode(self, hidden: np.ndarray, layer: str, texts: Sequence[slice]) -> np.ndarray:
        mixed = self._attention(hidden, layer + "attention.self.", texts)
        result = np.empty_like(hidden)
        for at in range(0, len(hidden), _ROWS):
            rows = slice(at, at + _ROWS)
            part = self._linear(mixed[rows], layer + "attention.output.dense")
            part = self._normed(np.add(part, hidden[rows], out=part), layer + "attention.output.LayerNorm")
            wide = _gelu(self._linear(part, layer + "intermediate.dense"))
            wide = self._linear(wide, layer + "output.dense")
            result[rows] = self._normed(np.add(wide, part, out=wide), layer + "output.LayerNorm")
        return result

    def _attention(self, hidden: np.ndarray, prefix: str, texts: Sequence[slice]) -> np.ndarray:
        shape = (len(hidden), self._heads, -1)
        query, key, value = (self._linear(hidden, prefix + name).reshape(shape) for name in ("query", "key", "value"))
        query *= np.float32(query.shape[2] ** -0.5)
        result = np.empty_like(query)
        for text in texts:
            scores = query[text].transpose(1, 0, 2) @ key[text].transpose(1, 2, 0)  # (heads, tokens, tokens)
            np.exp(scores - scores.max(axis=-1, keepdims=True), out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            result[text] = (scores @ value[text].transpose(1, 0, 2)).transpose(1, 0, 2)
        return result.reshape(hidden.shape)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        found: np.ndarray = x @ self._tensors[name + ".weight"].T
        found += self._tensors[name + ".bias"]
        return found

    def _normed(self, x: np.ndarray, name: str) -> np.ndarray:
        x -= x.mean(axis=-1, keepdims=True)
        x *= 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._eps)
        x *= self._tensors[name + ".weight"]
        x += self._tensors[name + ".bias"]
        return x


def _gelu(x: np.ndarray) -> np.ndarray:
    """Return x times the normal distribution up to x; its error function as Abramowitz and Stegun have it (7.1.26)."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = t * np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(factor)
        tail *= t
    tail *= np.exp(-z * z)  # 1 - erf(z)
    tail *= np.float32(0.5) * np.abs(x)
    result: np.ndarray = np.maximum(x, 0) - tail
    return result


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Return the float32 tensors of a safetensors file, which is whole, as views of it."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
    except (OSError, ValueError, struct.error) as exc:
        raise ModelBrokenError(f"{path} can't be read as a safetensors file ({exc}).") from exc
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "F32":
            tensors[name.removeprefix("bert.")] = np.asarray(data[begin:end]).view("<f4").reshape(entry["shape"])
    return tensors
