"""Conversations in the terminal, as a person handles them: each command in a process of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assistant.history import History, NewTurn
from assistant.settings import ROOT

Sessions = Callable[..., str]
NAME = "plans/2026 😀"


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    with History.open(tmp_path / "history") as history:
        history.add(NAME, [
            NewTurn("0", None, "Where is the kettle?", "On the \x1b[31mshelf\ud800.", created_at=1.7e9),
            NewTurn("1", "0", "And the cup?", "In the sink, near the kettle."),
            NewTurn("2", "0", "And the spoon?", "In the drawer."),
        ])  # fmt: skip
        history.add("hers", [NewTurn("0", None, "Ann's secret kettle", "hidden")], user="ann")

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "assistant", "sessions", *words], cwd=ROOT, check=False, capture_output=True,
            text=True, env=os.environ | {"THIMBLE_HISTORY_DIR": str(tmp_path / "history")},
        )  # fmt: skip
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


def test_sessions_are_listed_shown_searched_renamed_and_branched(sessions: Sessions) -> None:
    assert NAME in sessions()
    shown = sessions("show", NAME)
    assert "And the spoon?" in shown
    assert "On the ␛[31mshelf\ufffd." in shown, "what was said must not steer the terminal"
    found = sessions("search", "kettle")
    assert "you: Where is the *kettle*?" in found
    assert "answer: In the sink, near the *kettle*." in found
    assert "secret" not in found
    assert "Kitchen" in sessions("rename", NAME, "Kitchen")
    assert "* 3  And the spoon?" in sessions("branches", NAME)
    sessions("switch", NAME, "2")
    assert "And the cup?" in sessions("show", NAME)
    assert "took back turn 2" in sessions("undo", NAME)
    assert "And the cup?" not in sessions("show", NAME)


def test_sessions_travel_and_those_of_others_stay(sessions: Sessions, tmp_path: Path) -> None:
    for command in (["show"], ["export"], ["delete"], ["undo"], ["branches"], ["rename", "mine"], ["switch", "4"]):
        sessions(command[0], "hers", *command[1:], status=1)
    sessions("export", "--output", str(tmp_path / "all.jsonl"))
    assert "secret" not in (tmp_path / "all.jsonl").read_text()
    assert "## Thimble\n\nIn the drawer." in sessions("export", NAME, "--format", "markdown")
    assert "Imported 1 conversations with 3 turns" in sessions("import", str(tmp_path / "all.jsonl"), "--user", "bob")
    again = sessions("import", str(tmp_path / "all.jsonl"), "--user", "bob")
    assert "Passed over 1:\n  Where is the kettle?: it is here already" in again
    assert "3 turns" in sessions("list", "--user", "bob")
    sessions("delete", NAME)
    assert "no conversations" in sessions()
    assert "3 turns" in sessions("list", "--user", "bob")


def test_a_damaged_store_is_set_aside_and_told(sessions: Sessions, tmp_path: Path) -> None:
    path = tmp_path / "history" / "history.sqlite3"
    damaged = bytearray(path.read_bytes())
    damaged[5000:9000] = random.Random(2).randbytes(4000)
    path.write_bytes(damaged)
    said = sessions("check", "--repair")
    assert "are mended" in said
    assert "are sound" in said
    (aside,) = path.parent.glob("history.damaged-*.sqlite3")
    assert aside.read_bytes() == damaged
    assert "And the spoon?" in sessions("show", NAME)
