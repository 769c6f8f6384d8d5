"""Office files locked with a password: really encrypted, read through the child process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.errors import DamagedDocumentError, EncryptedDocumentError
from assistant.loaders import Parser
from assistant.loaders.base import Source
from assistant.loaders.locked import is_locked

SECRET = "the vault opens at noon"


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    with Parser(timeout_s=30) as parser:
        yield parser


def written(folder: Path, suffix: str) -> Path:
    """Write a file with SECRET in it."""
    path = folder / f"plain{suffix}"
    if suffix == ".docx":
        import docx

        document = docx.Document()
        document.add_paragraph(SECRET)
        document.save(str(path))
    elif suffix == ".pptx":
        import pptx

        deck = pptx.Presentation()
        deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = SECRET
        deck.save(str(path))
    else:
        import openpyxl

        book = openpyxl.Workbook()
        book.active.append([SECRET])
        book.save(path)
    return path


def encrypted(path: Path, password: str) -> Path:
    """Encrypt a file as Office does (ECMA-376, agile)."""
    from msoffcrypto.format.ooxml import OOXMLFile

    target = path.with_stem("locked")
    with path.open("rb") as stream, target.open("wb") as out:
        OOXMLFile(stream).encrypt(password, out)
    return target


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx"])
def test_a_password_opens_it_and_others_are_refused_with_a_remedy(
    parser: Parser, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encrypted(written(tmp_path, suffix), "sésame")
    with pytest.raises(EncryptedDocumentError, match="it is encrypted; give its password"):
        list(parser.load(path))
    with pytest.raises(EncryptedDocumentError, match="no password that was given opens it; check the password"):
        list(parser.load(path, passwords=["wrong", "Sésame"]))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with Parser(timeout_s=30) as other:
        segments = other.load(path, passwords=["wrong", "sésame"])
        first = next(segments)
        assert SECRET in "\n".join([first.text, *(segment.text for segment in segments)])
    assert os.listdir(scratch) == []  # noqa: PTH208 - neither a copy nor its folder stays
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("locked*"))


def test_what_excel_opens_without_asking_opens(parser: Parser, tmp_path: Path) -> None:
    path = encrypted(written(tmp_path, ".xlsx"), "VelvetSweatshop")
    assert any(segment.text == SECRET for segment in parser.load(path))


def test_the_text_of_a_locked_file_is_never_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is open, its path leads to memory."""
    from assistant.loaders.locked import unlocked

    path = encrypted(written(tmp_path, ".docx"), "open")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with unlocked(Source(path, "a.docx", ("open",))) as plain:
        assert plain.path.suffix == ".docx"
        assert "memfd:" in str(plain.path.readlink().readlink())
        assert plain.path.read_bytes() == (tmp_path / "plain.docx").read_bytes()
        link = plain.path
    assert not os.path.lexists(link)


def test_a_locked_file_that_is_cut_short_is_named_damaged(parser: Parser, tmp_path: Path) -> None:
    path = encrypted(written(tmp_path, ".docx"), "open")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((DamagedDocumentError, EncryptedDocumentError)) as caught:
        list(parser.load(path, passwords=["open"]))
    assert caught.value.remedy


def test_other_files_are_not_locked(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert not is_locked(Source(tmp_path / "a.doc", "a.doc"))
    assert not is_locked(Source(tmp_path / "b.doc", "b.doc"))


def test_a_refused_file_gets_in_once_its_password_is_given(tmp_path: Path, packaged_models: Path) -> None:
    from assistant.embedding import load_embedder
    from assistant.index import Index
    from assistant.ingest import Ingestor
    from assistant.models import resolve
    from assistant.worker import TorchWorker

    (tmp_path / "documents").mkdir()
    path = encrypted(written(tmp_path, ".docx"), "open").rename(tmp_path / "documents" / "locked.docx")
    worker = TorchWorker(1)
    embedder = load_embedder(resolve("packaged", packaged_models, kind="embedder"), worker)
    with Index.open(tmp_path / "store", dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
        ingestor = Ingestor(index, embedder)
        refused = ingestor.ingest([path.parent])
        assert list(refused.refused.values()) == ["it is encrypted; give its password"]
        assert "check the password" in str(ingestor.ingest([path.parent], passwords=["no"]).refused)
        assert len(ingestor.ingest([path.parent], passwords=["open"]).added) == 1
        assert [chunk.text for chunk in index.chunks(index.chunk_ids(index.documents()[0].id))] == [SECRET]
        assert len(ingestor.ingest([path.parent]).unchanged) == 1
    embedder.close()
    worker.close()
