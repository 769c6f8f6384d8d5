"""Every architecture that is not ours, through transformers: its forward pass, our cache, loop, sampling and text.

Importing transformers and a model class costs seconds and some 200 MB; that is why Llama-like models do without.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer

from assistant.errors import ModelBrokenError

from . import quantized
from .reading import READ_CHUNK

_FEW = 16
"""Up to this many tokens at once the int8 product is the faster one."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in memory made once; what a step sees is a view of the filled part."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tokens = tokens
        self._length = 0
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens behind the others; return views of all of them."""
        if self._room is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._room = (self._like(key_states), self._like(value_states))
            self.is_initialized = True
        end = self._length + key_states.shape[-2]
        keys, values = self._room
        keys[..., self._length : end, :] = key_states
        values[..., self._length : end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        self._length = end
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return self._length

    def _like(self, states: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = states.shape
        return torch.empty(batch, heads, self._tokens, dim, dtype=states.dtype, device=states.device)


class HostedCache:
    """A conversation's state in a hosted model; all but plain attention (sliding windows, Mamba) is transformers'."""

    def __init__(self, config: Any, tokens: int) -> None:
        self.slots = tokens
        self.length = 0
        self.inner = DynamicCache(config=config)
        self.inner.layers = [
            PreallocatedLayer(tokens) if type(layer) is DynamicLayer else layer for layer in self.inner.layers
        ]


class HostedModel:
    """A causal language model that transformers runs; an ``Engine``.

    Args:
        folder: The model's.
        dtype: Compute type.
        device: Where to compute.
        quantize: Swap its linear layers for int8 ones.

    Raises:
        ModelBrokenError: transformers can't load it.
    """

    own_threads = False
    max_step = 1  # other architectures can't all forget a token, so nothing is drafted

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: str = "cpu", quantize: bool = False) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except Exception as exc:  # whatever transformers and safetensors raise
            raise ModelBrokenError(f"transformers can't load the model in {folder}: {exc}") from exc
        model.eval()
        self._model = model.to(device)
        self._device = device
        if quantize:
            swap_linears(self._model, folder, dtype)

    def new_cache(self, tokens: int) -> HostedCache:
        """Make room for a conversation of *tokens*."""
        return HostedCache(self._model.config, tokens)

    def read(self, tokens: Sequence[int], cache: HostedCache) -> Iterator[torch.Tensor | None]:
        """Read a prompt in parts, giving None after each but the last, then the last token's logits."""
        last = (len(tokens) - 1) // READ_CHUNK * READ_CHUNK
        for start in range(0, last, READ_CHUNK):
            self._forward(tokens[start : start + READ_CHUNK], cache)
            yield None
        yield self._forward(tokens[last:], cache)[-1]

    def step(self, tokens: Sequence[int], cache: HostedCache) -> torch.Tensor:
        """Run one token; return its logits as the only row."""
        return self._forward(tokens, cache)

    def step_room(self, cache: HostedCache) -> int:
        """Tokens that the next step may run."""
        return 1

    def _forward(self, tokens: Sequence[int], cache: HostedCache) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._device)
        output = self._model(input_ids=ids, past_key_values=cache.inner, use_cache=True, logits_to_keep=1)
        cache.length += len(tokens)
        logits: torch.Tensor = output.logits[0]
        return logits


class SmallLinear(torch.nn.Module):
    """A linear layer that reads with its own weights and steps with int8 ones."""

    def __init__(self, plain: torch.nn.Linear, product: quantized.Linear) -> None:
        super().__init__()
        self.weight = plain.weight
        self.bias = plain.bias
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply; the bias is part of the int8 product."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > _FEW:
            return F.linear(x, self.weight, self.bias)
        return self._product(rows).view(*x.shape[:-1], self.out_features)


class _ModelWeights:
    """The linear layers of a loaded model, as ``quantized.Weights``."""

    def __init__(self, linears: dict[str, torch.nn.Linear]) -> None:
        self._tensors = {f"{name}.weight": linear.weight.detach() for name, linear in linears.items()}
        self._tensors |= {f"{n}.bias": linear.bias.detach() for n, linear in linears.items() if linear.bias is not None}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Return a weight or a bias."""
        return self._tensors[name]

    def drop(self, names: Iterable[str]) -> None:
        """Do nothing: transformers holds the mapping."""


def swap_linears(model: torch.nn.Module, folder: Path, compute: torch.dtype) -> int:
    """Swap every linear layer of a model for one with int8 weights beside its own.

    Returns:
        How many were swapped.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    sources: quantized.Sources = [(name, (name,)) for name in linears]
    products, _ = quantized.open_or_make(folder, sources, _ModelWeights(linears), four_bits=False, compute=compute)
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SmallLinear(linear, products[name]))
    return len(linears)
