"""Prompt files: checked when loaded, filled in safely."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from assistant.errors import PromptError
from assistant.prompts import REQUIRED, Prompts, fill
from assistant.records import Quote
from assistant.settings import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "prompts", tmp_path / "prompts"))


def _quote(number: int, text: str, said_by: str = "") -> Quote:
    return Quote(number=number, text=text, name="handbook.md", score=1.0, said_by=said_by)


def test_the_shipped_prompts_load_and_are_listed_in_their_readme(folder: Path) -> None:
    prompts = Prompts.load(folder)
    readme = (folder / "README.md").read_text()
    for name in REQUIRED:
        assert getattr(prompts, name)
        assert f"`{name}.md`" in readme


@pytest.mark.parametrize("name", [name for name, needs in REQUIRED.items() if needs])
def test_a_missing_placeholder_is_named_with_its_file(folder: Path, name: str) -> None:
    (folder / f"{name}.md").write_text("no placeholder here")
    with pytest.raises(PromptError, match=rf"prompts/{name}\.md lacks the placeholder \{{{REQUIRED[name][0]}\}}"):
        Prompts.load(folder)


def test_a_placeholder_that_nothing_fills_is_named(folder: Path) -> None:
    (folder / "system.md").write_text("Hello {nmae}")
    with pytest.raises(PromptError, match=r"\{nmae\}"):
        Prompts.load(folder)


@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "huge"])
def test_a_damaged_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "system.md"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b" \n", "binary": b"\xff\xfe\x00\xd8", "huge": b"a" * 100_000}[damage])
    with pytest.raises(PromptError, match=r"prompts/system\.md"):
        Prompts.load(folder)


def test_an_edited_prompt_is_what_the_model_gets(folder: Path) -> None:
    (folder / "question.md").write_text("Q={question} E={quotes}")
    prompts = Prompts.load(folder)
    assert prompts.user_message("Why?", [_quote(1, "Because\nof it.")]) == "Q=Why? E=Because of it."


def test_braces_in_documents_and_questions_are_left_alone(folder: Path) -> None:
    prompts = Prompts.load(folder)
    text = prompts.user_message("What is {quotes}?", [_quote(1, "{question} and {x} {0}")])
    assert "What is {quotes}?" in text
    assert "{question} and {x} {0}" in text
    assert fill("{a}{b}", a="{b}", b="c") == "{b}c"


def test_recalled_turns_come_before_the_quotes(folder: Path) -> None:
    prompts = Prompts.load(folder)
    text = prompts.user_message("And?", [_quote(1, "A fact.")], [_quote(2, "My cat is Tom.", "user")])
    assert text.index("User: My cat is Tom.") < text.index("A fact.") < text.index("And?")
    assert "Text:" not in prompts.user_message("And?", [], [_quote(2, "My cat is Tom.", "user")])
