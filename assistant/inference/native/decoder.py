"""A Llama-like model on the kernels of ``kernels.c``: the same engine as ``decoder.Decoder``, for small weights.

Python holds the tensors and says what is to be done; a step is one call, reading a prompt one call for each layer of
each part. The GIL is free meanwhile. One thread at a time may use a decoder (the torch worker does).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from assistant.errors import InferenceError
from assistant.inference.architecture import Architecture, rope_tables
from assistant.inference.cache import zeros
from assistant.inference.quantized import GROUP, Weights

from .layout import Packed

MAX_STEP = 8
"""Tokens of a step at most; ``MAX_ROWS`` of the kernels."""
READ_ROWS = 1536
"""Tokens that a layer takes at a time, at most: between two such parts, some 60 ms, a stop is seen. With a quarter as
many the threads wait for each other a tenth of the time. ``MAX_READ`` of the kernels."""
TASK_ROWS = 48
"""Rows of a task of reading; ``BLOCK`` of the kernels."""
SLOTS = 64
"""A cache's slots come in multiples of this, in which prompts are read."""
_ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu": 2}
_MAX_DIM = 512


class _Product(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32), ("bits", ctypes.c_int32), ("unused", ctypes.c_int32),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", ctypes.c_void_p), ("post_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p), ("k_norm", ctypes.c_void_p),
        ("qkv", _Product), ("out", _Product), ("gate_up", _Product), ("down", _Product),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        ("hidden", ctypes.c_int32), ("heads", ctypes.c_int32), ("kv_heads", ctypes.c_int32), ("dim", ctypes.c_int32),
        ("intermediate", ctypes.c_int32), ("layers", ctypes.c_int32), ("activation", ctypes.c_int32),
        ("eps", ctypes.c_float), ("scale", ctypes.c_float),
        ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("final_norm", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)), ("head", _Product),
    )  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
        ("key_scale", ctypes.c_void_p), ("value_scale", ctypes.c_void_p), ("slots", ctypes.c_int64),
    )  # fmt: skip


def fits(arch: Architecture) -> bool:
    """Tell whether the kernels take a model of these widths."""
    widths = (arch.hidden, arch.intermediate, arch.head_dim)
    return all(width % GROUP == 0 for width in widths) and arch.head_dim <= _MAX_DIM


class KernelCache:
    """Keys and values of one conversation, 16-bit numbers with a scale each, in the kernels' order (see ``kernels.c``).

    Two neighbouring dimensions of a key, and two neighbouring tokens' values, make a 32-bit word: keys are [layers,
    kv_heads, slots / lanes, head_dim / 2, lanes], values [layers, kv_heads, slots / 2, head_dim]. Scales are [layers,
    kv_heads, slots]. How many lanes there are, 8 or 16, is the kernels' affair: here keys are [layers, kv_heads, slots
    / 64, 64 * head_dim / 2].
    """

    def __init__(self, arch: Architecture, tokens: int) -> None:
        self.slots = -(-tokens // SLOTS) * SLOTS
        self.length = 0
        heads = (arch.layers, arch.kv_heads)
        self.keys = zeros((*heads, self.slots // SLOTS, SLOTS * arch.head_dim // 2), torch.int32, "cpu")
        self.values = zeros((*heads, self.slots // 2, arch.head_dim), torch.int32, "cpu")
        self.key_scale = zeros((*heads, self.slots), torch.float32, "cpu")
        self.value_scale = zeros((*heads, self.slots), torch.float32, "cpu")

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(part.nbytes for part in (self.keys, self.values, self.key_scale, self.value_scale))

    def take(self, other: KernelCache, length: int) -> None:
        """Copy the first *length* tokens of another conversation's cache; what lies among them comes along."""
        self.keys[:, :, : -(-length // SLOTS)] = other.keys[:, :, : -(-length // SLOTS)]
        self.values[:, :, : -(-length // 2)] = other.values[:, :, : -(-length // 2)]
        self.key_scale[:, :, :length] = other.key_scale[:, :, :length]
        self.value_scale[:, :, :length] = other.value_scale[:, :, :length]
        self.length = length


class KernelDecoder:
    """A Llama-like model over packed weights.

    Args:
        library: The kernels.
        arch: The model's switches; ``fits`` says whether they do.
        tensors: Its weights, of which the norms and the embedding are used.
        products: Its packed products.
        context_tokens: Longest conversation.

    Raises:
        InferenceError: Memory is too short for what steps write on.
    """

    dtype = torch.float32  # of activations and logits
    max_step = MAX_STEP
    own_threads = True

    def __init__(
        self,
        library: ctypes.CDLL,
        arch: Architecture,
        tensors: Weights,
        products: dict[str, Packed],
        *,
        context_tokens: int,
    ) -> None:
        self.arch = arch
        self._library: Any = library
        self._tensors = tensors
        self._held: list[Any] = [products]  # whose addresses the kernels know
        self._embedding = tensors.tensor("model.embed_tokens.weight")
        self._scale = torch.tensor(arch.embedding_scale, dtype=self._embedding.dtype)
        slots = -(-context_tokens // SLOTS) * SLOTS
        cos, sin = rope_tables(arch, slots, torch.float32)
        layers = (_Layer * arch.layers)(*[self._layer(index, products) for index in range(arch.layers)])
        self._held.append(layers)
        self._model = _Model(
            arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.intermediate, arch.layers,
            _ACTIVATIONS[arch.activation], arch.eps, arch.head_dim**-0.5,
            self._address(cos), self._address(sin), self._norm("model.norm.weight"), layers,
            self._product(products["head"]),
        )  # fmt: skip
        self._pool = library.pool_new(torch.get_num_threads())
        self._scratch = self._pool and library.scratch_new(self._at(self._model), self._pool, slots, READ_ROWS)
        if not self._scratch:
            library.pool_free(self._pool)
            raise InferenceError("Memory is too short for the model's working space; set a larger memory budget.")
        weakref.finalize(self, _free, library, self._pool, self._scratch)
        self.scratch_bytes = int(library.scratch_bytes(self._scratch))
        count = MAX_STEP * arch.hidden
        room = (ctypes.c_float * count).from_address(library.scratch_hidden(self._scratch))
        self._rows = torch.frombuffer(room, dtype=torch.float32).view(MAX_STEP, arch.hidden)

    def new_cache(self, tokens: int) -> KernelCache:
        """Make room for a conversation of *tokens*."""
        return KernelCache(self.arch, tokens)

    def read(self, tokens: Sequence[int], cache: KernelCache) -> Iterator[torch.Tensor | None]:
        """Read *tokens* into *cache*; rest (giving None) after each part of each layer.

        Gives:
            Last of all the logits of the last token, of shape [vocab].
        """
        hidden = self._embedded(tokens)
        self._tensors.drop(("model.embed_tokens.weight",))  # a prompt's words are all over the table
        count, start = len(tokens), cache.length
        part = -(-count // -(-count // READ_ROWS))  # equal parts
        part = -(-part // TASK_ROWS) * TASK_ROWS
        place = self._place(cache)
        for index in range(self.arch.layers):
            last = index == self.arch.layers - 1
            for at in range(0, count, part):
                rows = min(part, count - at)
                needed = max(0, min(rows, count - 1 - at)) if last else 0
                self._library.read_layer(
                    self._at(self._model), self._pool, self._scratch, self._at(place), hidden[at].data_ptr(), index,
                    rows, start + at, needed,
                )  # fmt: skip
                yield None
        cache.length = start + count
        logits = torch.empty(self._model.head.outputs)
        self._library.head_row(
            self._at(self._model), self._pool, self._scratch, hidden[-1].data_ptr(), logits.data_ptr()
        )
        yield logits[: self.arch.vocab]

    def step(self, tokens: Sequence[int], cache: KernelCache) -> torch.Tensor:
        """Run 1 to ``max_step`` tokens, no more than ``step_room`` says.

        Returns:
            Logits of shape [len(tokens), vocab].
        """
        rows, place = len(tokens), self._place(cache)
        self._rows[:rows] = self._embedded(tokens)
        logits = torch.empty(rows, self._model.head.outputs)
        self._library.step_rows(
            self._at(self._model), self._pool, self._scratch, self._at(place), rows, cache.length,
            logits.data_ptr(),
        )  # fmt: skip
        cache.length += rows
        return logits[:, : self.arch.vocab]

    def step_room(self, cache: KernelCache) -> int:
        """Tokens that the next step may run."""
        return min(MAX_STEP, cache.slots - cache.length)

    def _embedded(self, tokens: Sequence[int]) -> torch.Tensor:
        found = F.embedding(torch.tensor(tokens), self._embedding)
        return (found * self._scale if self.arch.embedding_scale != 1.0 else found).float()

    def _place(self, cache: KernelCache) -> _Cache:
        scales = (cache.key_scale.data_ptr(), cache.value_scale.data_ptr())
        return _Cache(cache.keys.data_ptr(), cache.values.data_ptr(), *scales, cache.slots)

    def _norm(self, name: str) -> int:
        return self._address(self._tensors.tensor(name).float() + self.arch.norm_offset)

    def _layer(self, index: int, products: dict[str, Packed]) -> _Layer:
        base = f"model.layers.{index}."
        heads = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
        return _Layer(
            self._norm(base + "input_layernorm.weight"),
            self._norm(base + "post_attention_layernorm.weight"),
            *[self._norm(base + name) if self.arch.qk_norm else None for name in heads],
            *[self._product(products[f"{index}.{part}"]) for part in ("qkv", "out", "gate_up", "down")],
        )

    def _product(self, packed: Packed) -> _Product:
        scale, bias = (None if part is None else self._address(part) for part in (packed.scale, packed.bias))
        return _Product(packed.blocks.data_ptr(), scale, bias, packed.inputs, packed.outputs, packed.bits, 0)

    def _address(self, tensor: torch.Tensor) -> int:
        """Keep a tensor of floats and say where it lies."""
        tensor = tensor.contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    @staticmethod
    def _at(structure: ctypes.Structure) -> int:
        return ctypes.addressof(structure)


def _free(library: Any, pool: int, scratch: int) -> None:
    library.scratch_free(scratch)
    library.pool_free(pool)
