"""The forward pass of BERT-like sentence embedders, in plain torch over memory-mapped weights.

The same arithmetic as ``transformers.BertModel`` with pooling and normalisation, without importing transformers and
sentence-transformers (5 seconds and 240 MB for what is 60 lines). It knows token ids, not text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from assistant.errors import ModelBrokenError


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one encoder layer; each is (out, in), each bias (out,)."""

    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor]
    mix: tuple[Tensor, Tensor]
    mix_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]


class BertForward:
    """A BERT encoder, its pooling, and unit length at the end.

    Args:
        weights: A safetensors file; it is mapped, and tensors that have *dtype* already stay mapped.
        config: The folder's ``config.json``.
        pooling: ``mean`` over all tokens, or the first token (``cls``).
        dtype: What is computed in.

    Raises:
        ModelBrokenError: A weight is missing or has another shape than the configuration says.
    """

    def __init__(self, weights: Path, config: Mapping[str, Any], *, pooling: Literal["mean", "cls"],
                 dtype: torch.dtype) -> None:  # fmt: skip
        self.dtype = dtype
        self._heads = int(config["num_attention_heads"])
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        self._pooling = pooling
        try:
            with safe_open(str(weights), framework="pt") as file:
                self._take(file, config)
        except Exception as exc:  # safetensors raises its own and KeyError-like ones
            raise ModelBrokenError(f"{weights} can't be used as a BERT embedder ({exc}).") from exc

    def __call__(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Embed token ids, each with its special tokens.

        Args:
            ids: At least one sequence; like lengths waste least.

        Returns:
            Unit vectors, (len(ids), hidden), float32.
        """
        lengths = [len(item) for item in ids]
        longest = max(lengths)
        padded = torch.tensor([[*item, *[0] * (longest - len(item))] for item in ids])
        mask = None
        if min(lengths) < longest:
            mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]  # (batch, tokens)
        hidden = F.embedding(padded, self._words) + self._places[:longest]
        hidden = self._normed(hidden, self._norm)
        attend = None if mask is None else mask[:, None, None, :]
        for layer in self._layers:
            hidden = self._encode(hidden, layer, attend)
        return F.normalize(self._pooled(hidden, mask, lengths), dim=-1)

    def _encode(self, hidden: Tensor, layer: _Layer, attend: Tensor | None) -> Tensor:
        """Run one layer: attention, then the two-layer network, each added to its input and normalised."""
        batch, tokens, width = hidden.shape
        shape = (batch, tokens, self._heads, width // self._heads)
        query, key, value = (
            F.linear(hidden, *part).view(shape).transpose(1, 2) for part in (layer.query, layer.key, layer.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attend)
        mixed = F.linear(mixed.transpose(1, 2).reshape(batch, tokens, width), *layer.mix)
        hidden = self._normed(hidden + mixed, layer.mix_norm)
        return self._normed(hidden + F.linear(F.gelu(F.linear(hidden, *layer.up)), *layer.down), layer.norm)

    def _pooled(self, hidden: Tensor, mask: Tensor | None, lengths: list[int]) -> Tensor:
        if self._pooling == "cls":
            return hidden[:, 0].float()
        if mask is None:
            return hidden.mean(dim=1, dtype=torch.float32)
        summed = torch.bmm(mask[:, None, :].to(hidden.dtype), hidden)[:, 0].float()
        return summed / torch.tensor(lengths, dtype=torch.float32)[:, None]

    def _normed(self, hidden: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], *weight, self._eps)

    def _take(self, file: Any, config: Mapping[str, Any]) -> None:
        names = set(file.keys())
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in names else ""

        def get(name: str) -> Tensor:
            tensor: Tensor = file.get_tensor(prefix + name)
            return tensor if tensor.dtype == self.dtype else tensor.to(self.dtype)

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return get(f"{name}.weight"), get(f"{name}.bias")

        self._words = get("embeddings.word_embeddings.weight")
        self._places = get("embeddings.position_embeddings.weight") + get("embeddings.token_type_embeddings.weight")[0]
        self._norm = pair("embeddings.LayerNorm")
        self._layers = [
            _Layer(
                query=pair(f"encoder.layer.{n}.attention.self.query"),
                key=pair(f"encoder.layer.{n}.attention.self.key"),
                value=pair(f"encoder.layer.{n}.attention.self.value"),
                mix=pair(f"encoder.layer.{n}.attention.output.dense"),
                mix_norm=pair(f"encoder.layer.{n}.attention.output.LayerNorm"),
                up=pair(f"encoder.layer.{n}.intermediate.dense"),
                down=pair(f"encoder.layer.{n}.output.dense"),
                norm=pair(f"encoder.layer.{n}.output.LayerNorm"),
            )
            for n in range(int(config["num_hidden_layers"]))
        ]
