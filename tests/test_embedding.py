"""The embedder: equal to sentence-transformers, bounded in memory, there when needed and gone when not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.embedding import Embedder, _batches, load_embedder
from assistant.errors import ModelBrokenError, ModelNotFoundError
from assistant.models import EMBEDDER, ResolvedModel, resolve
from assistant.worker import TorchWorker

TEXTS = [
    "How long is the notice period?",
    "The notice period is thirty days; for managers it is ninety.",
    "",
    "x",
    "naïve 😀 漢字 ¼ İstanbul ﬁ\u00a0\u200b e\u0301",
    "def f(x):\n    return x ** 2\n",
    " ".join(f"Sentence {n} of a long text about pumps and valves." for n in range(60)),  # far over 256 tokens
    "word " * 254,
    "tab\tand\r\nlines\n\n" * 9,
]


@pytest.fixture(scope="module")
def worker() -> Iterator[TorchWorker]:
    made = TorchWorker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def packaged(packaged_models: Path) -> ResolvedModel:
    return resolve("packaged", packaged_models, kind="embedder")


@pytest.fixture(scope="module")
def embedder(packaged: ResolvedModel, worker: TorchWorker) -> Iterator[Embedder]:
    made = load_embedder(packaged, worker)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference(packaged: ResolvedModel) -> Any:
    """The same folder through sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(packaged.path), device="cpu", local_files_only=True)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("bf16", 0.998)])
def test_vectors_equal_those_of_sentence_transformers(
    packaged: ResolvedModel, worker: TorchWorker, reference: Any, dtype: Any, least: float
) -> None:
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    embedder = load_embedder(packaged, worker, dtype=dtype)
    for batch_size in (1, 3, 8):
        found = embedder.embed(TEXTS, batch_size=batch_size)
        assert found.shape == (len(TEXTS), 384) == (len(TEXTS), embedder.dimension)
        assert found.dtype == np.float32
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert ((found * expected).sum(axis=1)).min() > least
    embedder.close()


def test_tokens_are_counted_and_placed_as_the_model_reads_them(embedder: Embedder, reference: Any) -> None:
    tokenizer = reference.tokenizer
    for text in TEXTS:
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        assert embedder.count(text) == len(ids)
        spans = embedder.offsets(text)
        assert len(spans) == len(ids) - 2
        assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert embedder.max_tokens == reference.max_seq_length == 256
    assert [TEXTS[0][a:b] for a, b in embedder.offsets(TEXTS[0])] == TEXTS[0].replace("?", " ?").split()


def test_the_langchain_interface_gives_lists(embedder: Embedder) -> None:
    from langchain_core.embeddings import Embeddings

    assert isinstance(embedder, Embeddings)
    documents = embedder.embed_documents(TEXTS[:2])
    query = embedder.embed_query(TEXTS[0])
    assert np.dot(documents[0], query) > 0.999
    assert np.dot(documents[1], query) > 0.5
    assert isinstance(query[0], float)
    assert embedder.embed([]).shape == (0, 384)


def _run(script: str, models: Path) -> None:
    """Run a script in a process of its own; its argument is the folder of models."""
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", script, str(models)], cwd=root, check=True, timeout=60)


def test_light_embedding_imports_neither_transformers_nor_sentence_transformers(packaged_models: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from assistant.embedding import load_embedder\nfrom assistant.models import resolve\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "from assistant.worker import TorchWorker\nworker = TorchWorker()\n"
        "load_embedder(resolve('packaged', Path(sys.argv[1]), kind='embedder'), worker).embed(['a b c'])\n"
        "heavy = {'transformers', 'sentence_transformers', 'scipy', 'sklearn', 'pandas', 'sympy', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\nworker.close()\n"
    )
    _run(script, packaged_models)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_numpy_embeds_as_torch_does(packaged: ResolvedModel, embedder: Embedder, pooling: Any) -> None:
    import torch

    from assistant.embedding.bert import BertForward
    from assistant.embedding.early import EarlyBert
    from assistant.embedding.folder import read_folder

    assert packaged.path is not None
    folder, weights = read_folder(packaged.path), packaged.path / "model.safetensors"
    ids = embedder._loaded().lengths(TEXTS)[0]
    with torch.inference_mode():
        expected = BertForward(weights, folder.config, pooling=pooling, dtype=torch.float32)(ids).numpy()
    found = EarlyBert(weights, folder.config, pooling=pooling)(ids)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 2e-6
    more = {**folder.config, "num_hidden_layers": 7}
    with pytest.raises(ModelBrokenError, match=r"no encoder\.layer\.6\."):
        EarlyBert(weights, more, pooling=pooling)


def test_a_few_texts_are_embedded_without_torch_until_it_is_there(packaged_models: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from assistant.embedding import load_embedder\nfrom assistant.models import resolve\n"
        "from assistant.worker import TorchWorker\nworker = TorchWorker(1)\n"
        "made = load_embedder(resolve('packaged', Path(sys.argv[1]), kind='embedder'), worker, early=True)\n"
        "texts = ['a b c', 'How long is the notice period?']\n"
        "first = made.embed(texts)\n"
        "assert made.dimension == 384 and 'torch' not in sys.modules and not made.loaded\n"
        "many = made.embed(texts * 40)\n"
        "assert 'torch' in sys.modules and worker.ready and made.loaded and made._early is None\n"
        "then = made.embed(texts)\n"
        "assert (abs(first - then) < .01).all() and (abs(many[:2] - then) < .01).all()\n"
        "made.unload()\nmade.embed(texts)\nassert made.loaded\nmade.close()\nworker.close()\n"
    )
    _run(script, packaged_models)


def test_unloading_frees_and_the_next_use_maps_again(packaged: ResolvedModel, worker: TorchWorker) -> None:
    import gc
    import weakref

    embedder = load_embedder(packaged, worker)
    before = embedder.embed(TEXTS[:2])
    assert embedder.loaded
    gone = weakref.ref(embedder._backend._forward)  # type: ignore[union-attr]
    embedder.unload()
    gc.collect()
    assert not embedder.loaded
    assert gone() is None, "something still holds the weights"
    assert (embedder.embed(TEXTS[:2]) == before).all()
    assert embedder.loaded
    embedder.close()
    embedder.close()
    assert not embedder.loaded


def test_weights_of_the_computed_type_stay_mapped(packaged: ResolvedModel, worker: TorchWorker) -> None:
    """The file's name stands in the process's map of memory, once loaded."""
    embedder = load_embedder(packaged, worker, dtype="bf16")
    embedder.embed(["touch it"])
    assert "model.bf16.safetensors" in Path("/proc/self/maps").read_text()
    embedder.close()


def test_many_batch_shapes_do_not_grow_memory(packaged: ResolvedModel, worker: TorchWorker) -> None:
    """Half a megabyte stayed for every new matrix size when batches were multiplied whole: 150 MB here."""
    from assistant import memory

    embedder = load_embedder(packaged, worker)
    embedder.embed([" ".join(["word"] * 240)] * 4)
    embedder.embed(["word " * n for n in (1, 2, 20, 40, 80, 160)], batch_size=1)
    memory.release()
    before = memory.anonymous_rss()
    for words in range(5, 205, 4):
        embedder.embed(["word " * words] * (1 + words % 4))
    memory.release()
    assert memory.anonymous_rss() - before < 30 << 20
    embedder.close()


def test_callers_from_many_threads_get_their_own_vectors(embedder: Embedder) -> None:
    expected = embedder.embed(TEXTS)
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(5):
            if float(embedder.embed([TEXTS[number]])[0] @ expected[number]) < 0.999:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_huge_text_costs_no_more_than_its_beginning(embedder: Embedder) -> None:
    start = "The pump must be serviced every six months. " * 60
    long, short = embedder.embed([start + "x " * 2_000_000, start])
    assert float(long @ short) > 0.999


def test_known_texts_come_from_the_disk_cache(packaged: ResolvedModel, worker: TorchWorker, tmp_path: Path) -> None:
    made = load_embedder(packaged, worker, cache_dir=tmp_path / "cache", cache_bytes=1 << 20)
    first = made.embed(TEXTS[:3], remember=True)
    made.close()
    again = load_embedder(packaged, worker, cache_dir=tmp_path / "cache", cache_bytes=1 << 20)
    computed: list[int] = []
    backend = again._backend
    vectors = backend.vectors  # type: ignore[union-attr]
    backend.vectors = lambda batch: computed.append(len(batch)) or vectors(batch)  # type: ignore
    assert (again.embed(TEXTS[:3], remember=True) == first).all()
    assert computed == []
    mixed = again.embed([TEXTS[3], TEXTS[1], TEXTS[4]], remember=True)
    assert sum(computed) == 2
    assert (mixed[1] == first[1]).all()
    again.embed(TEXTS[:1])
    assert sum(computed) == 3, "questions are not looked up"
    again.close()


def test_the_disk_cache_keeps_its_size_and_can_be_lost(
    packaged: ResolvedModel, worker: TorchWorker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from assistant.embedding.cache import EmbeddingCache

    limit = 1 << 20
    cache = EmbeddingCache(tmp_path / "cache", max_bytes=limit, model="m")
    vector = np.ones(384, dtype=np.float32)
    for n in range(40):
        cache.put({f"{n} {k}": vector for k in range(50)})
    cache.close()
    assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*")) < 2.5 * limit
    assert EmbeddingCache(tmp_path / "cache", max_bytes=limit, model="other").get(["39 49"]) == {}

    (tmp_path / "file").write_text("no folder")
    embedder = load_embedder(packaged, worker, cache_dir=tmp_path / "file", cache_bytes=limit)
    assert embedder.embed(["a"], remember=True).shape == (1, 384)
    assert "embedding cache is off" in caplog.text
    embedder.close()


def test_other_models_run_through_sentence_transformers(
    packaged: ResolvedModel, packaged_models: Path, worker: TorchWorker, tmp_path: Path, embedder: Embedder
) -> None:
    """The same weights declared as a model that our forward pass does not claim to know."""
    folder = tmp_path / "other"
    shutil.copytree(packaged_models / EMBEDDER.name, folder)
    (folder / "manifest.json").unlink()
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"note": ""}}))
    other = load_embedder(resolve(str(folder), packaged_models, kind="embedder"), worker, dtype="fp32")
    assert type(other._backend).__name__ == "SentenceTransformersBackend"
    assert (other.dimension, other.max_tokens) == (384, 256)
    assert (other.embed(TEXTS) * embedder.embed(TEXTS)).sum(axis=1).min() > 0.998
    assert [other.count(text) for text in TEXTS] == [embedder.count(text) for text in TEXTS]
    assert other.offsets(TEXTS[4]) == embedder.offsets(TEXTS[4])
    other.close()


def test_fingerprint_follows_the_model_and_not_its_place(
    packaged: ResolvedModel, worker: TorchWorker, tmp_path: Path, embedder: Embedder
) -> None:
    from assistant.embedding.folder import read_folder

    assert packaged.path is not None
    folder = tmp_path / "moved"
    shutil.copytree(packaged.path, folder)
    (folder / "manifest.json").unlink()
    assert read_folder(folder).fingerprint == embedder.fingerprint
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    assert read_folder(folder).fingerprint != embedder.fingerprint


def test_what_is_no_embedder_is_said(worker: TorchWorker, packaged: ResolvedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not an embedding model"):
        load_embedder(ResolvedModel("none", "none"), worker)
    assert packaged.path is not None
    folder = tmp_path / "wrong"
    shutil.copytree(packaged.path, folder)
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(ModelBrokenError, match="can't be used as a BERT embedder"):
        load_embedder(ResolvedModel("folder", "wrong", folder), worker, dtype="fp32")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelBrokenError, match=r"tokenizer\.json can't be read"):
        load_embedder(ResolvedModel("folder", "wrong", folder), worker, dtype="fp32")


def test_an_older_cpu_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    from assistant.embedding.backends import cpu_has_bf16

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not cpu_has_bf16()


@given(st.lists(st.integers(min_value=2, max_value=256), max_size=60), st.integers(min_value=1, max_value=16))
@settings(max_examples=200, deadline=None)
def test_batches_hold_every_text_once_and_little_padding(lengths: list[int], size: int) -> None:
    batches = _batches(lengths, size)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    firsts = [[lengths[position] for position in batch] for batch in batches]
    assert all(sorted(batch, reverse=True) == batch for batch in firsts)
    assert [max(batch) for batch in firsts] == sorted((max(batch) for batch in firsts), reverse=True)


def test_a_short_text_beside_other_work_takes_one_core_and_gives_the_others_back(
    packaged: ResolvedModel, worker: TorchWorker
) -> None:
    import torch

    with_cores = worker.run(torch.get_num_threads)
    embedder = load_embedder(packaged, worker)
    seen = []
    forward = embedder._loaded().vectors
    embedder._loaded().vectors = lambda batch: seen.append(torch.get_num_threads()) or forward(batch)  # type: ignore[method-assign]
    short, long = "How long is the notice period?", "A notice period binds both sides. " * 40
    found = embedder.embed([short], beside=True)
    assert np.allclose(found, embedder.embed([short]), atol=1e-2)
    embedder.embed([long], beside=True)
    assert seen == [1, with_cores, with_cores]
    assert worker.run(torch.get_num_threads) == with_cores
