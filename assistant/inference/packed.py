"""8-bit products for reading: int8 weights times activations rounded to 8 bits, a scale for each row of both.

On a CPU with VNNI such a product takes half the time of a bfloat16 one (810 to 860 against 380 to 420 GFLOP/s here).
The kernel wants weights in an order of its own, which takes 8 ms a layer to make, so they are kept that way in a file
beside ``model.safetensors``. A layer's are read from it (the kernel's page cache) into one set of tensors when their
turn comes: nothing is mapped, and one layer's are in RAM.

Activations have channels far larger than the rest, which would leave the rest few of the 8 bits: rounded as they are
they raised perplexity by 3.7 %. So each channel is divided by a factor and the weights that meet it are multiplied by
it (SmoothQuant, Xiao et al. 2023), which is folded into the norms and the scales and costs no time. The factors come
from one reading of a short text in full precision.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from .quantized import Sources, Weights, opened, origin_of, to_int8, write
from .weights import TensorFile

FILE = "model.int8-read.safetensors"
PARTS = ("qkv", "out", "gate_up", "down")
SMOOTHING = 0.65
"""How much of the range of a channel moves from the activations into the weights (alpha). 0.5 left perplexity 1.9 %
higher, 0.65 0.5 % and 0.8 3.1 %, on 5,495 tokens of XQuAD."""
_NORM_OF = {"qkv": "input_norm", "gate_up": "post_norm"}
_ROWS = 320  # that the layout is asked for; it takes any number
_ZERO = 128  # of unsigned activations: the kernel multiplies unsigned by signed
_TOLERANCE = 0.01
"""Largest relative error of a product of whole numbers that passes the trial at loading: bfloat16 rounds by 0.002."""

Norms = Sequence[Mapping[str, torch.Tensor]]
Peaks = Mapping[str, torch.Tensor]


def supported() -> bool:
    """Tell whether this torch has the product and this CPU the instruction for it (VNNI), and oneDNN may use it."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit and limit not in ("ALL", "DEFAULT") and not any(name in limit for name in ("VNNI", "BF16", "FP16", "AMX")):
        return False
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    ops = ("qlinear_prepack", "qlinear_pointwise"), ("data_ptr", "_nbytes", "_get_mkldnn_serialized_md")
    known = all(hasattr(torch.ops.onednn, name) for name in ops[0]) and all(
        hasattr(torch.ops.mkldnn, name) for name in ops[1]
    )
    return bool(vnni()) and known


def open_or_make(
    folder: Path, sources: Sources, weights: Weights, norms: Norms, compute: torch.dtype, peaks: Callable[[], Peaks]
) -> PackedProducts | None:
    """Open the file of weights for reading, making it when it is missing, damaged or of another origin.

    Args:
        folder: The model's.
        sources: Each product's name, and the weights whose outputs it gives side by side.
        weights: Where these are.
        norms: The norms before qkv and before gate and up, of each layer.
        compute: Type of the results.
        peaks: Reads a text and tells the largest activation of each channel, by product; called when the file is made.

    Returns:
        None where the folder can't be written, or a product comes out wrong on this machine.
    """
    sources = [(name, parts) for name, parts in sources if name != "head"]
    scratch = {part: Scratch(*_shape(dict(sources)[f"0.{part}"], weights)) for part in PARTS}
    if not all(room.works(compute) for room in scratch.values()):
        return None
    layout = hashlib.sha256("".join(scratch[part].layout for part in PARTS).encode()).hexdigest()
    origin = origin_of(folder, sources) | {"layout": f"{layout} torch {torch.__version__}", "smoothing": str(SMOOTHING)}
    path = folder / FILE
    file = opened(path, origin)
    if file is None:
        if not os.access(folder, os.W_OK):
            return None
        write(path, _made(sources, weights, norms, peaks()), _layout(sources, weights, norms, scratch), origin)
        file = TensorFile(path)
    return PackedProducts(file, scratch, compute)


class PackedProducts:
    """The products of a model's layers, one layer at a time; see ``reading.ReadingProducts``."""

    def __init__(self, file: TensorFile, scratch: dict[str, Scratch], compute: torch.dtype) -> None:
        self._file = file
        self._descriptor = os.open(file.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._scratch = scratch
        self._compute = compute
        self._small = {name: file.tensor(name).clone() for name in file.names() if not name.endswith(".packed")}
        file.drop(file.names())  # reading the small ones mapped their surroundings
        self._index = 0

    @property
    def input_norm(self) -> torch.Tensor:
        """See ``reading.ReadingProducts``."""
        return self._small[f"{self._index}.input_norm"].to(self._compute)

    @property
    def post_norm(self) -> torch.Tensor:
        """See ``reading.ReadingProducts``."""
        return self._small[f"{self._index}.post_norm"].to(self._compute)

    def fetch(self, index: int) -> None:
        """Read the weights of layer *index*."""
        self._index = index
        for part, scratch in self._scratch.items():
            scratch.fill(self._descriptor, self._file.offset(f"{index}.{part}.packed"))

    def drop(self, index: int) -> None:
        """Nothing: the next layer takes the place of this one."""

    def qkv(self, x: torch.Tensor) -> torch.Tensor:
        """See ``reading.ReadingProducts``."""
        return self._product("qkv", x)

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """See ``reading.ReadingProducts``."""
        return self._product("out", x)

    def gate_up(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``reading.ReadingProducts``."""
        gate, up = self._product("gate_up", x).chunk(2, -1)
        return gate, up

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """See ``reading.ReadingProducts``."""
        return self._product("down", x)

    def _product(self, part: str, x: torch.Tensor) -> torch.Tensor:
        name = f"{self._index}.{part}"
        result = self._scratch[part].product(x, self._small[f"{name}.scale"], self._compute)
        bias = self._small.get(f"{name}.bias")
        return result if bias is None else result.add_(bias)


class Scratch:
    """Room for one packed weight, [outputs, inputs]: filled with another layer's again and again."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.shape = (outputs, inputs)
        self.tensor = pack(torch.zeros(outputs, inputs, dtype=torch.int8))
        self.nbytes = int(torch.ops.mkldnn._nbytes(self.tensor))
        self._zeros = torch.zeros(outputs, dtype=torch.int64)
        self._room = memoryview(bytes_of(self.tensor)).cast("B")

    @property
    def layout(self) -> str:
        """Name the order of the bytes."""
        described = torch.ops.mkldnn._get_mkldnn_serialized_md(self.tensor)
        return bytes(described.numpy()).hex()

    def fill(self, descriptor: int, offset: int) -> None:
        """Read the weight that lies at *offset* of a file."""
        done = 0
        while done < self.nbytes:
            count = os.preadv(descriptor, [self._room[done:]], offset + done)
            if not count:
                raise OSError(f"the file of weights ends at byte {offset + done}")
            done += count

    def product(self, x: torch.Tensor, scale: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
        """Multiply rows [rows, inputs] by the weight, and each output by its scale."""
        # A row's largest number is its scale, exact in the compute type; 1 / 127 is left to the kernel.
        peak = x.abs().amax(1, keepdim=True).clamp_min_(1e-12)
        exact = x.float().mul_(127 / peak.float()).add_(_ZERO + 0.5)
        rounded = exact.to(torch.int16).to(torch.uint8)  # truncates: to the nearest; twice as fast as at once
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1 / 127, _ZERO, self.tensor, scale, self._zeros, None, 1.0, 0, compute, "none", [], ""
        )
        result.mul_(peak)
        return result

    def works(self, compute: torch.dtype) -> bool:
        """Try whether bytes of a packed weight put here make the product: their order is nowhere promised."""
        source = torch.Generator().manual_seed(0)
        ints = torch.randint(-127, 128, self.shape, generator=source, dtype=torch.int8)
        packed = pack(ints)
        self._room[:] = memoryview(bytes_of(packed)).cast("B")
        x = torch.randint(-127, 128, (32, self.shape[1]), generator=source).float()
        x[:, 0] = 127  # then every number is exact
        expected = F.linear(x, ints.float())
        found = self.product(x.to(compute), torch.ones(self.shape[0]), compute).float()
        return bool((found - expected).norm() <= _TOLERANCE * expected.norm())  # NaN is none, too


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Bring int8 weights [outputs, inputs] into the kernel's order."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, [_ROWS, weight.shape[1]])
    return packed


def bytes_of(packed: torch.Tensor) -> ctypes.Array[ctypes.c_char]:
    """Look at the memory of a packed tensor, which torch shows to nobody else; *packed* must outlive it."""
    size, address = int(torch.ops.mkldnn._nbytes(packed)), int(torch.ops.mkldnn.data_ptr(packed))
    return (ctypes.c_char * size).from_address(address)


def _shape(parts: tuple[str, ...], weights: Weights) -> tuple[int, int]:
    shapes = [weights.tensor(part + ".weight").shape for part in parts]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def smoothing(peaks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the factor of each channel: activations are divided by it, weights multiplied (SmoothQuant, equation 4).

    Args:
        peaks: Largest activation of each channel, [inputs].
        weight: [outputs, inputs].
    """
    factors = peaks.clamp_min(1e-5) ** SMOOTHING / weight.abs().amax(0).clamp_min(1e-5) ** (1 - SMOOTHING)
    return factors / factors.log().mean().exp()


def _made(sources: Sources, weights: Weights, norms: Norms, peaks: Peaks) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the stored tensors one after another; holds one layer's at most."""
    for name, parts in sources:
        index, _, part = name.partition(".")
        weight = torch.cat([weights.tensor(part + ".weight") for part in parts]).float()
        factors = smoothing(peaks[name], weight) if part != "out" else torch.ones(weight.shape[1])
        norm = norms[int(index)].get(part)
        if norm is not None:  # what the folded norm comes to when it is rounded is what the weights have to undo
            folded = (norm.float() / factors).bfloat16()
            factors = torch.where(folded == 0, 1.0, norm.float() / folded.float())
            yield f"{index}.{_NORM_OF[part]}", folded
        ints, scale = to_int8(weight * factors)
        packed = pack(ints)
        yield f"{name}.packed", torch.frombuffer(bytearray(bytes_of(packed)), dtype=torch.uint8)
        bias = torch.cat([_bias(part, weights) for part in parts])
        undo = torch.ones(weight.shape[0])
        if part == "gate_up":  # up meets the weights of down next
            down = weights.tensor(f"model.layers.{index}.mlp.down_proj.weight").float()
            undo[-down.shape[1] :] = smoothing(peaks[f"{index}.down"], down)
        yield f"{name}.scale", scale.float() / undo
        if _biased(parts, weights):
            yield f"{name}.bias", bias / undo
        weights.drop(part + ".weight" for part in parts)


def _layout(
    sources: Sources, weights: Weights, norms: Norms, scratch: dict[str, Scratch]
) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    for name, parts in sources:
        index, _, part = name.partition(".")
        outputs, inputs = scratch[part].shape
        if part in norms[int(index)]:
            yield f"{index}.{_NORM_OF[part]}", torch.bfloat16, (inputs,)
        yield f"{name}.packed", torch.uint8, (scratch[part].nbytes,)
        yield f"{name}.scale", torch.float32, (outputs,)
        if _biased(parts, weights):
            yield f"{name}.bias", torch.float32, (outputs,)


def _biased(parts: tuple[str, ...], weights: Weights) -> bool:
    return any(part + ".bias" in weights for part in parts)


def _bias(part: str, weights: Weights) -> torch.Tensor:
    if part + ".bias" in weights:
        return weights.tensor(part + ".bias").float()
    return torch.zeros(weights.tensor(part + ".weight").shape[0])
