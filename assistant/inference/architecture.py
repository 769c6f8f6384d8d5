"""What ``config.json`` says of a Llama-like model, or that it is none.

Llama, Mistral, Qwen2, Qwen3 and Gemma (the first) are one architecture with switches. A config that uses anything
beyond these switches is not read here, so that a model is never run almost right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Architecture:
    """The switches of a Llama-like decoder.

    Attributes:
        rope: ``rope_type``, ``rope_theta`` and the numbers its type needs.
        norm_offset: Added to the weight of every norm (Gemma stores weight - 1).
        embedding_scale: Factor on the embedded tokens (Gemma).
        qk_norm: Queries and keys are normed a head at a time (Qwen3).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    activation: str
    tied: bool
    max_positions: int
    rope: Mapping[str, Any]
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    qk_norm: bool = False

    @property
    def groups(self) -> int:
        """Query heads to one key-value head."""
        return self.heads // self.kv_heads

    def kv_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of keys and values for *tokens*."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * itemsize


def read(config: Mapping[str, Any]) -> Architecture | None:
    """Read a Hugging Face config.

    Returns:
        None when the model needs more than a Llama-like decoder.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
        return None
    context = int(config.get("max_position_embeddings") or 2048)
    window = config.get("sliding_window") if config.get("use_sliding_window", kind == "mistral") else None
    if (window and int(window) < context) or config.get("quantization_config") or config.get("partial_rotary_factor"):
        return None
    if "sliding_attention" in (config.get("layer_types") or ()) or (config.get("mlp_bias") and kind != "llama"):
        return None
    gemma = kind == "gemma"
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if gemma:  # Gemma's reference code has always run the tanh form, whatever hidden_act says
        activation = "gelu_pytorch_tanh"
    rope = _rope(config)
    if activation not in ("silu", "gelu_pytorch_tanh", "gelu") or rope is None:
        return None
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Architecture(
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        eps=float(config.get("rms_norm_eps") or 1e-6),
        activation=activation,
        tied=bool(config.get("tie_word_embeddings", gemma)),
        max_positions=context,
        rope=rope,
        norm_offset=1.0 if gemma else 0.0,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        qk_norm=kind == "qwen3",
    )


def rope_tables(arch: Architecture, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute cosines and signed sines of rotary positions (Su et al. 2021).

    The sines of the first half carry the minus sign of ``rotate_half``, so that a rotation is
    ``x * cos + roll(x, head_dim // 2) * sin``.

    Returns:
        Two tensors of shape [length, head_dim].
    """
    dim = arch.head_dim
    inverse = 1.0 / (float(arch.rope["rope_theta"]) ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    kind = arch.rope["rope_type"]
    if kind == "linear":
        inverse = inverse / float(arch.rope["factor"])
    elif kind == "llama3":
        inverse = _llama3(inverse, arch.rope)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    sine = angles.sin()
    return torch.cat((angles.cos(),) * 2, -1).to(dtype), torch.cat((-sine, sine), -1).to(dtype)


def _rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(rope["rope_type"])
    if needed is None or any(name not in rope for name in needed) or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    return rope


def _llama3(inverse: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Stretch the slow frequencies, leave the fast ones, blend between (Llama 3.1, Meta 2024)."""
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return inverse / factor * (1 - smooth) + inverse * smooth
