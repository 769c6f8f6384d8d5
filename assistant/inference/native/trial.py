"""Kernels against torch, on a small random model: reading, steps of several widths, weights of both kinds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace

import torch

from assistant.inference.architecture import Architecture
from assistant.inference.decoder import Decoder
from assistant.inference.quantized import llama_sources, to_int8

from . import layout
from .decoder import KernelDecoder

_ARCH = Architecture(
    hidden=128, layers=2, heads=6, kv_heads=2, head_dim=64, intermediate=192, vocab=245, eps=1e-5, activation="silu",
    tied=False, max_positions=512, rope={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip
_TOKENS = 330
_WIDTHS = (1, 3, 4, 8)


class RandomWeights:
    """Weights of a model that exists in RAM only; each group of inputs is on a grid of 4 bits."""

    def __init__(self, arch: Architecture, seed: int = 0) -> None:
        self._source = torch.Generator().manual_seed(seed)
        hidden, inner, attn = arch.hidden, arch.intermediate, arch.heads * arch.head_dim
        shapes = {"model.embed_tokens": (arch.vocab, hidden), "lm_head": (arch.vocab, hidden)}
        for index in range(arch.layers):
            base = f"model.layers.{index}."
            for name, outputs, inputs in (
                ("self_attn.q_proj", attn, hidden), ("self_attn.k_proj", arch.kv_heads * arch.head_dim, hidden),
                ("self_attn.v_proj", arch.kv_heads * arch.head_dim, hidden), ("self_attn.o_proj", hidden, attn),
                ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden), ("mlp.down_proj", hidden, inner),
            ):  # fmt: skip
                shapes[base + name] = (outputs, inputs)
        self._found = {f"{name}.weight": self._on_grid(*shape) for name, shape in shapes.items()}
        norms = [f"model.layers.{index}.{place}" for index in range(arch.layers)
                 for place in ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
        for name in [*norms, "model.norm"]:
            self._found[f"{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor."""
        return self._found[name]

    def drop(self, names: Iterable[str]) -> None:
        """Nothing: they are mapped from no file."""

    def in_8_bits(self) -> RandomWeights:
        """Return the same weights as 8 bits an output channel leave them."""
        other = copy(self)
        other._found = dict(self._found)
        for name, weight in self._found.items():
            if name.endswith("proj.weight") or name.startswith("lm_head"):
                ints, scale = to_int8(weight.clone())
                other._found[name] = ints.float() * scale.float().unsqueeze(1)
        return other

    def _on_grid(self, outputs: int, inputs: int) -> torch.Tensor:
        ints = torch.randint(0, 16, (outputs, inputs // 32, 32), generator=self._source)
        ints[..., 0], ints[..., 1] = 0, 15
        scale = 2.0 ** torch.randint(-7, -5, (outputs, inputs // 32, 1), generator=self._source)
        return ((ints - 7.5) * scale).view(outputs, inputs)


@torch.inference_mode()
def differences(library: ctypes.CDLL) -> Iterator[float]:
    """Give the differences of logits, relative to their spread: of a prompt, and of steps that follow it."""
    tokens = torch.randint(0, _ARCH.vocab, (_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    for activation in ("silu", "gelu_pytorch_tanh"):
        arch = replace(_ARCH, activation=activation)
        for bits in (4, 8):
            weights = RandomWeights(arch)
            stored = weights if bits == 4 else weights.in_8_bits()
            exact = Decoder(arch, stored, dtype=torch.float32, context_tokens=512)
            packed = layout.in_memory(llama_sources(arch), weights, bits)
            ours = KernelDecoder(library, arch, weights, packed, context_tokens=512)
            mine, theirs = ours.new_cache(400), exact.new_cache(400)
            yield _off(_last(ours.read(tokens, mine)), _last(exact.read(tokens, theirs)))
            for width in _WIDTHS:
                mine.length = theirs.length = _TOKENS
                expected = torch.cat([exact.step([token], theirs) for token in tokens[:width]])
                yield _off(ours.step(tokens[:width], mine), expected)


def _last(parts: Iterator[torch.Tensor | None]) -> torch.Tensor:
    *_, logits = parts
    assert logits is not None
    return logits


def _off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / (exact - exact.mean()).norm())
