"""Reading a prompt: many tokens at once, a layer after another over the whole prompt.

Layers come first and parts of the prompt second, so that a layer's weights are fetched once for a prompt and not once
for each part. Knows tensors only. The products come from ``ReadingProducts``: the stored weights as they are, or 8-bit
ones (``packed``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from .architecture import Architecture
from .cache import BLOCK, Cache

READ_CHUNK = 320
"""Tokens of a prompt that go through a layer at a time. The activations of more would be blocks that
``memory.set_up_process`` has malloc take from the system and give back each time."""
READ_UNIT = 32
"""A chunk is filled up to a multiple of this: oneDNN keeps half a megabyte of code for every shape it meets. A read
should begin at one."""
ATTEND_ROWS = 160
"""Tokens whose attention is computed at a time. Fewer waste less on slots that the causal mask hides; more make larger
products. 96 and 160 were as fast at 1,500 tokens, and 160 divides a chunk into as many equal parts."""


class ReadingProducts(Protocol):
    """The matrix products of a layer, for many rows: [rows, inputs] to [rows, outputs]; and the norms before them."""

    @property
    def input_norm(self) -> torch.Tensor:
        """Weight of the norm before ``qkv``."""
        ...

    @property
    def post_norm(self) -> torch.Tensor:
        """Weight of the norm before ``gate_up``."""
        ...

    def fetch(self, index: int) -> None:
        """Make the weights of layer *index* the ones that the products use."""
        ...

    def drop(self, index: int) -> None:
        """Give back what ``fetch`` took."""
        ...

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """Return queries, keys and values side by side."""
        ...

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """Project what attention mixed."""
        ...

    def gate_up(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gate and up; both may be written over."""
        ...

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Project back to the residual's width."""
        ...


class Norms(Protocol):
    """The norms of a layer."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


class Reader:
    """The reading half of a decoder.

    Args:
        arch: The model's switches.
        layers: Norms of each layer.
        products: Its matrix products; others may take their place between two prompts.
        cos: Rope's table, [positions, head_dim].
        sin: The same, with the sign of the rotation in it.
        act: The activation.
    """

    def __init__(
        self,
        arch: Architecture,
        layers: Sequence[Norms],
        products: ReadingProducts,
        *,
        cos: torch.Tensor,
        sin: torch.Tensor,
        act: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._arch = arch
        self._layers = layers
        self.products = products
        self._cos, self._sin = cos, sin
        self._act = act
        self._scale = arch.head_dim**-0.5

    def read(self, embedded: Iterable[tuple[torch.Tensor, int]], cache: Cache) -> Iterator[torch.Tensor | None]:
        """Read a prompt into *cache*; rest (giving None) after each part of each layer.

        Args:
            embedded: Parts of the prompt, [rows, hidden] each, and how many of its rows count: the others fill it up.
            cache: Its ``length`` grows when all is read.

        Gives:
            Last of all the hidden state of the last token, [1, hidden].
        """
        parts, counts = map(list, zip(*embedded, strict=True))
        starts, end = [], cache.length
        for rows in counts:
            starts.append(end)
            end += rows
        masks = [self._masks(start, part) for start, part in zip(starts, parts, strict=True)]
        # Scores of the widest block, and what the softmax makes of them: taken once, not for each block of each layer.
        size = self._arch.heads * ATTEND_ROWS * min(-(-(starts[-1] + parts[-1].shape[0]) // BLOCK) * BLOCK, cache.slots)
        room = torch.empty(2, size, dtype=parts[0].dtype, device=parts[0].device)
        for index in range(self._arch.layers):
            self.products.fetch(index)
            for at, start in enumerate(starts):
                parts[at] = self._layer(index, parts[at], start, cache, masks[at], room)
                yield None
            self.products.drop(index)
        cache.length = end
        yield parts[-1][counts[-1] - 1 : counts[-1]]

    def _layer(
        self, index: int, hidden: torch.Tensor, start: int, cache: Cache, masks: list[torch.Tensor], room: torch.Tensor
    ) -> torch.Tensor:
        arch, rows, layer, eps = self._arch, hidden.shape[0], self._layers[index], self._arch.eps
        norm = self.products.input_norm
        x = F.rms_norm(hidden, norm.shape, norm, eps)
        qkv = self.products.qkv(x).view(rows, arch.heads + 2 * arch.kv_heads, arch.head_dim)
        q, k, v = torch.split(qkv, [arch.heads, arch.kv_heads, arch.kv_heads], 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = F.rms_norm(q, layer.q_norm.shape, layer.q_norm, eps)
            k = F.rms_norm(k, layer.k_norm.shape, layer.k_norm, eps)
        cos, sin = self._cos[start : start + rows].unsqueeze(1), self._sin[start : start + rows].unsqueeze(1)
        half = arch.head_dim // 2
        q = torch.addcmul(q * cos, torch.roll(q, half, -1), sin)
        k = torch.addcmul(k * cos, torch.roll(k, half, -1), sin)
        cache.keys[index, :, :, start : start + rows] = k.permute(1, 2, 0)
        cache.values[index, :, start : start + rows] = v.transpose(0, 1)
        mixed = self._attend(q, start, cache.keys[index], cache.values[index], masks, room)
        hidden = hidden + self.products.out(mixed)
        norm = self.products.post_norm
        gate, up = self.products.gate_up(F.rms_norm(hidden, norm.shape, norm, eps))
        return hidden.add_(self.products.down(self._act(gate).mul_(up)))

    def _attend(
        self,
        q: torch.Tensor,
        start: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        masks: list[torch.Tensor],
        room: torch.Tensor,
    ) -> torch.Tensor:
        """Let the queries see what stands before them.

        Two plain products and a softmax over whole blocks of the cache: torch's fused kernel took 1.6 times as long for
        1,500 tokens in bfloat16 on AVX-512. The query heads of a group are rows over the same keys: none is repeated.

        Args:
            q: [rows, heads, head_dim].
            start: Tokens before them.
            keys: [kv_heads, head_dim, slots].
            values: [kv_heads, slots, head_dim].
            masks: Of ``_masks``.
            room: For scores and their softmax, [2, heads * ATTEND_ROWS * slots].

        Returns:
            [rows, heads * head_dim].
        """
        arch, rows = self._arch, q.shape[0]
        kv, groups, dim = arch.kv_heads, arch.groups, arch.head_dim
        mixed = torch.empty_like(q).view(rows, kv, groups, dim)
        for at, mask in zip(range(0, rows, ATTEND_ROWS), masks, strict=True):
            count, width = mask.shape
            used = (start + at) // BLOCK * BLOCK + width
            query = q[at : at + count].view(count, kv, groups, dim).permute(1, 2, 0, 3).reshape(kv, -1, dim)
            scores, weights = room[:, : kv * groups * count * used].view(2, kv, groups * count, used)
            torch.baddbmm(scores, query, keys[..., :used], beta=0, alpha=self._scale, out=scores)
            scores.view(kv, groups, count, used)[..., used - width :].add_(mask)
            torch.softmax(scores, -1, out=weights)
            part = torch.bmm(weights, values[:, :used])
            mixed[at : at + count] = part.view(kv, groups, count, dim).permute(2, 0, 1, 3)
        return mixed.view(rows, arch.heads * dim)

    def _masks(self, start: int, part: torch.Tensor) -> list[torch.Tensor]:
        """Return what each group of rows adds to its scores, [rows, slots from the block where they begin].

        Whole blocks only, for few shapes; slots before that block are seen by all of them.
        """
        masks = []
        for at in range(0, part.shape[0], ATTEND_ROWS):
            first = start + at
            last = min(first + ATTEND_ROWS, start + part.shape[0])
            base = first // BLOCK * BLOCK
            slots = torch.arange(base, -(-last // BLOCK) * BLOCK, device=part.device)
            hidden = slots > torch.arange(first, last, device=part.device).unsqueeze(1)
            masks.append(torch.zeros(hidden.shape, dtype=part.dtype, device=part.device).masked_fill_(
                hidden, float("-inf")))  # fmt: skip
        return masks


class StoredProducts:
    """Products with the stored weights, in the compute type.

    Args:
        layers: Norms of each layer.
        linear: Multiplies by the weight of a name, and adds its bias where there is one.
        drop: Takes pages of weights out of this process; None keeps them.
    """

    def __init__(
        self,
        layers: Sequence[Norms],
        linear: Callable[[torch.Tensor, str], torch.Tensor],
        drop: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._layers = layers
        self._linear = linear
        self._drop = drop
        self._index = 0
        self._attn = self._mlp = ""

    @property
    def input_norm(self) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._layers[self._index].input_norm

    @property
    def post_norm(self) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._layers[self._index].post_norm

    def fetch(self, index: int) -> None:
        """Name the layer: its pages come when they are touched."""
        self._index = index
        self._attn, self._mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."

    def drop(self, index: int) -> None:
        """Give the layer's pages back to the kernel."""
        if self._drop is not None:
            self._drop([f"{self._attn}{part}_proj.weight" for part in "qkvo"])
            self._drop([f"{self._mlp}{part}_proj.weight" for part in ("gate", "up", "down")])

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return torch.cat([self._linear(x, f"{self._attn}{part}_proj") for part in "qkv"], -1)

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._linear(x, self._attn + "o_proj")

    def gate_up(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``ReadingProducts``."""
        return self._linear(x, self._mlp + "gate_proj"), self._linear(x, self._mlp + "up_proj")

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._linear(x, self._mlp + "down_proj")


class PeakProducts:
    """Other products, looked at: the largest activation of each channel on the way into them, by product's name."""

    def __init__(self, products: ReadingProducts) -> None:
        self._products = products
        self._index = 0
        self.peaks: dict[str, torch.Tensor] = {}

    @property
    def input_norm(self) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._products.input_norm

    @property
    def post_norm(self) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._products.post_norm

    def fetch(self, index: int) -> None:
        """See ``ReadingProducts``."""
        self._index = index
        self._products.fetch(index)

    def drop(self, index: int) -> None:
        """See ``ReadingProducts``."""
        self._products.drop(index)

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._products.qkv(self._seen("qkv", x))

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._products.out(self._seen("out", x))

    def gate_up(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``ReadingProducts``."""
        return self._products.gate_up(self._seen("gate_up", x))

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """See ``ReadingProducts``."""
        return self._products.down(self._seen("down", x))

    def _seen(self, part: str, x: torch.Tensor) -> torch.Tensor:
        name, peaks = f"{self._index}.{part}", x.abs().amax(0).float()
        self.peaks[name] = torch.maximum(self.peaks[name], peaks) if name in self.peaks else peaks
        return x
