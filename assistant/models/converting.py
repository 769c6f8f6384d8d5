"""Model files from one format to another, one block of rows at a time: what is held is a block, never a model.

Knows GGUF (through the ``gguf`` package) and the safetensors layout; knows neither torch nor transformers, which would
take twenty times the memory for the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Report = Callable[[float], None]
"""Takes the done fraction, 0 to 1."""

BLOCK_BYTES = 8 << 20
_ALIGNMENT = 64  # tensors start on a cache line, so that kernels read a mapped file as fast as an allocation

# llama.cpp's tensor names (gguf-py, constants.py, MODEL_TENSOR_NAMES) and what transformers calls them.
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType


class ConversionError(ValueError):
    """The file is not one that this module converts."""


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest even as IEEE 754 has it.

    Args:
        values: float32, finite.

    Returns:
        The bit patterns, uint16, in the same shape.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]],
                      blocks: Callable[[str], Iterator[np.ndarray]], report: Report) -> str:  # fmt: skip
    """Write a bf16 safetensors file: the header first, then each tensor as it comes.

    Args:
        path: The file to make.
        shapes: Every tensor's name and shape, in the order of the file.
        blocks: Gives a tensor's float32 values as consecutive blocks of rows.
        report: Told how far it is.

    Returns:
        The file's SHA-256.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [total, total + size]}
        total += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    digest = hashlib.sha256()
    done = 0
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        put(struct.pack("<Q", len(text)))
        put(text)
        for name, shape in shapes.items():
            end = header[name]["data_offsets"][1]
            for block in blocks(name):
                data = to_bf16(block)
                put(data.data.cast("B"))
                done += data.nbytes
                report(done / total)
            if done != end:
                raise ConversionError(f"{name} has {done - end + 2 * int(np.prod(shape))} bytes, not {shape} in bf16")
    return digest.hexdigest()


def safetensors_to_bf16(source: Path, target: Path, report: Report) -> str:
    """Write the float tensors of a float32 safetensors file again as bf16; integer buffers are left out.

    Returns:
        The new file's SHA-256.
    """
    with source.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    floats = {name: tuple(spec["shape"]) for name, spec in sorted(header.items()) if spec["dtype"] == "F32"}
    data = np.memmap(source, dtype=np.uint8, mode="r", offset=8 + length)

    def blocks(name: str) -> Iterator[np.ndarray]:
        start, end = header[name]["data_offsets"]
        for at in range(start, end, BLOCK_BYTES):
            yield np.frombuffer(data[at : min(at + BLOCK_BYTES, end)].tobytes(), dtype="<f4")

    return write_safetensors(target, floats, blocks, report)


def gguf_to_folder(source: Path, folder: Path, report: Report) -> str:
    """Turn a llama GGUF with a byte-level BPE tokenizer into a Hugging Face folder with bf16 weights.

    Args:
        source: The ``.gguf`` file; it is mapped, not read.
        folder: Exists; the files are written into it.
        report: Told how far it is.

    Returns:
        SHA-256 of ``model.safetensors``.

    Raises:
        ConversionError: Another architecture or tokenizer.
    """
    from gguf import GGUFReader  # yaml, tqdm and requests come with it: 30 MB, here only

    reader = GGUFReader(source)
    meta = {key: item.contents() for key, item in reader.fields.items() if item.types}
    if meta.get("general.architecture") != "llama" or meta.get("tokenizer.ggml.model") != "gpt2":
        raise ConversionError(f"{source.name}: only llama models with a byte-level BPE tokenizer are converted")
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    config = _config(meta, tied=tied)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(meta))
    _write_json(folder / "tokenizer.json", _tokenizer(meta), indent=None)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(meta))
    del meta
    return _convert_weights(reader, config, folder / "model.safetensors", report)


def _convert_weights(reader: Any, config: Mapping[str, Any], target: Path, report: Report) -> str:
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    sources = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in sources[name].shape[::-1]) for name in sorted(sources)}

    def blocks(name: str) -> Iterator[np.ndarray]:
        tensor = sources[name]
        part = tensor.name.split(".")[-2]
        if part in heads:  # the rows are permuted across the head: small, so whole
            yield _unpermute(dequantize(tensor.data, tensor.tensor_type), heads[part])
            return
        columns = int(tensor.shape[0])
        rows = max(1, BLOCK_BYTES // (4 * columns))
        data = tensor.data if tensor.data.ndim > 1 else tensor.data[None]
        for at in range(0, data.shape[0], rows):
            yield dequantize(np.ascontiguousarray(data[at : at + rows]), tensor.tensor_type)

    return write_safetensors(target, shapes, blocks, report)


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of the rotary halves (``LlamaModel.permute`` in its convert_hf_to_gguf.py).

    llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _hf_name(name: str) -> str:
    parts = name.split(".")
    stem, ending = parts[-2], parts[-1]
    if stem not in _LLAMA_NAMES or ending != "weight":
        raise ConversionError(f"unknown tensor {name}")
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{_LLAMA_NAMES[stem]}.{ending}"


def _config(meta: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    hidden, heads = int(meta["llama.embedding_length"]), int(meta["llama.attention.head_count"])
    # The GGUF stores float32; 9.99999975e-06 was written as 1e-05.
    eps = float(str(np.float32(meta["llama.attention.layer_norm_rms_epsilon"])))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(meta.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(meta.get("llama.attention.key_length", hidden // heads)),
        "hidden_act": "silu",
        "max_position_embeddings": int(meta["llama.context_length"]),
        "rms_norm_eps": eps,
        "rope_theta": float(meta.get("llama.rope.freq_base", 10000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
        **_special_ids(meta),
    }


def _special_ids(meta: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {
        key: int(meta[f"tokenizer.ggml.{name}_token_id"])
        for key, name in keys.items()
        if f"tokenizer.ggml.{name}_token_id" in meta
    }


def _generation_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    return _special_ids(meta)


def _tokenizer(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Make ``tokenizer.json``: byte-level BPE, digits one by one where the model was made so."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [byte_level]
    if meta.get("tokenizer.ggml.pre") in ("smollm", "starcoder", "refact", "codeshell"):  # llama.cpp, llama-vocab.cpp
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    added = [
        {
            "id": number, "content": token, "special": kind == _CONTROL,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    tokens = meta["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {
        key: tokens[int(meta[f"tokenizer.ggml.{name}_token_id"])]
        for key, name in names.items()
        if f"tokenizer.ggml.{name}_token_id" in meta
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(meta["llama.context_length"]),
        **special,
        **({"chat_template": meta["tokenizer.chat_template"]} if "tokenizer.chat_template" in meta else {}),
    }


def _write_json(path: Path, value: Mapping[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
