"""Small weights for decoding: made once, kept beside ``model.safetensors``, memory-mapped.

A step of decoding reads every weight once, so their size is its speed. Products that share an input are fused (q, k, v;
gate, up), and each is kept in one of two forms:

- 8 bits, one scale per output channel (``torch._weight_int8pack_mm``): any model, about +0.4 % perplexity here;
- 4 bits, scale and zero per 32 inputs (``_weight_int4pack_mm_for_cpu``), only where the weights already lie on such a
  grid, as those converted from a Q4 GGUF do: then it is the same model at half the size. Others would lose by it.

Knows tensors and one file format; nothing of layers but their names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from assistant.errors import ModelBrokenError, StorageFullError

from .architecture import Architecture
from .weights import TensorFile

VERSION = "1"
GROUP = 32
"""Inputs that share a scale and a zero in the 4-bit form, as in GGUF's Q4_0 and Q4_1."""
_ON_GRID = 0.01
"""Largest relative error (root of mean squares) at which weights count as being on the 4-bit grid already."""
_SAMPLE = 16
"""Output channels of a weight that are tried for that."""
_ROWS = 4096
"""Output channels quantized at a time: bounds what making the file takes."""

Linear = Callable[[torch.Tensor], torch.Tensor]
Sources = list[tuple[str, tuple[str, ...]]]


class Weights(Protocol):
    """Where the weights come from: a folder of tensors, or a model that transformers loaded."""

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of that name."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor."""
        ...

    def drop(self, names: Iterable[str]) -> None:
        """Take the pages of these tensors out of this process."""
        ...


def open_or_make(
    folder: Path, sources: Sources, weights: Weights, *, four_bits: bool, compute: torch.dtype
) -> tuple[dict[str, Linear], bool]:
    """Map the small weights of a model, making the file when it is missing, damaged or of another origin.

    Args:
        folder: The model's; where it can't be written, the small weights are kept in RAM.
        sources: Each product's name, and the weights (without ``.weight``) whose outputs it gives side by side.
        weights: Where these are.
        four_bits: Use the 4-bit form where it loses nothing.
        compute: Type of the activations.

    Returns:
        The products by name, and whether any is in 4 bits.
    """
    four_bits = four_bits and has_int4()
    path = folder / f"model.{'int4' if four_bits else 'int8'}.safetensors"
    origin = origin_of(folder, sources) | {"layout": "torch"}
    if four_bits:  # whose layout depends on the CPU's vector width
        origin["layout"] = f"{torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"
    file = opened(path, origin)
    if file is None:
        forms = {name: form(name, parts, weights, four_bits) for name, parts in sources}
        made = _quantized(sources, weights, forms)
        if not os.access(folder, os.W_OK):
            return _products(dict(made), compute), "q4" in forms.values()
        write(path, made, _layout(sources, weights, forms), origin)
        file = TensorFile(path)
    stored = {name: file.tensor(name) for name in file.names()}
    return _products(stored, compute), any(name.endswith(".q4") for name in stored)


def has_int4() -> bool:
    """Tell whether this torch on this CPU has a fast 4-bit product."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and torch.backends.cpu.get_cpu_capability() in (
        "AVX2",
        "AVX512",
    )


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to 8 bits, symmetric per output channel.

    The scale is rounded to bfloat16 first (the kernel takes no other) and the weights by the rounded one, so that its
    own rounding costs nothing.

    Args:
        weight: [outputs, inputs].

    Returns:
        The integers [outputs, inputs] and the scales [outputs].
    """
    exact = weight.float()
    scale = (exact.abs().amax(1) / 127).bfloat16()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (exact / scale.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8), scale


def to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Round to 4 bits, from the least to the greatest of each group of inputs.

    Args:
        weight: [outputs, inputs], inputs a multiple of ``GROUP``.

    Returns:
        The integers 0 to 15 [outputs, inputs] as int32, scales and zeros [inputs / GROUP, outputs, 2], and the error
        relative to the weights. A weight is ``(q - 8) * scale + zero``.
    """
    outputs, inputs = weight.shape
    exact = weight.float().view(outputs, inputs // GROUP, GROUP)
    low = exact.amin(-1)
    scale = ((exact.amax(-1) - low) / 15).bfloat16().float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (low + 8 * scale).bfloat16().float()
    ints = ((exact - zero.unsqueeze(-1)) / scale.unsqueeze(-1) + 8).round_().clamp_(0, 15)
    off = (ints - 8) * scale.unsqueeze(-1) + zero.unsqueeze(-1) - exact
    error = math.sqrt(float(off.square().sum()) / max(float(exact.square().sum()), 1e-30))
    grid = torch.stack((scale, zero), -1).transpose(0, 1).contiguous().bfloat16()
    return ints.view(outputs, inputs).to(torch.int32), grid, error


def int8_product(weight: torch.Tensor, scale: torch.Tensor) -> Linear:
    """Multiply by 8-bit weights, with torch's kernel or without."""
    if hasattr(torch, "_weight_int8pack_mm"):
        kernel = torch._weight_int8pack_mm
        return lambda x: kernel(x, weight, scale)
    return portable_int8_product(weight, scale)


def portable_int8_product(weight: torch.Tensor, scale: torch.Tensor) -> Linear:
    """Multiply by 8-bit weights with nothing but plain torch: widened some rows at a time."""

    def product(x: torch.Tensor) -> torch.Tensor:
        starts = range(0, weight.shape[0], _ROWS)
        return torch.cat([x @ weight[at : at + _ROWS].to(x.dtype).t() for at in starts], -1) * scale.to(x.dtype)

    return product


def _products(stored: dict[str, torch.Tensor], compute: torch.dtype) -> dict[str, Linear]:
    products: dict[str, Linear] = {}
    for full in stored:
        name, form = full.rsplit(".", 1)
        if form not in ("q4", "q8"):
            continue
        product = (
            _int4_product(stored[full], stored[f"{name}.grid"])
            if form == "q4"
            else int8_product(stored[full], stored[f"{name}.scale"])
        )
        bias = stored.get(f"{name}.bias")
        if bias is not None:
            product = _biased(product, bias)
        products[name] = _widened(product) if compute != torch.bfloat16 else product
    return products


def _int4_product(packed: torch.Tensor, grid: torch.Tensor) -> Linear:
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x: kernel(x, packed, GROUP, grid)


def _biased(product: Linear, bias: torch.Tensor) -> Linear:
    return lambda x: product(x).add_(bias)


def _widened(product: Linear) -> Linear:
    """Let float32 activations meet kernels that are fast in bfloat16 only (they widen inside; AVX2 suffices)."""
    return lambda x: product(x.bfloat16()).to(x.dtype)


def llama_sources(arch: Architecture) -> Sources:
    """Name the fused products of a Llama-like model and the weights they are made of."""
    sources: Sources = []
    for index in range(arch.layers):
        base = f"model.layers.{index}."
        attn, mlp = base + "self_attn.", base + "mlp."
        sources += [
            (f"{index}.qkv", (attn + "q_proj", attn + "k_proj", attn + "v_proj")),
            (f"{index}.out", (attn + "o_proj",)),
            (f"{index}.gate_up", (mlp + "gate_proj", mlp + "up_proj")),
            (f"{index}.down", (mlp + "down_proj",)),
        ]
    return [*sources, ("head", ("model.embed_tokens" if arch.tied else "lm_head",))]


def _quantized(sources: Sources, tensors: Weights, forms: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the stored tensors one after another; holds one product's at a time."""
    for name, parts in sources:
        weights = [tensors.tensor(part + ".weight") for part in parts]
        if forms[name] == "q4":
            ints, grid, _ = to_int4(torch.cat(weights))
            yield f"{name}.q4", torch.ops.aten._convert_weight_to_int4pack_for_cpu(ints, 1)
            yield f"{name}.grid", grid
        else:
            whole = torch.cat(weights) if len(weights) > 1 else weights[0]
            pieces = [to_int8(whole[at : at + _ROWS]) for at in range(0, whole.shape[0], _ROWS)]
            yield f"{name}.q8", torch.cat([ints for ints, _ in pieces])
            yield f"{name}.scale", torch.cat([scale for _, scale in pieces])
        biases = [part + ".bias" for part in parts]
        if any(bias in tensors for bias in biases):
            values = [
                tensors.tensor(bias) if bias in tensors else torch.zeros(weight.shape[0])
                for bias, weight in zip(biases, weights, strict=True)
            ]
            yield f"{name}.bias", torch.cat([value.bfloat16() for value in values])
        tensors.drop(part + ".weight" for part in parts)


def form(name: str, parts: tuple[str, ...], tensors: Weights, four_bits: bool) -> str:
    """Choose the form of one product from a sample of its channels.

    The head stays in 8 bits: it decides between close words.
    """
    weights = [tensors.tensor(part + ".weight") for part in parts]
    outputs, inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    if not four_bits or name == "head" or inputs % GROUP or outputs % 64:
        return "q8"
    steps = [max(1, weight.shape[0] // _SAMPLE) for weight in weights]
    errors = [to_int4(weight[::step].contiguous())[2] for weight, step in zip(weights, steps, strict=True)]
    return "q4" if max(errors) <= _ON_GRID else "q8"


def _layout(
    sources: Sources, tensors: Weights, forms: dict[str, str]
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Say what ``_quantized`` will give, before it is made: the header stands before the data."""
    for name, parts in sources:
        weights = [tensors.tensor(part + ".weight") for part in parts]
        outputs, inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        if forms[name] == "q4":
            yield f"{name}.q4", torch.uint8, (outputs, inputs // 2)
            yield f"{name}.grid", torch.bfloat16, (inputs // GROUP, outputs, 2)
        else:
            yield f"{name}.q8", torch.int8, (outputs, inputs)
            yield f"{name}.scale", torch.bfloat16, (outputs,)
        if any(part + ".bias" in tensors for part in parts):
            yield f"{name}.bias", torch.bfloat16, (outputs,)


def origin_of(folder: Path, sources: Sources) -> dict[str, str]:
    """Describe what a file is made from: another model makes another one. It is told by size and time, not read."""
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("model.int"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return {"version": VERSION, "source": hashlib.sha256(json.dumps([facts, sources]).encode()).hexdigest()}


def opened(path: Path, origin: dict[str, str]) -> TensorFile | None:
    """Open a file if it is whole and of that origin."""
    if not path.is_file():
        return None
    try:
        file = TensorFile(path)
    except ModelBrokenError:
        return None
    return file if origin.items() <= file.metadata.items() else None


_NAMES = {torch.uint8: "U8", torch.int8: "I8", torch.bfloat16: "BF16", torch.float32: "F32"}
_ALIGN = 64


def write(
    path: Path,
    parts: Iterator[tuple[str, torch.Tensor]],
    layout: Iterator[tuple[str, torch.dtype, tuple[int, ...]]],
    origin: dict[str, str],
) -> None:
    """Write a safetensors file a tensor at a time, whole or not at all; its data's SHA-256 goes into the header."""
    header: dict[str, object] = {"__metadata__": origin | {"sha256": "0" * 64}}
    at = 0
    for name, dtype, shape in layout:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    encoded = _encoded(header)
    digest = hashlib.sha256()
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(encoded)
            for _, tensor in parts:
                data = tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data
                file.write(data)
                digest.update(data)
            header["__metadata__"] = origin | {"sha256": digest.hexdigest()}
            file.seek(0)
            file.write(_encoded(header))
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException as exc:
        with suppress(OSError):
            Path(partial).unlink()
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"The disk is full: the model's small weights ({path.name}, {at:,} bytes) don't fit beside it. "
                "Free some space, or set dtype to bf16."
            ) from exc
        raise


def _encoded(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return struct.pack("<Q", len(text)) + text
