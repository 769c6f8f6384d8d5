"""Weights in the order that the kernels read them: made once, kept beside ``model.safetensors``, memory-mapped.

A block is 8 outputs by 32 inputs; blocks follow one another as a product meets them, so that it reads memory from one
end to the other. The files are named as those that torch's products use (``quantized``), with another layout noted in
them: a machine that gets kernels, or loses them, makes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.inference import quantized
from assistant.inference.quantized import GROUP, Sources, Weights
from assistant.inference.weights import TensorFile

LANES = 8
"""Outputs of a block."""
BLOCK_BYTES = {4: LANES * GROUP // 2 + 4 * LANES, 8: LANES * GROUP}
_LAYOUT = "kernels 1"
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Packed:
    """One product's weights: blocks as uint8, and float32 vectors of padded outputs."""

    blocks: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int


def open_or_make(
    folder: Path, sources: Sources, weights: Weights, *, four_bits: bool
) -> tuple[dict[str, Packed], bool]:
    """Map the packed weights of a model, making the file when it is missing, damaged or of another origin.

    Args:
        folder: The model's; where it can't be written, the packed weights are kept in RAM.
        sources: Each product's name, and the weights whose outputs it gives side by side.
        weights: Where these are.
        four_bits: Use 4 bits where that loses nothing.

    Returns:
        The weights by product, and whether any is in 4 bits.
    """
    path = folder / f"model.{'int4' if four_bits else 'int8'}.safetensors"
    origin = quantized.origin_of(folder, sources) | {"layout": _LAYOUT}
    file = quantized.opened(path, origin)
    if file is None:
        bits = {name: 4 if quantized.form(name, parts, weights, four_bits) == "q4" else 8 for name, parts in sources}
        made = _packed(sources, weights, bits)
        if not os.access(folder, os.W_OK):
            return _found(dict(made), sources, weights)
        quantized.write(path, made, _layout(sources, weights, bits), origin)
        file = TensorFile(path)
    return _found({name: file.tensor(name) for name in file.names()}, sources, weights)


def in_memory(sources: Sources, weights: Weights, bits: int) -> dict[str, Packed]:
    """Pack a model's weights in RAM, all of them in *bits* bits."""
    made = dict(_packed(sources, weights, dict.fromkeys((name for name, _ in sources), bits)))
    return _found(made, sources, weights)[0]


def blocks_4(weight: torch.Tensor) -> torch.Tensor:
    """Round weights to 16 levels, from the least to the greatest of each 32 inputs, and pack them.

    Args:
        weight: [outputs, inputs], multiples of 8 and of 32.

    Returns:
        [outputs / 8, inputs / 32, 160], uint8: 4 times 32 bytes with two quads of inputs each, 8 scales and 8 least
        values as float16.
    """
    outputs, inputs = weight.shape
    panels, groups = outputs // LANES, inputs // GROUP
    exact = weight.float().view(outputs, groups, GROUP)
    least = exact.amin(-1).half()
    scale = ((exact.amax(-1) - least.float()) / 15).half()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    ints = ((exact - least.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round_().clamp_(0, 15)
    quads = ints.to(torch.uint8).view(panels, LANES, groups, 8, 4).permute(0, 2, 3, 1, 4)  # [.., quad, output, input]
    nibbles = (quads[:, :, :4] | (quads[:, :, 4:] << 4)).reshape(panels, groups, -1)
    ends = [
        part.view(panels, LANES, groups).transpose(1, 2).contiguous().view(torch.uint8).view(panels, groups, -1)
        for part in (scale, least)
    ]
    return torch.cat((nibbles, *ends), -1)


def blocks_8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round weights to 8 bits, symmetric per output, and pack them.

    Returns:
        [outputs / 8, inputs / 32, 256], uint8, and the scales [outputs], float32.
    """
    outputs, inputs = weight.shape
    ints, scale = quantized.to_int8(weight)
    quads = ints.view(outputs // LANES, LANES, inputs // GROUP, 8, 4).permute(0, 2, 3, 1, 4)
    return quads.reshape(outputs // LANES, inputs // GROUP, -1).contiguous().view(torch.uint8), scale.float()


def _padded(count: int) -> int:
    return -(-count // LANES) * LANES


def _whole(parts: tuple[str, ...], weights: Weights) -> torch.Tensor:
    found = [weights.tensor(part + ".weight") for part in parts]
    weight = torch.cat(found) if len(found) > 1 else found[0]
    missing = _padded(weight.shape[0]) - weight.shape[0]
    return torch.cat((weight, weight.new_zeros(missing, weight.shape[1]))) if missing else weight


def _shape(parts: tuple[str, ...], weights: Weights) -> tuple[int, int]:
    shapes = [weights.tensor(part + ".weight").shape for part in parts]
    return _padded(sum(shape[0] for shape in shapes)), shapes[0][1]


def _packed(sources: Sources, weights: Weights, bits: dict[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the stored tensors one after another; holds one product's at a time."""
    for name, parts in sources:
        whole = _whole(parts, weights)
        pieces = [whole[at : at + _ROWS] for at in range(0, whole.shape[0], _ROWS)]
        if bits[name] == 4:
            yield f"{name}.blocks", torch.cat([blocks_4(piece) for piece in pieces])
        else:
            made = [blocks_8(piece) for piece in pieces]
            yield f"{name}.blocks", torch.cat([blocks for blocks, _ in made])
            yield f"{name}.scale", torch.cat([scale for _, scale in made])
        if any(part + ".bias" in weights for part in parts):
            biases = [
                weights.tensor(part + ".bias").float()
                if part + ".bias" in weights
                else torch.zeros(weights.tensor(part + ".weight").shape[0])
                for part in parts
            ]
            bias = torch.cat(biases)
            yield f"{name}.bias", torch.cat((bias, bias.new_zeros(whole.shape[0] - bias.shape[0])))
        weights.drop(part + ".weight" for part in parts)


def _layout(
    sources: Sources, weights: Weights, bits: dict[str, int]
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Say what ``_packed`` will give, before it is made: the header stands before the data."""
    for name, parts in sources:
        outputs, inputs = _shape(parts, weights)
        yield f"{name}.blocks", torch.uint8, (outputs // LANES, inputs // GROUP, BLOCK_BYTES[bits[name]])
        if bits[name] == 8:
            yield f"{name}.scale", torch.float32, (outputs,)
        if any(part + ".bias" in weights for part in parts):
            yield f"{name}.bias", torch.float32, (outputs,)


def _found(stored: dict[str, torch.Tensor], sources: Sources, weights: Weights) -> tuple[dict[str, Packed], bool]:
    found = {}
    for name, parts in sources:
        outputs, inputs = _shape(parts, weights)
        scale = stored.get(f"{name}.scale")
        found[name] = Packed(
            stored[f"{name}.blocks"], scale, stored.get(f"{name}.bias"), inputs, outputs, 4 if scale is None else 8
        )
    return found, any(packed.bits == 4 for packed in found.values())
