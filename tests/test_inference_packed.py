"""Reading with 8-bit products: near the stored weights, and never where this machine would get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from assistant.inference import architecture, packed
from assistant.inference.decoder import Decoder
from assistant.inference.quantized import llama_sources
from assistant.inference.weights import TensorFolder
from tests.test_inference_decoder import VOCAB, build

pytestmark = pytest.mark.skipif(not packed.supported(), reason="this CPU has no VNNI, so prompts are read without it")
TOKENS = torch.randint(0, VOCAB, (400,), generator=torch.Generator().manual_seed(3)).tolist()


def decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    arch = architecture.read(json.loads((folder / "config.json").read_text()))
    assert arch is not None
    return Decoder(arch, TensorFolder(folder), dtype=dtype, context_tokens=512)


def products(folder: Path, plain: Decoder, dtype: torch.dtype = torch.float32, text: list[int] | None = None):
    return packed.open_or_make(
        folder, llama_sources(plain.arch), TensorFolder(folder), plain.norms(), dtype,
        lambda: plain.peaks(TOKENS[:200] if text is None else text),
    )  # fmt: skip


def logits(model: Decoder, tokens: list[int]) -> torch.Tensor:
    return next(part for part in model.read(tokens, model.new_cache(len(tokens))) if part is not None).float()


@pytest.mark.parametrize("family", ["llama", "llama-biased", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_reading_stays_near_the_stored_weights(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(family, tmp_path)
    plain, small = decoder(tmp_path, dtype), decoder(tmp_path, dtype)
    found = products(tmp_path, plain, dtype)
    assert found is not None
    small.read_with(found)
    for length in (1, 33, 400):
        expected, ours = logits(plain, TOKENS[:length]), logits(small, TOKENS[:length])
        off = (ours - expected).norm() / (expected - expected.mean()).norm()
        assert 0 < off < 0.15, (length, off)  # 8 bits: not the same, and not far


@torch.inference_mode()
def test_channels_far_larger_than_others_cost_little(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    for layer in model.model.layers:  # as in trained models: a few channels of a norm stand out
        layer.input_layernorm.weight.data[:2] *= 60
        layer.post_attention_layernorm.weight.data[:2] *= 60
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj,
                     layer.mlp.gate_proj, layer.mlp.up_proj):  # fmt: skip
            part.weight.data[:, :2] /= 60
    model.save_pretrained(tmp_path)
    plain, small = decoder(tmp_path), decoder(tmp_path)
    expected = logits(plain, TOKENS)

    def off() -> float:
        found = products(tmp_path, plain)
        assert found is not None
        small.read_with(found)
        return float((logits(small, TOKENS) - expected).norm() / (expected - expected.mean()).norm())

    smoothed = off()
    (tmp_path / packed.FILE).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "smoothing", lambda peaks, weight: torch.ones_like(peaks))
        assert smoothed < off() / 2


@torch.inference_mode()
def test_the_file_is_made_once_and_again_when_it_is_damaged(tmp_path: Path) -> None:
    build("llama", tmp_path)
    plain = decoder(tmp_path)
    assert products(tmp_path, plain) is not None
    path = tmp_path / packed.FILE
    made, written = path.read_bytes(), path.stat().st_mtime_ns
    assert products(tmp_path, plain, text=[]) is not None, "an empty text would fail: it was not asked for"
    assert path.stat().st_mtime_ns == written
    path.write_bytes(made[:-50])
    assert products(tmp_path, plain) is not None
    assert path.read_bytes() == made


@torch.inference_mode()
def test_a_product_that_comes_out_wrong_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("llama", tmp_path)
    plain = decoder(tmp_path)
    right = packed.Scratch.product

    def wrong(self: packed.Scratch, x: torch.Tensor, scale: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
        return right(self, x, scale, compute).flip(1)

    monkeypatch.setattr(packed.Scratch, "product", wrong)
    assert products(tmp_path, plain) is None
    assert not (tmp_path / packed.FILE).exists()


def test_another_cpu_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert not packed.supported()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert packed.supported()
