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

_GRAIN = 16
"""Sequences are padded to a multiple of this."""

_BLOCK_ROWS = 256
"""Rows of a matrix product: these, and for the rest the halves of it down to the grain."""


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
        tokens = -(-max(lengths) // _GRAIN) * _GRAIN
        padded = torch.tensor([[*item, *[0] * (tokens - len(item))] for item in ids])
        mask = None
        if min(lengths) < tokens:
            mask = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]  # (batch, tokens)
        hidden = F.embedding(padded, self._words) + self._places[torch.arange(tokens).clamp(max=self._last_place)]
        hidden = self._normed(hidden, self._norm).view(-1, hidden.shape[-1])  # (batch * tokens, hidden)
        for layer in self._layers:
            hidden = self._encode(hidden, layer, mask, tokens)
        return F.normalize(self._pooled(hidden.view(len(ids), tokens, -1), mask, lengths), dim=-1)

    def _encode(self, hidden: Tensor, layer: _Layer, mask: Tensor | None, tokens: int) -> Tensor:
        """Run one layer: attention, then the two-layer network, each added to its input and normalised.

        All but attention goes row by row, so it is done in blocks of rows of a few fixed sizes: oneDNN keeps half a
        megabyte for every size of matrix it has met, and batches come in hundreds of sizes.
        """
        blocks = _blocks(hidden.shape[0])
        mixed = self._attention(hidden, layer, mask, tokens, blocks)
        result = torch.empty_like(hidden)
        for block in blocks:
            part = self._normed(hidden[block] + F.linear(mixed[block], *layer.mix), layer.mix_norm)
            wide = F.gelu(F.linear(part, *layer.up))
            result[block] = self._normed(part + F.linear(wide, *layer.down), layer.norm)
        return result

    def _attention(self, hidden: Tensor, layer: _Layer, mask: Tensor | None, tokens: int,
                   blocks: list[slice]) -> Tensor:  # fmt: skip
        rows, width = hidden.shape
        batch = rows // tokens

        def project(weight: tuple[Tensor, Tensor]) -> Tensor:
            part = torch.empty_like(hidden)
            for block in blocks:
                part[block] = F.linear(hidden[block], *weight)
            return part.view(batch, tokens, self._heads, width // self._heads).transpose(1, 2)

        attend = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            project(layer.query), project(layer.key), project(layer.value), attn_mask=attend
        )
        return mixed.transpose(1, 2).reshape(rows, width)

    def _pooled(self, hidden: Tensor, mask: Tensor | None, lengths: list[int]) -> Tensor:
        """Bring token vectors, (batch, tokens, hidden), to one each, float32."""
        if self._pooling == "cls":
            return hidden[:, 0].float()
        if mask is None:
            return hidden.mean(dim=1, dtype=torch.float32)
        summed = (hidden * mask[:, :, None]).sum(dim=1, dtype=torch.float32)
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
        self._last_place = self._places.shape[0] - 1
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


def _blocks(rows: int) -> list[slice]:
    """Cut rows, a multiple of the grain, into blocks whose sizes are the block size or its halves."""
    blocks, at, size = [], 0, _BLOCK_ROWS
    while at < rows:
        while size > rows - at:
            size //= 2
        blocks.append(slice(at, at + size))
        at += size
    return blocks
