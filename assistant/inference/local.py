"""The local chat model: what is loaded, what a turn may hold, and what is kept between turns."""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from assistant.errors import AssistantError, ContextOverflowError, InferenceError, ModelBrokenError
from assistant.records import Message

from . import architecture, packed, quantized
from .cache import BLOCK
from .chat_text import ChatText
from .decoder import Decoder
from .generate import Decoding, Engine
from .native import build, layout
from .native.decoder import KernelDecoder, fits
from .prefix import PrefixCache
from .reading import READ_CHUNK
from .types import GenerationStats, Sampling
from .weights import TensorFolder

if TYPE_CHECKING:
    from assistant.worker import TorchWorker

_CALIBRATION = Path(__file__).with_name("calibration.txt")

DEFAULT_CONTEXT = 2048
"""Longest context unless asked for more: keys and values of a long one cost more than the packaged models."""


class LocalChatModel:
    """A causal language model in a Hugging Face folder; see ``types.ChatModel`` for what it offers.

    Attributes:
        runs_on: What computes, and what in: ``kernels (AVX2)``, ``torch (bfloat16)``.

    Raises:
        ModelBrokenError: The folder is incomplete, truncated or not a causal language model.
    """

    estimated = False

    def __init__(
        self,
        folder: Path,
        worker: TorchWorker,
        *,
        name: str = "",
        dtype: str = "auto",
        context_tokens: int = 0,
        prefix_cache_bytes: int = 0,
        device: str = "cpu",
    ) -> None:
        self.name = name or folder.name
        self._folder = folder
        self._worker = worker
        self._device = device
        self._asked_dtype = dtype
        self._compute = compute_dtype(dtype, device)
        self._quantize = dtype in ("auto", "int8") and device == "cpu"
        self._config = _config(folder)
        self._arch = architecture.read(self._config)
        made_for = int(
            self._config.get("max_position_embeddings") or self._config.get("n_positions") or DEFAULT_CONTEXT
        )
        self.context_tokens = min(context_tokens or DEFAULT_CONTEXT, made_for)
        self._text = ChatText(folder)
        self._prefix = PrefixCache(prefix_cache_bytes)
        self._engine: Engine | None = None
        self._closed = False
        self.dtype = "fp32" if self._compute == torch.float32 else "bf16"
        self.runs_on = f"torch ({str(self._compute).removeprefix('torch.')})"
        worker.run(self._load)

    @property
    def prefix_cache_bytes(self) -> int:
        """Most bytes of keys and values kept between turns; may be set, and counts from the next turn's end."""
        return self._prefix.max_bytes

    @prefix_cache_bytes.setter
    def prefix_cache_bytes(self, value: int) -> None:
        self._prefix.max_bytes = value

    @property
    def loaded(self) -> bool:
        """Whether the weights are mapped."""
        return self._engine is not None

    def count(self, text: str) -> int:
        """Count the tokens of *text* alone."""
        return self._text.count(text)

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Count the tokens of the whole prompt."""
        return len(self._text.prompt(messages))

    def start(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
        session_id: str | None = None,
    ) -> LocalGeneration:
        """Begin an answer; see ``types.ChatModel.start``."""
        if self._closed:
            raise InferenceError(f"The model {self.name} was closed.")
        sampling = sampling or Sampling()
        prompt = self._text.prompt(messages)
        room = self.context_tokens - len(prompt)
        if not prompt or room < 1:
            raise ContextOverflowError(
                f"The prompt has {len(prompt)} tokens and {self.name} reads {self.context_tokens} with its answer; "
                "ask a shorter question or give it less to read.",
                over_tokens=1 - room,
            )
        most = min(sampling.max_new_tokens, room)
        # Lifting the words of earlier turns would have their answers said again.
        heads = [message for message in messages[:-1] if message["role"] == "system"]
        near = prompt if len(heads) == len(messages) - 1 else self._text.prompt([*heads, messages[-1]])

        def make() -> Decoding:
            engine = self._load()
            return Decoding(
                engine,
                self._text,
                prompt,
                sampling,
                near=near,
                most_tokens=most,
                stop=stop or threading.Event(),
                lease=lambda: self._lease(engine, prompt, len(prompt) + most, session_id),
                give_back=lambda cache, tokens: self._give_back(engine, cache, tokens, session_id),
            )

        return LocalGeneration(self._worker, make)

    def memory_estimate(self, context_tokens: int) -> dict[str, int]:
        """Say in bytes what a turn of *context_tokens* takes; see ``types.ChatModel.memory_estimate``."""
        mapped = sum(path.stat().st_size for path in self._folder.glob("model*.safetensors") if self._is_mapped(path))
        itemsize = self._compute.itemsize
        if self._arch is None:
            return {
                "weights_mapped": 0,
                "weights_anonymous": mapped,
                "kv_cache": 0,
                "prefix_cache": 0,
                "activations": 0,
            }
        arch = self._arch
        width, tokens = 4 * arch.hidden + 2 * arch.heads * arch.head_dim + 3 * arch.intermediate, READ_CHUNK
        if self.runs_on.startswith(
            "kernels"
        ):  # which keep the residual of the whole prompt, in float32, and little else
            width, tokens, itemsize = 3 * arch.hidden, context_tokens, 2
        return {
            "weights_mapped": mapped,
            "weights_anonymous": 0,
            "kv_cache": arch.kv_bytes(-(-context_tokens // BLOCK) * BLOCK, itemsize),
            "prefix_cache": self.prefix_cache_bytes,
            "activations": width * min(context_tokens, tokens) * itemsize,
        }

    def release_caches(self) -> int:
        """Free what is kept between turns; say how many bytes that was."""
        return self._worker.run(self._prefix.clear)

    def unload(self) -> None:
        """Free the weights; the next turn loads them again."""
        self._worker.run(self._drop)

    def close(self) -> None:
        """Free everything, for good."""
        if not self._closed:
            self._closed = True
            self.unload()

    def _lease(self, engine: Engine, prompt: list[int], tokens: int, session_id: str | None) -> tuple[Any, int]:
        if isinstance(engine, Decoder | KernelDecoder):
            return self._prefix.lease(prompt, tokens, session_id, engine.new_cache)
        return engine.new_cache(tokens), 0

    def _give_back(self, engine: Engine, cache: Any, tokens: list[int], session_id: str | None) -> None:
        if isinstance(engine, Decoder | KernelDecoder):
            self._prefix.give_back(cache, tokens, session_id, engine.new_cache)

    def _is_mapped(self, path: Path) -> bool:
        """Tell whether a file's pages stay in RAM: the small weights where there are any, reading drops the others."""
        small = path.name.startswith("model.int")
        return path.name == f"model.{self.dtype}.safetensors" if self.dtype.startswith("int") else not small

    def _drop(self) -> None:
        self._prefix.clear()
        self._engine = None

    def _load(self) -> Engine:
        """Map the weights, once; on the worker."""
        if self._engine is None:
            self._engine = self._hosted() if self._arch is None else self._ours(self._arch)
        return self._engine

    def _ours(self, arch: architecture.Architecture) -> Engine:
        tensors = TensorFolder(self._folder)
        kernels = build.library() if self._quantize and fits(arch) else None
        if kernels is not None:
            weights, four_bits = layout.open_or_make(
                self._folder, quantized.llama_sources(arch), tensors, four_bits=self._asked_dtype == "auto"
            )
            self.dtype = "int4" if four_bits else "int8"
            self.runs_on = f"kernels ({build.described(kernels)})"
            return KernelDecoder(kernels, arch, tensors, weights, context_tokens=self.context_tokens)
        products = None
        if self._quantize:
            sources = quantized.llama_sources(arch)
            products, four_bits = quantized.open_or_make(
                self._folder,
                sources,
                tensors,
                four_bits=self._asked_dtype == "auto",
                compute=self._compute,
            )
            self.dtype = "int4" if four_bits else "int8"
        decoder = Decoder(
            arch,
            tensors,
            dtype=self._compute,
            context_tokens=self.context_tokens,
            quantized=products,
            device=self._device,
            lean=True,
        )
        if self._quantize and packed.supported():
            known = self._text.encode(_CALIBRATION.read_text(encoding="utf-8"))[: self.context_tokens]
            reading = packed.open_or_make(
                self._folder, sources, tensors, decoder.norms(), self._compute, lambda: decoder.peaks(known)
            )
            if reading is not None:
                decoder.read_with(reading)
        return decoder

    def _hosted(self) -> Engine:
        from .hosted import HostedModel

        if self._quantize:
            self.dtype = "int8"
        return HostedModel(self._folder, dtype=self._compute, device=self._device, quantize=self._quantize)


class LocalGeneration:
    """A running answer of a local model; see ``types.Generation``."""

    def __init__(self, worker: TorchWorker, make: Callable[[], Decoding]) -> None:
        self._decoding: Decoding | None = None

        def begin() -> Iterator[str]:
            self._decoding = make()
            return self._decoding.run()

        self._pieces: Any = worker.stream(begin)

    @property
    def stats(self) -> GenerationStats:
        """What it took so far."""
        return self._decoding.stats if self._decoding is not None else GenerationStats()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Give the next piece of text."""
        try:
            while True:
                piece: str = next(self._pieces)
                if piece:
                    return piece
        except (StopIteration, AssistantError):
            raise
        except Exception as exc:
            raise InferenceError(f"The model failed while it was writing: {exc}") from exc

    def close(self) -> None:
        """End early and free the keys and values."""
        self._pieces.close()


def compute_dtype(asked: str, device: str) -> torch.dtype:
    """Choose what to compute in: bfloat16 where the CPU multiplies it, else float32."""
    if asked == "fp32":
        return torch.float32
    return torch.bfloat16 if asked == "bf16" or device != "cpu" or has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16, and oneDNN may use that.

    oneDNN computes bfloat16 on any AVX-512 CPU, but slower than float32 where there is no instruction for it.
    ``ONEDNN_MAX_CPU_ISA`` holds oneDNN back, to try other CPUs' paths.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit and limit not in ("ALL", "DEFAULT") and "BF16" not in limit and "FP16" not in limit and "AMX" not in limit:
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelBrokenError(f"The model folder {folder} lacks config.json.") from exc
    except ValueError as exc:
        raise ModelBrokenError(f"{path} is damaged: {exc}.") from exc
    if not isinstance(config, dict):
        raise ModelBrokenError(f"{path} is damaged: it holds no object.")
    return config
