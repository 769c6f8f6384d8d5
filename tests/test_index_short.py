"""Short vectors: what the shortlist loses, what is exact afterwards, and indexes that were full before."""

from __future__ import annotations

import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from assistant import Assistant, Settings, memory
from assistant.chunking import split
from assistant.embedding import Embedder
from assistant.embedding.folder import read_folder
from assistant.errors import IndexStoreError, StorageFullError
from assistant.index import Index, short, short_dimension
from assistant.index.catalog import Catalog
from assistant.index.vectors import VectorStore
from assistant.records import Chunk, DocumentInfo, Scope, Segment
from assistant.settings import ROOT

ANYONE = Scope()
DIMENSION, HELD = 16, 4
INFO = DocumentInfo("d", "/d", "d", "ready", "hash", 10, 1, 0, 1.0)


@pytest.fixture
def directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the directions of an embedder that is called "test"."""
    folder = tmp_path / "directions"
    folder.mkdir()
    monkeypatch.setattr(short, "FOLDER", folder)
    np.save(folder / "test.npy", np.eye(DIMENSION, HELD, dtype="<f2"))
    return folder / "test.npy"


def opened(folder: Path) -> Index:
    return Index.open(folder, dimension=DIMENSION, fingerprint="test")


def drawn(count: int, *, seed: int = 1) -> np.ndarray:
    """Draw vectors whose first numbers, those that are held, say most."""
    found = np.random.default_rng(seed).standard_normal((count, DIMENSION)) / np.arange(1, DIMENSION + 1)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def fill(index: Index, vectors: np.ndarray) -> list[str]:
    chunks = [Chunk(f"c{n}", "d", n, f"text {n}", n * 9, n * 9 + 8) for n in range(len(vectors))]
    index.begin_document(INFO)
    index.add_chunks("d", chunks, vectors)
    index.finish_document("d", info=INFO)
    return [chunk.id for chunk in chunks]


def held(index: Index) -> int:
    """Return how many numbers of a vector Chroma holds."""
    store = index._chroma.store()
    return int(store.vectors_of(next(store.ids())[:1]).shape[1])


def test_the_shortlist_of_real_text_holds_the_nearest(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "samples").glob("*.md")])
    parts = [c for file in files for c in split([Segment(file.read_text())], embedder, document_id=file.name)]
    vectors = embedder.embed([chunk.text for chunk in parts])
    questions = embedder.embed([chunk.text.split(". ")[0][:120] for chunk in parts[::3]])
    monkeypatch.setattr(short, "_LEAST", 20)  # of some 70 chunks
    monkeypatch.setattr(short, "_WIDER", 2)
    with Index.open(tmp_path, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        names = fill(index, vectors)
        assert len(names) > 3 * 20
        found = index.dense_many(questions, 10, ANYONE)
        true = np.argsort(-(questions @ vectors.T), axis=1)[:, :10]
        shares = [len({name for name, _ in own} & {names[n] for n in best}) / 10
                  for own, best in zip(found, true, strict=True)]  # fmt: skip
        assert np.mean(shares) > 0.97
        assert held(index) == short_dimension(embedder.fingerprint, embedder.dimension) < embedder.dimension / 2
        for own, question in zip(found, questions, strict=True):
            cosines = vectors[[names.index(name) for name, _ in own]] @ question
            assert [cosine for _, cosine in own] == pytest.approx(cosines.tolist(), abs=1e-3)


@pytest.mark.usefixtures("directions")
def test_order_and_cosine_are_those_of_the_whole_vectors(tmp_path: Path) -> None:
    vectors, questions = drawn(80), drawn(20, seed=2)
    with opened(tmp_path / "store") as index:
        names = fill(index, vectors)
        assert held(index) == HELD
        for question, own in zip(questions, index.dense_many(questions, 80, ANYONE), strict=True):
            assert [name for name, _ in own[:5]] == [names[n] for n in np.argsort(-(vectors @ question))[:5]]
            assert [cosine for _, cosine in own] == pytest.approx(sorted(vectors @ question)[::-1], abs=1e-3)
        assert index.vectors_of(names) == pytest.approx(vectors, abs=1e-3)
        assert len(index.dense(np.zeros(DIMENSION, np.float32), 3, ANYONE)) == 3
        with pytest.raises(IndexStoreError, match="1 chunks have no vector"):
            index.vectors_of(["c0", "nobody"])


def test_a_full_index_stays_full_until_it_is_compacted(tmp_path: Path, directions: Path) -> None:
    kept, folder = directions.rename(tmp_path / "later.npy"), tmp_path / "store"
    vectors = drawn(60)
    with opened(folder) as index:
        names = fill(index, vectors)
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:  # as the format before it was
        connection.executescript("DROP TABLE exact; DROP TABLE directions; PRAGMA user_version = 3;")
    kept.rename(directions)
    with opened(folder) as index, opened(folder) as other:
        assert held(index) == DIMENSION
        assert index.check().healthy
        before = index.dense(vectors[7], 9, ANYONE)
        assert other.dense(vectors[7], 9, ANYONE) == before
        index.compact(force=True)
        assert held(index) == HELD
        assert index.check().healthy
        assert index.vectors_of(names) == pytest.approx(vectors, abs=1e-3)
        for again in (index, other):
            after = again.dense(vectors[7], 9, ANYONE)
            assert [name for name, _ in after] == [name for name, _ in before]
            assert [cosine for _, cosine in after] == pytest.approx([cosine for _, cosine in before], abs=1e-3)
    with opened(folder) as index:
        index.compact(force=True)  # short ones are copied as they are
        assert index.dense(vectors[7], 1, ANYONE)[0][0] == "c7"
        assert index.check().healthy


def test_an_index_keeps_the_directions_it_was_made_with(tmp_path: Path, directions: Path) -> None:
    vectors = drawn(60)
    with opened(tmp_path / "store") as index:
        fill(index, vectors)
    np.save(directions, np.eye(DIMENSION, HELD, -2, dtype="<f2"))  # other ones
    for _ in range(2):
        with opened(tmp_path / "store") as index:
            index.compact(force=True)
            assert index.dense(vectors[7], 1, ANYONE)[0][0] == "c7"
            assert index.check().healthy
        directions.unlink(missing_ok=True)


@pytest.mark.parametrize("damage", [b"", b"not an array", b"short"])
def test_damaged_directions_are_said(tmp_path: Path, directions: Path, damage: bytes) -> None:
    directions.write_bytes(directions.read_bytes()[:-9] if damage == b"short" else damage)
    with pytest.raises(IndexStoreError, match="Install this program again"):
        opened(tmp_path / "store")


def test_directions_of_another_length_are_said(tmp_path: Path, directions: Path) -> None:
    np.save(directions, np.eye(DIMENSION + 1, HELD, dtype="<f2"))
    with pytest.raises(IndexStoreError, match="its shape is"):
        opened(tmp_path / "store")


@pytest.mark.usefixtures("directions")
def test_a_crash_between_chroma_and_the_exact_vectors_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, folder = drawn(4), tmp_path / "store"

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with opened(folder) as index, monkeypatch.context() as patch:
        patch.setattr(Catalog, "put_exact", staticmethod(dies))
        with pytest.raises(KeyboardInterrupt):
            fill(index, vectors)
    with opened(folder) as index:
        assert len(index.check().missing_vectors) == 4
        assert index.dense(vectors[2], 4, ANYONE) == []  # Chroma has them; nothing says how near they are
        assert index.repair(lambda texts: vectors[[int(text.split()[1]) for text in texts]]).healthy
        assert index.dense(vectors[2], 4, ANYONE)[0][0] == "c2"


@pytest.mark.usefixtures("directions")
def test_exact_vectors_go_with_their_chunks_and_lost_ones_are_found(tmp_path: Path) -> None:
    vectors, folder = drawn(4), tmp_path / "store"
    with opened(folder) as index:
        fill(index, vectors)
        index.drop_chunks("d", ["c0"])
        with closing(sqlite3.connect(folder / "index.sqlite3")) as connection, connection:
            assert connection.execute("SELECT count(*) FROM exact").fetchone() == (3,)
            connection.execute("DELETE FROM exact WHERE number = (SELECT number FROM chunks WHERE id = 'c1')")
        assert index.check().missing_vectors == ("c1",)
        assert index.repair(lambda texts: vectors[[int(text.split()[1]) for text in texts]]).healthy
        index.remove_document("d")
        with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
            assert connection.execute("SELECT count(*) FROM exact").fetchone() == (0,)
        assert index.check().healthy


@pytest.mark.usefixtures("directions")
def test_chunks_that_could_not_leave_take_no_others_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(4)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(tmp_path / "store") as index:
        fill(index, vectors)
        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "delete", full)
            with pytest.raises(StorageFullError):
                index.drop_chunks("d", ["c2", "c3"])
        index.add_chunks("d", [Chunk("c9", "d", 9, "text 9", 90, 98)], vectors[:1])
        fill(index, vectors[:3])
        index.drop_chunks("d", ["c0"])
        assert index.dense(vectors[0], 9, ANYONE)[0][0] == "c9"
        assert index.dense(vectors[2], 9, ANYONE)[0][0] == "c2"
        assert index.check().healthy


@pytest.mark.usefixtures("directions")
def test_no_number_is_given_twice(tmp_path: Path) -> None:
    """Chroma knows chunks by them; a process that is behind would take a chunk for another, whoever owns that."""
    with opened(tmp_path / "store") as index:
        fill(index, drawn(3))
        before = set(index._catalog.keys().values())
        index.remove_document("d")
        fill(index, drawn(3))
        assert not before & set(index._catalog.keys().values())


def test_the_plan_counts_what_the_index_holds(
    tmp_path: Path, packaged_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model="none", models_dir=packaged_models, store_dir=tmp_path / "store",
                        history_dir=tmp_path / "history")  # fmt: skip

    def planned(*, fill: bool = False, compact: bool = False) -> int:
        with Assistant(settings) as assistant:
            if fill:
                assistant.ingest([ROOT / "samples/handbook.md"])
            if compact:
                assistant.compact_index()
        with Assistant(settings) as assistant:
            report = assistant.memory_report()
            plan = assistant.parts.plan
            assert report.plan is not None
            assert report.plan.chunk_bytes == plan.chunk_bytes
            return plan.chunk_bytes

    made_by = read_folder(packaged_models / "all-minilm-l6-v2").fingerprint
    small, full = memory.bytes_a_chunk(short_dimension(made_by, 384), short=True), memory.bytes_a_chunk(384)
    assert small < 0.6 * full
    assert planned() == small
    with monkeypatch.context() as patch:
        patch.setattr(short, "FOLDER", tmp_path / "none")
        assert planned(fill=True) == full
    assert planned() == full  # the index that is there counts
    assert planned(compact=True) == small


def test_whatever_the_package_reads_is_installed_with_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["assistant"]
    installed = {path for pattern in patterns for path in (ROOT / "assistant").glob(pattern)}
    there = {path for path in (ROOT / "assistant").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    built = {".py", ".so"}  # the kernels are compiled on the machine that runs them
    assert {path for path in there if path.suffix not in built} <= installed
