"""Our forward pass against transformers' own, on small random models of each architecture and on the packaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from assistant.errors import ModelBrokenError
from assistant.inference import architecture
from assistant.inference.cache import BLOCK
from assistant.inference.decoder import Decoder
from assistant.inference.weights import TensorFolder

VOCAB = 320
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2304,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}


def build(family: str, folder: Path) -> transformers.PreTrainedModel:
    """Save a small random model in float32 and return it."""
    kind, extra = FAMILIES[family]
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | extra))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.save_pretrained(folder)
    return model


def load(folder: Path, dtype: torch.dtype, context_tokens: int = 2304) -> Decoder:
    arch = architecture.read(json.loads((folder / "config.json").read_text()))
    assert arch is not None
    return Decoder(arch, TensorFolder(folder), dtype=dtype, context_tokens=context_tokens)


def last(decoder: Decoder, tokens: list[int], cache: Any) -> torch.Tensor:
    return next(part for part in decoder.read(tokens, cache) if part is not None).float()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    model = build(family, tmp_path)
    exact = load(tmp_path, torch.float32)
    rounded = load(tmp_path, torch.bfloat16)
    reference16 = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    errors_ours, errors_theirs = [], []
    for length in (1, 2, 63, 130, 700):
        tokens = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        expected = model(torch.tensor([tokens])).logits[0, -1].float()
        ours = last(exact, tokens, exact.new_cache(length))
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
        theirs = reference16(torch.tensor([tokens])).logits[0, -1].float()
        ours16 = last(rounded, tokens, rounded.new_cache(length))
        errors_theirs.append((theirs - expected).pow(2).mean())
        errors_ours.append((ours16 - expected).pow(2).mean())
    # bfloat16 rounds differently in every order of sums: we must be about as near to the exact logits as they are.
    assert sum(errors_ours) ** 0.5 <= 1.5 * sum(errors_theirs) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_steps_continue_what_was_read(family: str, tmp_path: Path) -> None:
    model = build(family, tmp_path)
    decoder = load(tmp_path, torch.float32)
    tokens = torch.randint(0, VOCAB, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = model(torch.tensor([tokens])).logits[0].float()
    cache = decoder.new_cache(len(tokens))
    last(decoder, tokens[:50], cache)
    last(decoder, tokens[50:60], cache)  # a second reading follows the first
    at = 60
    while at < len(tokens):
        width = min(1 + at % 4, decoder.step_room(cache), len(tokens) - at)
        rows = decoder.step(tokens[at : at + width], cache).float()
        torch.testing.assert_close(rows, expected[at : at + width], atol=2e-4, rtol=1e-4)
        at += width
    assert cache.length == len(tokens)


@torch.inference_mode()
def test_forgotten_tokens_leave_no_trace(tmp_path: Path) -> None:
    build("llama", tmp_path)
    decoder = load(tmp_path, torch.bfloat16)
    tokens = list(range(BLOCK - 10))
    clean, used = decoder.new_cache(200), decoder.new_cache(200)
    last(decoder, tokens, clean)
    last(decoder, tokens, used)
    decoder.step([5, 6, 7, 8], used)
    used.length -= 4
    for token in (11, 12, 13):
        assert torch.equal(decoder.step([token], clean), decoder.step([token], used))


def test_other_models_are_not_taken_for_llamas() -> None:
    llama = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1,
             "intermediate_size": 64, "vocab_size": 99}  # fmt: skip
    assert architecture.read(llama) is not None
    for strange in (
        {"model_type": "gemma3_text"},
        {"model_type": "gpt2"},
        {"model_type": "mistral", "sliding_window": 1024, "max_position_embeddings": 8192},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"hidden_act": "relu"},
        {"quantization_config": {"bits": 4}},
    ):
        assert architecture.read(llama | strange) is None, strange


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    build("llama", tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelBrokenError, match="truncated"):
        TensorFolder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no model at all")
    with pytest.raises(ModelBrokenError, match="safetensors"):
        TensorFolder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelBrokenError, match="lacks"):
        TensorFolder(tmp_path)
