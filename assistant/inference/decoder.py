"""The forward pass of Llama-like models: reading a prompt, and steps of a few tokens.

Knows tensors only: no tokenizer, no sampling. Two paths over the same model and the same cache:

- ``read``: many tokens (``reading``). A generator that rests after each part of each layer, so that stopping and other
  work wait some 10 ms and not for the whole prompt.
- ``step``: 1 to ``max_step`` tokens; int8 weights where there are any, keys kept transposed, views made once a step.

A step of several tokens gives bit for bit what single steps give: all products are computed a row at a time whatever
the number of rows (``rows_agree`` probes that), and attention always runs over whole blocks of ``BLOCK`` slots with the
unused ones masked, so that the shape of its sums depends on the position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .architecture import Architecture, rope_tables
from .cache import BLOCK, Cache
from .quantized import Weights
from .reading import READ_CHUNK, READ_UNIT, PeakProducts, Reader, ReadingProducts, StoredProducts

STEP_WIDTHS = (1, 4, 8)
"""Tokens of a step, the unused ones filled up: with 4 it takes 1.2 times as long as with one, with 8 1.8 times."""

Linear = Callable[[torch.Tensor], torch.Tensor]
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(slots=True)
class _Layer:
    """One layer as a step uses it; reading takes the norms from here."""

    input_norm: torch.Tensor
    input_twice: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    post_norm: torch.Tensor
    post_twice: torch.Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """A Llama-like model over mapped weights.

    Args:
        arch: Its switches.
        tensors: Its weights.
        dtype: Compute type, ``torch.bfloat16`` or ``torch.float32``.
        context_tokens: Longest conversation.
        quantized: Fused int8 weights for steps, by name; None steps with the plain ones.
        device: Where to compute.
        lean: Take a layer's pages out of this process when it has been read.
    """

    own_threads = False

    def __init__(
        self,
        arch: Architecture,
        tensors: Weights,
        *,
        dtype: torch.dtype,
        context_tokens: int,
        quantized: dict[str, Linear] | None = None,
        device: str = "cpu",
        lean: bool = False,
    ) -> None:
        self.arch = arch
        self.dtype = dtype
        self.device = device
        self._tensors = tensors
        self._lean = lean and quantized is not None
        self._kept: dict[str, torch.Tensor] = {}
        self._keep = quantized is None
        self._act = _ACTIVATIONS[arch.activation]
        self._cos, self._sin = (
            table.to(device) for table in rope_tables(arch, -(-context_tokens // BLOCK) * BLOCK, dtype)
        )
        self._scale = arch.head_dim**-0.5
        # The mask of a block: token i of it sees slots 0 to i; repeated for each query head of a group.
        block = torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype, device=device).triu(1)
        self._mask = block.repeat_interleave(arch.groups, 0)
        self._final_twice = self._norm("model.norm.weight").repeat(2)
        self._embedding = tensors.tensor("model.embed_tokens.weight")
        self._head_name = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
        self._embedding_scale = torch.tensor(arch.embedding_scale, dtype=dtype, device=device)
        if self._keep:
            self._embedding = self._weight("model.embed_tokens.weight")
        self._layers = [self._layer(index, quantized) for index in range(arch.layers)]
        products = StoredProducts(self._layers, self._linear, tensors.drop if self._lean else None)
        self._reader = Reader(arch, self._layers, products, cos=self._cos, sin=self._sin, act=self._act)
        self.head: Linear = quantized["head"] if quantized else self._plain((self._head_name,))
        self.max_step = STEP_WIDTHS[-1] if all(map(self._rows_agree, STEP_WIDTHS[1:])) else 1

    def new_cache(self, tokens: int) -> Cache:
        """Make room for a conversation of *tokens*."""
        return Cache(self.arch, tokens, self.dtype, self.device)

    def read(self, tokens: Sequence[int], cache: Cache) -> Iterator[torch.Tensor | None]:
        """Read *tokens* into *cache*; rest (giving None) after each part of each layer.

        Gives:
            Last of all the logits of the last token, of shape [vocab].
        """
        parts = list(self._parts(tokens, cache))
        if self._lean:  # the words of a prompt are all over the table: most of it was mapped for them
            self._tensors.drop(("model.embed_tokens.weight",))
        for hidden in self._reader.read(parts, cache):
            if hidden is None:
                yield None
            else:
                yield self.head(self._normed(hidden, self._final_twice))[0]

    def read_with(self, products: ReadingProducts) -> None:
        """Read prompts with other products than those of the stored weights from now on."""
        self._reader.products = products

    def norms(self) -> list[dict[str, torch.Tensor]]:
        """Return the norms of each layer by the product that follows."""
        return [{"qkv": layer.input_norm, "gate_up": layer.post_norm} for layer in self._layers]

    def peaks(self, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        """Read a text and return the largest activation of each channel, [inputs], by product."""
        products = self._reader.products
        watched = PeakProducts(products)
        self._reader.products = watched
        try:
            for _ in self.read(tokens, self.new_cache(len(tokens))):
                pass
        finally:
            self._reader.products = products
        return watched.peaks

    def step(self, tokens: Sequence[int], cache: Cache) -> torch.Tensor:
        """Run 1 to ``max_step`` tokens, no more than ``step_room`` says.

        Returns:
            Logits of shape [len(tokens), vocab].
        """
        count = len(tokens)
        rows = next(width for width in STEP_WIDTHS if width >= count)
        logits = self._run([*tokens, *[0] * (rows - count)], cache)
        cache.length += count
        return logits[:count]

    def step_room(self, cache: Cache) -> int:
        """Tokens that the next step may run: a whole width of them has to stay within the block."""
        left = BLOCK - cache.length % BLOCK
        return max(width for width in STEP_WIDTHS if width <= min(left, self.max_step))

    def _run(self, tokens: list[int], cache: Cache) -> torch.Tensor:
        arch, rows, start = self.arch, len(tokens), cache.length
        heads, kv, groups, dim = arch.heads, arch.kv_heads, arch.groups, arch.head_dim
        used = -(-(start + rows) // BLOCK) * BLOCK
        offset = start - (used - BLOCK)
        mask = self._mask[offset * groups : (offset + rows) * groups]
        cos, sin = self._cos[start : start + rows].unsqueeze(1), self._sin[start : start + rows].unsqueeze(1)
        new_keys = cache.keys[..., start : start + rows].unbind(0)
        new_values = cache.values[:, :, start : start + rows].unbind(0)
        all_keys, all_values = cache.keys[..., :used].unbind(0), cache.values[:, :, :used].unbind(0)
        scores = torch.empty(kv, rows * groups, used, dtype=self.dtype, device=self.device)
        last_block = scores[..., used - BLOCK :]
        hidden = self._embed(tokens)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(hidden, layer.input_twice)).view(rows, heads + 2 * kv, dim)
            qk = qkv[:, : heads + kv]
            if layer.q_norm is not None:
                qk = self._head_norms(qk, layer)
            qk = torch.addcmul(qk * cos, torch.roll(qk, dim // 2, -1), sin)
            new_keys[index].copy_(qk[:, heads:].permute(1, 2, 0))
            new_values[index].copy_(qkv[:, heads + kv :].transpose(0, 1))
            query = qk[:, :heads].reshape(rows, kv, groups, dim).transpose(0, 1).reshape(kv, rows * groups, dim)
            torch.baddbmm(scores, query, all_keys[index], beta=0, alpha=self._scale, out=scores)
            last_block.add_(mask)
            mixed = torch.bmm(torch.softmax(scores, -1), all_values[index])
            mixed = mixed.view(kv, rows, groups, dim).transpose(0, 1).reshape(rows, heads * dim)
            hidden = hidden.add_(layer.out(mixed))
            gate, up = layer.gate_up(self._normed(hidden, layer.post_twice)).chunk(2, -1)
            hidden = hidden.add_(layer.down(self._act(gate).mul_(up)))
        return self.head(self._normed(hidden, self._final_twice))

    def _rows_agree(self, width: int) -> bool:
        """Try whether a step of several tokens gives what single steps give, to the last bit, on this machine.

        That is what makes speculation invisible in the output. The kernels promise nothing, so they are asked.
        """
        source = torch.Generator().manual_seed(width)
        alone, together = self.new_cache(BLOCK), self.new_cache(BLOCK)
        alone.keys.copy_(torch.randn(alone.keys.shape, generator=source))
        alone.values.copy_(torch.randn(alone.values.shape, generator=source))
        tokens = torch.randint(0, self.arch.vocab, (width,), generator=source).tolist()
        alone.length = BLOCK - width - 3
        together.take(alone, BLOCK)
        together.length = alone.length
        rows = self._run(tokens, together)
        return all(torch.equal(self.step([token], alone)[0], row) for token, row in zip(tokens, rows, strict=True))

    def _parts(self, tokens: Sequence[int], cache: Cache) -> Iterator[tuple[torch.Tensor, int]]:
        """Embed a prompt in parts; what fills one up follows the last token, and is written over later."""
        for at in range(0, len(tokens), READ_CHUNK):
            part = list(tokens[at : at + READ_CHUNK])
            filled = min(-(-len(part) // READ_UNIT) * READ_UNIT, cache.slots - cache.length - at)
            yield self._embed(part + [0] * (filled - len(part))), len(part)

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        hidden = F.embedding(torch.tensor(tokens, device=self._embedding.device), self._embedding).to(self.dtype)
        return hidden * self._embedding_scale if self.arch.embedding_scale != 1.0 else hidden

    def _normed(self, x: torch.Tensor, twice: torch.Tensor) -> torch.Tensor:
        """Divide by the root of the mean square: a layer norm of x and -x side by side, whose mean is 0.

        For a few rows that takes half the time of ``rms_norm``, which runs eight kernels.

        Args:
            x: [rows, width].
            twice: The weight, two times, [2 * width].
        """
        both = F.layer_norm(torch.cat((x, -x), 1), twice.shape, twice, None, self.arch.eps)
        return both[:, : x.shape[1]].contiguous()

    def _head_norms(self, qk: torch.Tensor, layer: _Layer) -> torch.Tensor:
        assert layer.q_norm is not None
        assert layer.k_norm is not None
        heads, eps = self.arch.heads, self.arch.eps
        q = F.rms_norm(qk[:, :heads], layer.q_norm.shape, layer.q_norm, eps)
        return torch.cat((q, F.rms_norm(qk[:, heads:], layer.k_norm.shape, layer.k_norm, eps)), 1)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        bias = name + ".bias"
        return F.linear(x, self._weight(name + ".weight"), self._weight(bias) if bias in self._tensors else None)

    def _weight(self, name: str) -> torch.Tensor:
        """Return a tensor in the compute type: the mapped one, or a copy, kept when steps need it again and again."""
        found = self._kept.get(name)
        if found is None:
            found = self._tensors.tensor(name).to(device=self.device, dtype=self.dtype)
            if self._keep:
                self._kept[name] = found
        return found

    def _norm(self, name: str) -> torch.Tensor:
        weight = self._tensors.tensor(name).to(device=self.device, dtype=torch.float32) + self.arch.norm_offset
        return weight.to(self.dtype)

    def _plain(self, names: tuple[str, ...]) -> Linear:
        """Make a product with one or several weights of the same input, results side by side."""
        if len(names) == 1:
            (name,) = names
            if name.endswith(".weight"):
                return lambda x: F.linear(x, self._weight(name))
            return lambda x: self._linear(x, name)
        return lambda x: torch.cat([self._linear(x, name) for name in names], -1)

    def _layer(self, index: int, quantized: dict[str, Linear] | None) -> _Layer:
        base = f"model.layers.{index}."
        attn, mlp = base + "self_attn.", base + "mlp."
        parts = {
            "qkv": (attn + "q_proj", attn + "k_proj", attn + "v_proj"),
            "out": (attn + "o_proj",),
            "gate_up": (mlp + "gate_proj", mlp + "up_proj"),
            "down": (mlp + "down_proj",),
        }
        qk_norm = self.arch.qk_norm
        input_twice = self._norm(base + "input_layernorm.weight").repeat(2)
        post_twice = self._norm(base + "post_attention_layernorm.weight").repeat(2)
        return _Layer(
            input_norm=input_twice[: self.arch.hidden],
            input_twice=input_twice,
            post_norm=post_twice[: self.arch.hidden],
            post_twice=post_twice,
            q_norm=self._norm(attn + "q_norm.weight") if qk_norm else None,
            k_norm=self._norm(attn + "k_norm.weight") if qk_norm else None,
            **{
                part: quantized[f"{index}.{part}"] if quantized else self._plain(names) for part, names in parts.items()
            },
        )
