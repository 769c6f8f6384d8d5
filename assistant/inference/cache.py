"""Keys and values of a conversation, preallocated; knows nothing of how they are made or read."""

from __future__ import annotations

import math

import numpy as np
import torch

from .architecture import Architecture

BLOCK = 256
"""Slots of the cache are used in blocks of this many. Smaller ones would save some attention over masked slots, but
oneDNN keeps half a megabyte of code for every shape it meets: few shapes, little memory."""


class Cache:
    """Keys and values of one conversation, preallocated.

    Keys are [layers, kv_heads, head_dim, slots] (transposed: a step multiplies by them as they lie), values
    [layers, kv_heads, slots, head_dim]. Slots past ``length`` hold finite numbers: they are masked, and 0 * NaN is NaN.
    """

    def __init__(self, arch: Architecture, tokens: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.slots = -(-tokens // BLOCK) * BLOCK
        self.length = 0
        self.keys = zeros((arch.layers, arch.kv_heads, arch.head_dim, self.slots), dtype, device)
        self.values = zeros((arch.layers, arch.kv_heads, self.slots, arch.head_dim), dtype, device)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes

    def take(self, other: Cache, length: int) -> None:
        """Copy the first *length* tokens of another conversation's cache."""
        self.keys[..., :length] = other.keys[..., :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.length = length


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Make zeros that take no RAM until they are written: numpy asks for them by calloc, torch fills them."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flat = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8))
    return flat.view(dtype).view(shape)
