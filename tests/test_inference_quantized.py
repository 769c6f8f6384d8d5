"""int8 and int4 weights: what they round to, the file they are kept in, and CPUs without the fast kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from assistant.errors import StorageFullError
from assistant.inference import Sampling, architecture, quantized
from assistant.inference.local import LocalChatModel
from assistant.inference.weights import TensorFolder
from assistant.worker import TorchWorker

ROOT = Path(__file__).resolve().parent.parent


@torch.inference_mode()
def test_int8_errs_by_half_a_step_at_most() -> None:
    weight = torch.randn(70, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 70)[:, None]
    weight[5] = 0
    ints, scale = quantized.to_int8(weight.clone())
    back = ints.float() * scale.float()[:, None]
    assert ((back - weight).abs() <= 0.51 * scale.float()[:, None] + weight.abs() * 0.005).all()
    assert (back[5] == 0).all()


@torch.inference_mode()
def test_int4_keeps_weights_that_are_on_its_grid_and_tells_others() -> None:
    source = torch.Generator().manual_seed(0)
    ints = torch.randint(0, 16, (64, 4, 32), generator=source)
    ints[..., 0], ints[..., 1] = 0, 15  # as Q4_1 stores them, from the least to the greatest of a group
    on_grid = (ints * 0.03 - 0.2).view(64, 128)
    assert quantized.to_int4(on_grid)[2] < 0.01
    assert quantized.to_int4(torch.randn(64, 128, generator=source))[2] > 0.03


@torch.inference_mode()
def test_the_portable_product_gives_what_the_kernel_gives() -> None:
    source = torch.Generator().manual_seed(0)
    ints, scale = quantized.to_int8(torch.randn(96, 64, generator=source))
    x = torch.randn(3, 64, generator=source).bfloat16()
    fast, portable = quantized.int8_product(ints, scale)(x), quantized.portable_int8_product(ints, scale)(x)
    torch.testing.assert_close(fast.float(), portable.float(), atol=0.1, rtol=0.02)
    exact = x.float() @ (ints.float() * scale.float()[:, None]).t()
    torch.testing.assert_close(fast.float(), exact, atol=0.05, rtol=0.01)


def small_model(folder: Path, kind: str = "Llama", vocab: int = 200) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)


def test_the_file_is_made_once_and_again_when_it_must(tmp_path: Path) -> None:
    small_model(tmp_path)
    arch = architecture.read(json.loads((tmp_path / "config.json").read_text()))
    assert arch is not None
    sources, path = quantized.llama_sources(arch), tmp_path / "model.int8.safetensors"

    def make() -> dict[str, quantized.Linear]:
        with torch.inference_mode():
            tensors = TensorFolder(tmp_path)
            return quantized.open_or_make(tmp_path, sources, tensors, four_bits=False, compute=torch.bfloat16)[0]

    products = make()
    assert set(products) == {name for name, _ in sources}
    first = path.stat()
    make()
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    make()
    assert path.read_bytes() == whole
    small_model(tmp_path)  # the same weights, written anew: only the origin differs
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    make()
    assert path.read_bytes() != whole
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".model")] == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_model(tmp_path)
    arch = architecture.read(json.loads((tmp_path / "config.json").read_text()))
    assert arch is not None

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sources, tensors = quantized.llama_sources(arch), TensorFolder(tmp_path)
    with pytest.raises(StorageFullError, match="full"):
        quantized.open_or_make(tmp_path, sources, tensors, four_bits=False, compute=torch.bfloat16)
    assert not [entry for entry in tmp_path.iterdir() if "int8" in entry.name]


FP32 = """
import sys
from pathlib import Path
from assistant.inference import Sampling
from assistant.inference.local import LocalChatModel
from assistant.worker import TorchWorker
worker = TorchWorker(1)
model = LocalChatModel(Path(sys.argv[1]), worker)
messages = [{"role": "user", "content": "What is the capital of France?"}]
text = "".join(model.start(messages, Sampling(max_new_tokens=8)))
sys.stdout.write(model.dtype + "|" + str(worker.run(model._load).dtype) + "|" + text)
model.close()
worker.close()
"""


def test_a_cpu_without_bfloat16_computes_in_float32(packaged_models: Path) -> None:
    folder = packaged_models / "smollm2-135m-instruct"
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FP32, str(folder)], env=env, capture_output=True, text=True, timeout=200, check=True
    )
    dtype, compute, text = done.stdout.split("|")
    assert dtype in ("int4", "int8")
    assert compute == "torch.float32"
    assert text.strip()


@pytest.mark.parametrize("kind", ["Gemma3Text", "GPTNeoX", "Phi"])
def test_other_architectures_run_through_transformers(kind: str, tmp_path: Path, packaged_models: Path) -> None:
    """Their logits through our cache are their own; the whole loop runs, in bfloat16 and with int8 layers."""
    from assistant.inference.hosted import HostedModel

    torch.manual_seed(0)
    options = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 4, "max_position_embeddings": 512}  # fmt: skip
    if kind == "Gemma3Text":
        options |= {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32}
    config = getattr(transformers, f"{kind}Config")(**options)
    name = "Gemma3ForCausalLM" if kind == "Gemma3Text" else f"{kind}ForCausalLM"
    reference = getattr(transformers, name)(config).eval()
    reference.save_pretrained(tmp_path)
    tokens = torch.randint(0, 49152, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
        model = HostedModel(tmp_path, dtype=torch.float32)
        cache = model.new_cache(80)
        *_, logits = model.read(tokens[:60], cache)
        assert logits is not None
        torch.testing.assert_close(logits, expected[59], atol=1e-3, rtol=1e-3)
        for at in range(60, 70):
            torch.testing.assert_close(model.step([tokens[at]], cache)[0], expected[at], atol=1e-3, rtol=1e-3)
    packaged = packaged_models / "smollm2-135m-instruct"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((packaged / file).read_bytes())
    worker = TorchWorker(1)
    for dtype, used in (("bf16", "bf16"), ("int8", "int8")):
        chat = LocalChatModel(tmp_path, worker, dtype=dtype)
        generation = chat.start([{"role": "user", "content": "Hello there"}], Sampling(max_new_tokens=5))
        list(generation)
        assert generation.stats.new_tokens in range(1, 6)
        assert chat.dtype == used
        chat.close()
    worker.close()
