"""The index: one write path into SQLite and Chroma, and what survives a crash between them."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assistant import memory
from assistant.errors import IndexStoreError, StorageFullError, UnknownDocumentError
from assistant.index import Index, short
from assistant.index.failures import explain
from assistant.index.vectors import VectorStore
from assistant.records import SHARED, Chunk, DocumentInfo, Scope

DIMENSION = 16
ANYONE = Scope()


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """Give each text its own direction, the same in every process."""
    rows = [np.random.default_rng(sum(text.encode()) + len(text)).standard_normal(DIMENSION) for text in texts]
    found = np.array(rows, np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def document(name: str, owner: str = SHARED, session_id: str | None = None) -> DocumentInfo:
    return DocumentInfo(f"id-{name}", f"/docs/{name}", name, "partial", "hash", 10, 1, 0, 1.0, owner=owner,
                        session_id=session_id, metadata={"kind": "test"})  # fmt: skip


def chunks_of(name: str, texts: Sequence[str]) -> list[Chunk]:
    starts = [sum(len(text) + 1 for text in texts[:n]) for n in range(len(texts))]
    return [
        Chunk(f"{name}-{n}-{text}", f"id-{name}", n, text, start, start + len(text), line=n + 1, heading="Top > Sub")
        for n, (text, start) in enumerate(zip(texts, starts, strict=True))
    ]


def fill(index: Index, name: str, texts: Sequence[str], **who: str) -> list[Chunk]:
    info = document(name, **who)
    chunks = chunks_of(name, texts)
    index.begin_document(info)
    index.add_chunks(info.id, chunks, vectors_of(texts))
    index.finish_document(info.id, info=replace(info, status="ready"))
    return chunks


def opened(folder: Path) -> Index:
    return Index.open(folder, dimension=DIMENSION, fingerprint="test")


@pytest.fixture(autouse=True, params=["full", "short"])
def _vectors(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test on an index whose vectors are full, and on one where Chroma holds a part of their numbers."""
    folder = tmp_path / "directions"
    folder.mkdir()
    monkeypatch.setattr(short, "FOLDER", folder)
    if request.param == "short":
        turned = np.linalg.qr(np.random.default_rng(0).standard_normal((DIMENSION, DIMENSION)))[0]
        np.save(folder / "test.npy", turned[:, : DIMENSION // 2].astype("<f2"))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with opened(tmp_path / "store") as index:
        yield index
        assert index.check().problems == ()


def test_a_document_comes_back_whole(index: Index) -> None:
    chunks = fill(index, "a.txt", ["The notice period is one month.", "Trains leave at nine."])
    assert index.chunks([chunk.id for chunk in chunks]) == chunks
    assert index.chunk_count() == 2
    info = index.find_document("a.txt")
    assert (info.status, info.chunk_count, info.metadata) == ("ready", 2, {"kind": "test"})
    assert index.get_document(info.id) == info == index.find_document("/docs/a.txt")
    assert index.text(info.id, 4, 40) == "notice period is one month.\nTrains l"
    assert index.neighbours(chunks[0], 1, 1) == [chunks[1]]


def test_both_searches_find_it_and_stems_match(index: Index) -> None:
    chunks = fill(index, "a.txt", ["Notice periods of café managers.", "Trains leave at nine."])
    [(name, cosine)] = index.dense(vectors_of([chunks[1].text])[0], 1, ANYONE)
    assert name == chunks[1].id
    assert cosine == pytest.approx(1, abs=1e-4)
    assert [name for name, _ in index.lexical('"period" OR "cafe"', 5, ANYONE)] == [chunks[0].id]
    assert index.lexical('"train"', 5, ANYONE)[0][1] > 0
    assert index.frequency("leaving") == 1


def test_places_are_kept(index: Index) -> None:
    chunk = replace(chunks_of("a.txt", ["one apple\ntwo pears"])[0], row=4, places=((10, 7, None),))
    fill(index, "a.txt", ["none"])
    index.add_chunks("id-a.txt", [chunk], vectors_of([chunk.text]))
    assert index.chunks([chunk.id]) == [chunk]
    assert [chunk.place_at(offset) for offset in (0, 9, 10)] == [(4, 1), (4, 1), (7, None)]
    moved = replace(chunk, row=5, places=())
    index.move_chunks("id-a.txt", [moved])
    assert index.chunks([chunk.id]) == [moved]
    assert moved.place_at(10) == (6, 2)


def test_adding_again_replaces_and_moves(index: Index) -> None:
    fill(index, "a.txt", ["one apple", "two pears"])
    chunks = fill(index, "a.txt", ["one apple", "two pears"])
    assert index.chunk_count() == 2
    moved = replace(chunks[1], position=5, start=100, end=109, heading="New")
    index.move_chunks(moved.document_id, [moved])
    assert index.chunks([moved.id]) == [moved]
    assert index.lexical('heading:"new"', 3, ANYONE)[0][0] == moved.id


@pytest.mark.parametrize("way", ["dense", "lexical"])
def test_scopes_keep_documents_apart(index: Index, way: str) -> None:
    fill(index, "all.txt", ["a shared apple"])
    fill(index, "ann.txt", ["an apple of ann"], owner="ann")
    fill(index, "chat.txt", ["an apple in this chat"], owner="ann", session_id="s1")

    def seen(scope: Scope, ids: list[str] | None = None) -> set[str]:
        vector = vectors_of(["apple"])[0]
        hits = index.dense(vector, 9, scope, ids) if way == "dense" else index.lexical('"apple"', 9, scope, ids)
        return {name.partition(".")[0] for name, _ in hits}

    assert seen(Scope("ann", "s1")) == {"all", "ann", "chat"}
    assert seen(Scope("ann", "s2")) == {"all", "ann"}
    assert seen(Scope("bob", "s1")) == {"all"}
    assert seen(Scope("ann", "s1"), ["id-ann.txt", "id-chat.txt"]) == {"ann", "chat"}
    assert seen(Scope("bob"), ["id-ann.txt"]) == seen(Scope("ann"), []) == set()
    assert [info.name for info in index.documents(Scope("bob"))] == ["all.txt"]


def test_removing_leaves_nothing_behind(index: Index) -> None:
    fill(index, "a.txt", ["one apple", "two pears"])
    kept = fill(index, "b.txt", ["three plums"])
    index.remove_document("id-a.txt")
    report = index.check()
    assert (report.documents, report.chunks, report.vectors, report.healthy) == (1, 1, 1, True)
    assert index.lexical('"apple" OR "plum"', 5, ANYONE)[0][0] == kept[0].id
    with pytest.raises(UnknownDocumentError):
        index.remove_document("id-a.txt")
    with pytest.raises(UnknownDocumentError, match=r"It has: b\.txt"):
        index.find_document("a.txt")


def test_dropped_chunks_and_refused_documents_go(index: Index) -> None:
    chunks = fill(index, "a.txt", ["one apple", "two pears"])
    index.drop_chunks("id-a.txt", [chunks[0].id])
    assert index.chunk_ids("id-a.txt") == [chunks[1].id]
    index.refuse_document(replace(document("a.txt"), status="refused", reason="it is broken"))
    assert index.chunk_count() == 0
    assert index.find_document("a.txt").reason == "it is broken"


def test_a_crash_before_chroma_is_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        fill(index, "a.txt", ["one apple"])

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "upsert", dies)
            with pytest.raises(KeyboardInterrupt):
                index.add_chunks("id-a.txt", chunks_of("a.txt", ["two pears"]), vectors_of(["two pears"]))
    with opened(folder) as index:
        report = index.check()
        assert report.missing_vectors == ("a.txt-0-two pears",)
        assert not report.healthy
        assert index.chunk_ids("id-a.txt") == ["a.txt-0-one apple"]  # an ingest that goes on embeds the other again
        assert index.repair(vectors_of).healthy
        assert index.dense(vectors_of(["two pears"])[0], 1, ANYONE)[0][0] == "a.txt-0-two pears"


def test_a_crash_while_removing_is_finished_by_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        fill(index, "a.txt", ["one apple", "two pears"])

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "delete", dies)
            with pytest.raises(KeyboardInterrupt):
                index.remove_document("id-a.txt")
        assert index.check().stray_vectors
    with opened(folder) as index:
        assert index.check() == replace(index.check(), documents=0, chunks=0, vectors=0, problems=())


def test_a_lost_chroma_folder_is_rebuilt(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        fill(index, "a.txt", ["one apple", "two pears"])
    shutil.rmtree(folder / "vectors-1")
    with opened(folder) as index:
        assert len(index.check().missing_vectors) == 2
        assert index.repair(vectors_of).healthy


def test_words_out_of_step_are_rebuilt(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        chunks = fill(index, "a.txt", ["one apple", "two pears"])
    with sqlite3.connect(folder / "index.sqlite3") as connection:
        connection.execute("INSERT INTO words(words) VALUES ('delete-all')")
    connection.close()
    with opened(folder) as index:
        assert "words" in index.check().problems[0]
        assert index.repair(vectors_of).healthy
        assert index.lexical('"apple"', 5, ANYONE)[0][0] == chunks[0].id


def test_compacting_gives_disk_space_back(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as index:
        rng = np.random.default_rng(0)
        for name in ("a.txt", "b.txt"):
            texts = [f"{name} sentence {n} {rng.integers(1 << 60)}" * 4 for n in range(600)]
            fill(index, name, texts)
        full = VectorStore.bytes_on_disk(index.folder)
        index.remove_document("id-a.txt")
        assert VectorStore.bytes_on_disk(index.folder) < 0.75 * full
        assert index.check().healthy
        assert index.compact() == 0  # nothing left worth it
        fill(index, "c.txt", ["one more"])
        index.remove_document("id-c.txt")
        assert VectorStore.bytes_on_disk(index.folder / "vectors-2") > 0  # too little to copy anything again
        assert index.compact(force=True) >= 0
        assert index.dense(vectors_of([texts[3]])[0], 1, ANYONE)[0][0].endswith(texts[3])


@pytest.mark.parametrize("when", ["copying", "after it took over"])
def test_a_compaction_that_is_killed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        fill(index, "a.txt", ["one apple"])
        fill(index, "b.txt", ["two pears"])
        index.remove_document("id-a.txt")
        copy = VectorStore.copy_to

        def dies(*arguments: object) -> None:
            if when == "copying" and len(arguments) == 2:
                copy(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "copy_to" if when == "copying" else "erase",
                          dies if when == "copying" else staticmethod(dies))  # fmt: skip
            if when != "copying":  # the first call clears the way, the second is the one that must not be reached
                calls = iter([lambda _: None, dies])
                patch.setattr(VectorStore, "erase", staticmethod(lambda path: next(calls)(path)))
            with pytest.raises(KeyboardInterrupt):
                index.compact(force=True)
        assert len(list(folder.glob("vectors-*"))) == 2
    with opened(folder) as index:
        assert len(list(folder.glob("vectors-*"))) == 1
        assert index.check() == replace(index.check(), documents=1, chunks=1, vectors=1, problems=())
        assert index.dense(vectors_of(["two pears"])[0], 1, ANYONE)[0][0] == "b.txt-0-two pears"


def test_an_index_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with opened(folder) as index:
        (chunk,) = fill(index, "a.txt", ["one apple"])
    with sqlite3.connect(folder / "index.sqlite3") as connection:
        connection.execute("ALTER TABLE chunks DROP COLUMN places")
        connection.execute("DROP TRIGGER chunk_counted")
        connection.execute("DROP TRIGGER chunk_discounted")
        connection.execute("ALTER TABLE documents DROP COLUMN chunks")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    for _ in range(2):
        with opened(folder) as index:
            assert index.chunks([chunk.id]) == [chunk]
            assert [info.chunk_count for info in index.documents()] == [1]
            assert index.check().healthy
    with opened(folder) as index:
        fill(index, "b.txt", ["two pears", "three plums"])
        index.drop_chunks("b.txt", ["b.txt-0-two pears"])
        assert sorted((info.name, info.chunk_count) for info in index.documents()) == [("a.txt", 1), ("b.txt", 1)]


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(IndexStoreError, match="another embedder"):
        Index.open(tmp_path, dimension=DIMENSION, fingerprint="other")
    with pytest.raises(IndexStoreError, match="another embedder"):
        Index.open(tmp_path, dimension=8, fingerprint="test")


def _write_from_elsewhere(folder: Path) -> None:
    with opened(folder) as index:
        fill(index, "other.txt", ["three plums", "four figs"])


def test_two_processes_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assistant.index.shared._REOPEN_S", 0.0)
    with opened(tmp_path) as index:
        fill(index, "a.txt", ["one apple"])
        assert len(index.dense(vectors_of(["x"])[0], 9, ANYONE)) == 1
        child = multiprocessing.get_context("spawn").Process(target=_write_from_elsewhere, args=(tmp_path,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert index.dense(vectors_of(["four figs"])[0], 1, ANYONE)[0][1] == pytest.approx(1, abs=1e-4)
        fill(index, "b.txt", ["five dates"])
        assert index.check() == replace(index.check(), documents=3, chunks=4, vectors=4, problems=())


@pytest.mark.parametrize(
    ("exc", "kind", "says"),
    [
        (sqlite3.OperationalError("database or disk is full"), StorageFullError, "free some space"),
        (OSError(28, "No space left on device"), StorageFullError, "free some space"),
        (sqlite3.OperationalError("database is locked"), IndexStoreError, "another process"),
        (sqlite3.DatabaseError("file is not a database"), IndexStoreError, "Repair"),
        (sqlite3.OperationalError("attempt to write a readonly database"), IndexStoreError, "who owns"),
        (PermissionError(13, "Permission denied"), IndexStoreError, "who owns"),
    ],
)
def test_failures_say_what_to_do(exc: Exception, kind: type[Exception], says: str, tmp_path: Path) -> None:
    error = explain(exc, tmp_path)
    assert isinstance(error, kind)
    assert says in str(error)
    assert str(tmp_path) in str(error)


def test_a_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite3").write_bytes(b"not a database at all" * 100)
    with pytest.raises(IndexStoreError, match="damaged"):
        opened(tmp_path)


def test_closing_twice_is_fine_and_using_it_after_is_an_error(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.close()
    index.close()
    with pytest.raises(IndexStoreError, match="closed"):
        index.dense(vectors_of(["x"])[0], 1, ANYONE)


def test_shrinking_frees_the_catalogs_pages_and_search_goes_on(index: Index) -> None:
    texts = [f"Row {number} " + f"{number:x} " * 400 for number in range(3000)]
    fill(index, "big.txt", texts)
    memory.release()
    before = memory.anonymous_rss()
    index.shrink()
    memory.release()
    assert before - memory.anonymous_rss() > 3 << 20
    assert index.chunk_count() == 3000


def test_chroma_comes_without_grpc_until_somebody_has_it_export_traces() -> None:
    code = """
import sys
from assistant.index.vectors import load_chroma
chromadb = load_chroma()
assert load_chroma() is chromadb is sys.modules["chromadb"]
assert "grpc" not in sys.modules
from chromadb.telemetry import opentelemetry
opentelemetry.otel_init("service", "http://127.0.0.1:9", {}, opentelemetry.OpenTelemetryGranularity.ALL)
assert "grpc" in sys.modules
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
assert isinstance(OTLPSpanExporter, type)
import os
os._exit(0)  # the exporter would wait at the exit for a collector that is not there
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
