"""Steps and reading in C: near torch, the same to the last bit however the work is cut, and never used when wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.inference import architecture, quantized
from assistant.inference.decoder import Decoder
from assistant.inference.local import LocalChatModel
from assistant.inference.native import build, layout
from assistant.inference.native.decoder import KernelDecoder, fits
from assistant.inference.native.trial import RandomWeights, differences
from assistant.inference.weights import TensorFolder
from assistant.worker import TorchWorker
from tests.test_inference_decoder import FAMILIES, VOCAB, last
from tests.test_inference_decoder import build as build_model
from tests.test_inference_quantized import small_model

ROOT = Path(__file__).resolve().parent.parent
needs_kernels = pytest.mark.skipif(
    build.library() is None, reason="the kernels were not built for this CPU: make kernels says why"
)
ARCH = architecture.Architecture(
    hidden=160, layers=3, heads=8, kv_heads=2, head_dim=96, intermediate=224, vocab=203, eps=1e-5, activation="silu",
    tied=False, max_positions=2048, rope={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip


def tokens_of(count: int, vocab: int = VOCAB, seed: int = 1) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / (exact - exact.mean()).norm())


class Rounded:
    """A model's weights as 8 bits leave them, as float32."""

    def __init__(self, folder: TensorFolder) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return name in self._folder

    def tensor(self, name: str) -> torch.Tensor:
        weight = self._folder.tensor(name)
        if not (name.endswith("proj.weight") or name == "lm_head.weight"):
            return weight
        ints, scale = quantized.to_int8(weight)
        return ints.float() * scale.float().unsqueeze(1)

    def drop(self, names: Any) -> None: ...


def kernels(arch: architecture.Architecture, weights: quantized.Weights, bits: int = 8, context: int = 2304):
    library = build.library()
    assert library is not None
    packed = layout.in_memory(quantized.llama_sources(arch), weights, bits)
    return KernelDecoder(library, arch, weights, packed, context_tokens=context)


def test_they_are_built_where_a_compiler_and_the_cpu_allow_it() -> None:
    if shutil.which("cc") is None or not {"avx2", "fma", "f16c"} <= set(build._cpu()):
        pytest.skip("this machine has no C compiler, or its CPU no AVX2")
    assert build.library() is not None, "make test builds them first"


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_near_those_of_the_same_weights_in_torch(family: str, tmp_path: Path) -> None:
    build_model(family, tmp_path)
    arch = architecture.read(json.loads((tmp_path / "config.json").read_text()))
    assert arch is not None
    assert fits(arch)
    weights = TensorFolder(tmp_path)
    exact = Decoder(arch, weights if arch.tied else Rounded(weights), dtype=torch.float32, context_tokens=2304)
    ours = kernels(arch, weights)
    for length in (1, 2, 47, 130, 700, 2000):
        tokens = tokens_of(length, seed=length)
        mine, theirs = ours.new_cache(length + 8), exact.new_cache(length + 8)
        # Activations of 8 bits and keys of bfloat16 in models whose random weights sharpen every difference; a bias or
        # a turn left out makes more than 0.5. A tied head is rounded in ours and not in theirs.
        assert 0 < off(last(ours, tokens, mine), last(exact, tokens, theirs)) < 0.1, length
        for width in (1, 3, 8):
            mine.length = theirs.length = length
            steps = torch.cat([exact.step([token], theirs) for token in tokens_of(width, seed=width)])
            assert off(ours.step(tokens_of(width, seed=width), mine), steps) < 0.1, (length, width)


@needs_kernels
@torch.inference_mode()
def test_four_bits_hold_weights_that_are_on_their_grid(tmp_path: Path) -> None:
    weights = RandomWeights(ARCH)
    exact = Decoder(ARCH, weights, dtype=torch.float32, context_tokens=512)
    ours = kernels(ARCH, weights, bits=4, context=512)
    tokens = tokens_of(300, ARCH.vocab)
    assert off(last(ours, tokens, ours.new_cache(300)), last(exact, tokens, exact.new_cache(300))) < 0.02


@needs_kernels
@torch.inference_mode()
def test_the_same_bits_come_out_however_the_work_is_cut() -> None:
    """Prompts read at once or in parts, steps of any width, any number of threads, other tokens forgotten before."""
    weights, tokens, more = RandomWeights(ARCH), tokens_of(1100, ARCH.vocab), tokens_of(300, ARCH.vocab, seed=2)
    expected: tuple[torch.Tensor, torch.Tensor] | None = None
    threads = torch.get_num_threads()
    try:
        for count, parts, widths in (
            (1, (1100,), (1,)),
            (2, (1, 31, 500, 568), (8,)),
            (3, (1099, 1), (3, 5, 2, 7, 4, 6)),
            (4, (320, 320, 460), (1, 4)),
        ):
            torch.set_num_threads(count)
            engine = kernels(ARCH, weights, bits=4)
            cache, at = engine.new_cache(1400), 0
            for part in parts:
                read = last(engine, tokens[at : at + part], cache)
                at += part
            if count == 2:  # a wrong draft
                engine.step(tokens_of(8, ARCH.vocab, seed=9), cache)
                cache.length -= 8
            rows: list[torch.Tensor] = []
            while len(rows) < len(more):
                width = min(widths[len(rows) % len(widths)], len(more) - len(rows), engine.step_room(cache))
                rows.extend(engine.step(more[len(rows) : len(rows) + width], cache))
            if expected is None:
                expected = read, torch.stack(rows)
            assert torch.equal(read, expected[0]), count
            assert torch.equal(torch.stack(rows), expected[1]), count
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@torch.inference_mode()
def test_a_copied_head_of_a_conversation_goes_on_as_the_original() -> None:
    engine = kernels(ARCH, RandomWeights(ARCH), bits=4)
    tokens = tokens_of(200, ARCH.vocab)
    whole, copy = engine.new_cache(300), engine.new_cache(600)
    expected = last(engine, tokens, whole)
    copy.take(whole, 96)
    assert torch.equal(last(engine, tokens[96:], copy), expected)


@needs_kernels
@torch.inference_mode()
def test_a_prompt_rests_often_and_a_reader_that_goes_leaves_nothing_behind() -> None:
    engine = kernels(ARCH, RandomWeights(ARCH), bits=4)
    tokens = tokens_of(1800, ARCH.vocab)
    cache = engine.new_cache(1800)
    parts = engine.read(tokens, cache)
    assert next(parts) is None
    parts.close()
    assert cache.length == 0
    rests = sum(part is None for part in engine.read(tokens, cache))
    assert rests >= ARCH.layers * 2
    again = engine.new_cache(1800)
    cache.length = 0
    assert torch.equal(last(engine, tokens, cache), last(engine, tokens, again))


@needs_kernels
def test_the_file_is_made_once_and_again_when_torch_needs_its_own(tmp_path: Path) -> None:
    build_model("llama", tmp_path)
    arch = architecture.read(json.loads((tmp_path / "config.json").read_text()))
    assert arch is not None
    sources, path = quantized.llama_sources(arch), tmp_path / "model.int8.safetensors"

    def make() -> dict[str, layout.Packed]:
        with torch.inference_mode():
            return layout.open_or_make(tmp_path, sources, TensorFolder(tmp_path), four_bits=False)[0]

    first = make()
    assert {packed.bits for packed in first.values()} == {8}
    whole, made = path.read_bytes(), path.stat().st_mtime_ns
    make()
    assert path.stat().st_mtime_ns == made
    with torch.inference_mode():
        quantized.open_or_make(tmp_path, sources, TensorFolder(tmp_path), four_bits=False, compute=torch.float32)
    assert path.read_bytes() != whole
    make()
    assert path.read_bytes() == whole


def test_widths_that_do_not_suit_them_run_on_torch(tmp_path: Path, worker: TorchWorker, packaged_models: Path) -> None:
    small_model(tmp_path, vocab=49152)  # heads of 16 dimensions; every token of the tokenizer below
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        source = packaged_models / "smollm2-135m-instruct" / name
        if source.is_file():
            (tmp_path / name).symlink_to(source)
    model = LocalChatModel(tmp_path, worker)
    assert model.runs_on.startswith("torch")
    assert isinstance(model._engine, Decoder)
    model.close()


@pytest.fixture
def worker() -> Iterator[TorchWorker]:
    worker = TorchWorker(2)
    yield worker
    worker.close()


SAY = """
import sys
from pathlib import Path
from assistant.inference import Sampling
from assistant.inference.local import LocalChatModel
from assistant.worker import TorchWorker
worker = TorchWorker(2)
model = LocalChatModel(Path(sys.argv[1]), worker)
messages = [{"role": "user", "content": "Why is the sky blue?"}]
text = "".join(model.start(messages, Sampling(max_new_tokens=8)))
sys.stdout.write(model.runs_on + "|" + text)
model.close()
worker.close()
"""


def test_the_packaged_model_says_the_same_with_them_and_without(packaged_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (packaged_models / "smollm2-135m-instruct").iterdir():
        if not path.name.startswith("model.int"):
            (folder / path.name).symlink_to(path.resolve())
    said = {}
    for switch in ("on", "off"):
        env = os.environ | {"ASSISTANT_KERNELS": switch, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SAY, str(folder)], env=env, capture_output=True, text=True, timeout=200, check=True
        )
        said[switch] = done.stdout.split("|")
    assert said["off"][0].startswith("torch")
    assert said["on"][0].startswith("torch" if build.library() is None else "kernels")
    assert said["on"][1] == said["off"][1] != ""


@needs_kernels
def test_kernels_that_are_wrong_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = build.SOURCE.read_text(encoding="utf-8")
    wrong = right.replace(
        "float peak = most_of(most), scale = peak / 127.0f;", "float peak = most_of(most), scale = peak / 120.0f;"
    )
    assert wrong != right
    source = tmp_path / "kernels.c"
    source.write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build._digest.cache_clear()
    try:
        with pytest.raises(build.KernelsNotBuiltError, match="off those of torch"):
            build.build()
        assert not list(tmp_path.rglob("*.so"))
    finally:
        build._digest.cache_clear()


EMULATED = """
#include <immintrin.h>
#include <string.h>
#define __AVXVNNI__ 1
static inline __m256i emulated_bytes(__m256i sum, __m256i a, __m256i b) {
    unsigned char u[32]; signed char s[32]; int out[8];
    memcpy(u, &a, 32); memcpy(s, &b, 32); memcpy(out, &sum, 32);
    for (int i = 0; i < 32; i++) out[i / 4] += u[i] * s[i];
    memcpy(&sum, out, 32);
    return sum;
}
#define _mm256_dpbusd_avx_epi32 emulated_bytes
static inline __m256i emulated_pairs(__m256i sum, __m256i a, __m256i b) {
    short x[16], y[16]; int out[8];
    memcpy(x, &a, 32); memcpy(y, &b, 32); memcpy(out, &sum, 32);
    for (int i = 0; i < 16; i++) out[i / 2] += x[i] * y[i];
    memcpy(&sum, out, 32);
    return sum;
}
#define _mm256_dpwssd_avx_epi32 emulated_pairs
#include "SOURCE"
"""


@needs_kernels
@pytest.mark.parametrize(("form", "text"), [("AVX2", '#include "SOURCE"'), ("AVX2 VNNI", EMULATED)])
def test_the_forms_for_other_cpus_are_right(tmp_path: Path, form: str, text: str) -> None:
    """Any CPU that has kernels tries these; the one for AVX-512 is tried where there is such a CPU, when it is built.

    The instructions of AVX-VNNI are emulated, so that it is all around them that is tried.
    """
    compiler = next(build._compilers())
    source, made = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(text.replace("SOURCE", str(build.SOURCE)), encoding="utf-8")
    flags = ["-O2", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    subprocess.run([*compiler, *flags, "-o", str(made), str(source), "-lm", "-lpthread"], check=True)
    found = build.opened(made)
    assert found is not None
    assert build.described(found) == form
    off = list(differences(found))
    assert 0 < min(off) <= max(off) < 0.03


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "kernels.c"
    source.write_text("#error other", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setattr(build, "_compilers", lambda: iter(()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_cpu", lambda: ("avx2", "fma", "f16c"))
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    build._digest.cache_clear()
    with pytest.raises(build.NoCompilerError, match="pip install ziglang"):
        build.build()
    monkeypatch.setattr(build, "_cpu", lambda: ("sse2",))
    with pytest.raises(build.KernelsNotBuiltError, match="lacks AVX2"):
        build.build()
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(build.KernelsNotBuiltError, match="x86-64"):
        build.build()
    build._digest.cache_clear()
