"""Ingest with the real embedder, index and parser: nothing doubled, nothing lost, only what is new embedded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from assistant.embedding import Embedder, load_embedder
from assistant.errors import MemoryBudgetError, StorageFullError
from assistant.index import Index
from assistant.ingest import Ingestor
from assistant.models import resolve
from assistant.records import IngestProgress, Scope
from assistant.settings import Settings
from assistant.worker import TorchWorker

ROOT = Path(__file__).resolve().parent.parent


class Counting(Embedder):
    """The packaged embedder, and how many texts it was asked to embed."""

    embedded = 0

    def embed(self, texts, **kwargs):  # type: ignore[no-untyped-def]
        self.embedded += len(texts)
        return super().embed(texts, **kwargs)


@pytest.fixture(scope="module")
def embedder(packaged_models: Path) -> Iterator[Counting]:
    worker = TorchWorker(1)
    embedder = load_embedder(resolve("packaged", packaged_models, kind="embedder"), worker)
    embedder.__class__ = Counting
    yield embedder  # type: ignore[misc]
    embedder.close()
    worker.close()


@pytest.fixture
def index(tmp_path: Path, embedder: Counting) -> Iterator[Index]:
    with Index.open(tmp_path / "store", dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        yield index
        report = index.check()
        assert report.problems == ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    return folder


def rules(count: int, seed: str) -> str:
    return "\n\n".join(
        f"Rule {seed}{number}. " + " ".join(f"Lamp {number * step} in hall {step} burns {step} hours a day."
                                            for step in range(1, 9)) for number in range(count)
    )  # fmt: skip


def texts(index: Index, name: str) -> list[str]:
    document = index.find_document(name)
    return [chunk.text for chunk in index.chunks(index.chunk_ids(document.id))]


def test_twice_adds_nothing(index: Index, embedder: Counting, folder: Path) -> None:
    (folder / "a.txt").write_text(rules(12, "A"))
    (folder / "b.md").write_text("# Notice\n\nFour weeks.\n")
    ingestor = Ingestor(index, embedder)
    first = ingestor.ingest([folder])
    assert sorted(Path(name).name for name in first.added) == ["a.txt", "b.md"]
    assert first.chunks_embedded == index.chunk_count() > 5
    before = embedder.embedded
    again = ingestor.ingest([folder, folder / "a.txt"])
    assert (len(again.unchanged), again.added, again.chunks_embedded) == (2, (), 0)
    os.utime(folder / "a.txt")
    touched = ingestor.ingest([folder])
    assert (len(touched.unchanged), touched.chunks_embedded) == (2, 0)
    assert index.find_document("a.txt").mtime_ns == (folder / "a.txt").stat().st_mtime_ns
    assert embedder.embedded == before


def test_chunks_are_slices_with_their_places(index: Index, embedder: Counting, folder: Path) -> None:
    text = rules(20, "P")
    (folder / "rules.txt").write_text(text)
    Ingestor(index, embedder).ingest([folder])
    document = index.find_document("rules.txt")
    assert document.chunk_count == index.chunk_count()
    for chunk in index.chunks(index.chunk_ids(document.id)):
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.line == text.count("\n", 0, chunk.start) + 1


def test_an_edited_file_replaces_its_own_chunks_and_embeds_only_new_ones(
    index: Index, embedder: Counting, folder: Path
) -> None:
    parts = rules(60, "E").split("\n\n")
    (folder / "rules.txt").write_text("\n\n".join(parts))
    (folder / "other.txt").write_text(rules(3, "O"))
    ingestor = Ingestor(index, embedder)
    total = ingestor.ingest([folder]).chunks_embedded
    parts[20] = "Rule E20 was struck out in May."
    edited = "\n\n".join(parts)
    (folder / "rules.txt").write_text(edited)
    before = embedder.embedded
    report = ingestor.ingest([folder])
    assert [Path(name).name for name in report.updated] == ["rules.txt"]
    assert 0 < report.chunks_embedded == embedder.embedded - before < total / 3
    assert report.chunks_reused > total / 2
    document = index.find_document("rules.txt")
    chunks = index.chunks(index.chunk_ids(document.id))
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert all(edited[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert not any("Rule E20. Lamp" in chunk.text for chunk in chunks)


def test_refused_files_are_listed_with_their_reason_and_do_not_stop_the_others(
    index: Index, embedder: Counting, folder: Path
) -> None:
    (folder / "good.txt").write_text("The gate opens at nine.")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_text("  \n\n ")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnot really")
    (folder / "program.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "data.xyz").write_bytes(b"abc")
    (folder / "large.txt").write_text("x " * 4000)
    report = Ingestor(index, embedder, settings=Settings(max_file_bytes=6_000)).ingest([folder, folder / "no.txt"])
    reasons = {Path(name).name: reason for name, reason in report.refused.items()}
    assert {Path(name).name for name in report.added} == {"good.txt"}
    assert "is empty" in reasons["empty.txt"]
    assert "no text" in reasons["blank.txt"]
    assert "not a readable PDF" in reasons["broken.pdf"]
    assert "binary" in reasons["program.txt"]
    assert "no loader reads .xyz" in reasons["data.xyz"]
    assert "max_file_bytes" in reasons["large.txt"]
    assert "no such file" in reasons["no.txt"]
    listed = {document.name: document for document in index.documents(Scope())}
    assert listed["empty.txt"].status == "refused"
    assert listed["empty.txt"].reason == reasons["empty.txt"]
    assert listed["good.txt"].status == "ready"
    again = Ingestor(index, embedder, settings=Settings(max_file_bytes=6_000)).ingest([folder])
    assert {Path(name).name for name in again.refused} == set(reasons) - {"no.txt"}


def test_a_file_that_breaks_loses_its_chunks_and_comes_back(index: Index, embedder: Counting, folder: Path) -> None:
    path = folder / "rules.txt"
    path.write_text(rules(4, "B"))
    ingestor = Ingestor(index, embedder)
    ingestor.ingest([path])
    path.write_bytes(b"")
    assert ingestor.ingest([path]).refused
    assert index.chunk_count() == 0
    path.write_text(rules(4, "B"))
    report = ingestor.ingest([path])
    assert [Path(name).name for name in report.added] == ["rules.txt"]
    assert index.find_document("rules.txt").status == "ready"


def test_cancel_keeps_what_is_written_and_the_next_run_goes_on(index: Index, embedder: Counting, folder: Path) -> None:
    (folder / "long.txt").write_text(rules(270, "C"))
    cancel = threading.Event()

    def on_progress(progress: IngestProgress) -> None:
        if progress.chunks_done >= 96:
            cancel.set()

    ingestor = Ingestor(index, embedder)
    stopped = ingestor.ingest([folder], on_progress=on_progress, cancel=cancel)
    assert stopped.cancelled
    assert stopped.chunks_embedded >= 96
    assert index.find_document("long.txt").status == "partial"
    done = ingestor.ingest([folder])
    assert done.chunks_reused == stopped.chunks_embedded
    whole = texts(index, "long.txt")
    assert len(whole) == done.chunks_reused + done.chunks_embedded == index.chunk_count()
    assert index.find_document("long.txt").status == "ready"


def test_progress_rises_to_the_end(index: Index, embedder: Counting, folder: Path) -> None:
    for number in range(4):
        (folder / f"{number}.txt").write_text(rules(10, str(number)))
    seen: list[IngestProgress] = []
    Ingestor(index, embedder).ingest([folder], on_progress=seen.append)
    assert [progress.bytes_done for progress in seen] == sorted(progress.bytes_done for progress in seen)
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].files_done == seen[-1].files_total == 4
    assert [progress.outcome for progress in seen if progress.outcome] == ["added"] * 4


def test_it_asks_before_it_takes_memory(index: Index, embedder: Counting, folder: Path) -> None:
    (folder / "long.txt").write_text(rules(100, "M"))
    asked: list[int] = []

    def refuse(amount: int) -> None:
        asked.append(amount)
        raise MemoryBudgetError("no room", needed_bytes=2, budget_bytes=1)

    with pytest.raises(MemoryBudgetError):
        Ingestor(index, embedder, check=refuse).ingest([folder])
    assert index.documents() == []
    admitted: list[tuple[int, int]] = []
    ingestor = Ingestor(index, embedder, admit=lambda *amounts: admitted.append(amounts))
    actual = ingestor.ingest([folder]).chunks_embedded
    assert actual / 2 < asked[0] < actual * 3
    assert sum(added for added, _ in admitted) == actual
    assert all(parser > 5 << 20 for _, parser in admitted)  # a process of Python's


def test_a_file_its_parser_had_no_room_for_is_tried_again_with_more(
    index: Index, embedder: Counting, folder: Path
) -> None:
    """The room is the child's own limit; the memory plan sets it."""
    mail = EmailMessage()
    mail["Subject"] = "The kettle"
    mail.set_content("It stands on shelf nine.")
    mail.add_attachment(bytes(24 << 20), maintype="image", subtype="png", filename="kettle.png")
    (folder / "large.eml").write_bytes(mail.as_bytes())

    def refused(room: int) -> dict[str, str]:
        tried.clear()
        settings = Settings(parser_max_bytes=room)
        return dict(Ingestor(index, embedder, settings=settings).ingest([folder], on_progress=tried.append).refused)

    tried: list[IngestProgress] = []
    (reason,) = refused(64 << 20).values()
    assert "more than 64 MiB of memory" in reason
    assert "memory_budget" in reason
    assert len(tried) == 2  # begun, refused
    assert list(refused(65 << 20).values()) == [reason]
    assert len(tried) == 1  # not begun
    assert refused(1 << 30) == {}


def test_a_full_disk_is_named_and_nothing_written_is_harmed(
    index: Index, embedder: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write fails on cue as SQLite's does on a full disk."""
    import sqlite3

    (folder / "first.txt").write_text(rules(4, "F"))
    (folder / "second.txt").write_text(rules(270, "S"))
    ingestor = Ingestor(index, embedder)
    ingestor.ingest([folder / "first.txt"])
    whole = texts(index, "first.txt")
    put = index._catalog.put_chunks
    calls = 0

    def full(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise sqlite3.OperationalError("database or disk is full")
        put(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(index._catalog, "put_chunks", full)
    with pytest.raises(StorageFullError):
        ingestor.ingest([folder])
    monkeypatch.undo()
    assert texts(index, "first.txt") == whole
    report = ingestor.ingest([folder])
    assert report.chunks_reused == 96
    assert index.find_document("second.txt").status == "ready"


CHILD = """
import sys
from pathlib import Path
from assistant.embedding import load_embedder
from assistant.index import Index
from assistant.ingest import Ingestor
from assistant.models import resolve
from assistant.worker import TorchWorker
embedder = load_embedder(resolve("packaged", Path(sys.argv[1]), kind="embedder"), TorchWorker(1))
index = Index.open(Path(sys.argv[2]), dimension=embedder.dimension, fingerprint=embedder.fingerprint)
Ingestor(index, embedder).ingest([sys.argv[3]], on_progress=lambda p: print(p.chunks_done, flush=True))
"""


def test_a_kill_in_the_middle_doubles_and_loses_nothing(
    tmp_path: Path, embedder: Counting, folder: Path, packaged_models: Path
) -> None:
    (folder / "long.txt").write_text(rules(270, "K"))
    store = tmp_path / "store"
    command = [sys.executable, "-c", CHILD, str(packaged_models), str(store), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 96:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    with Index.open(store, dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        report = Ingestor(index, embedder).ingest([folder])
        assert report.chunks_reused >= 96
        assert index.check().problems == ()
        resumed = texts(index, "long.txt")
    with Index.open(tmp_path / "fresh", dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        Ingestor(index, embedder).ingest([folder])
        assert texts(index, "long.txt") == resumed


def test_the_parser_dies_with_its_parent(tmp_path: Path) -> None:
    fifo_holder = (
        "import os, sys, time\nfrom assistant.loaders import Parser\nparser = Parser()\n"
        "parts = parser.load(sys.argv[1])\nnext(parts)\nprint(parser.pid, flush=True)\ntime.sleep(60)"
    )
    path = tmp_path / "long.txt"
    path.write_text(rules(3000, "D"))
    with subprocess.Popen([sys.executable, "-c", fifo_holder, str(path)], stdout=subprocess.PIPE, text=True,
                          cwd=ROOT) as parent:  # fmt: skip
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the parser outlived its parent")


def test_files_that_are_gone_are_reported_and_can_be_removed(index: Index, embedder: Counting, folder: Path) -> None:
    for name in ("stays.txt", "goes.txt"):
        (folder / name).write_text(f"This is {name}.")
    ingestor = Ingestor(index, embedder)
    ingestor.ingest([folder])
    (folder / "goes.txt").unlink()
    (gone,) = ingestor.missing()
    assert gone.name == "goes.txt"
    ingestor.remove(gone.id)
    assert [document.name for document in index.documents()] == ["stays.txt"]
    assert index.chunk_count() == 1


def test_the_same_file_for_two_owners_is_two_documents(index: Index, embedder: Counting, folder: Path) -> None:
    (folder / "a.txt").write_text("Doors close at ten.")
    ingestor = Ingestor(index, embedder)
    ingestor.ingest([folder], owner="ann")
    ingestor.ingest([folder], owner="bob", session_id="s")
    assert len(index.documents()) == 2
    assert len(index.documents(Scope(user="ann"))) == 1
