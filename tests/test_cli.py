"""The terminal, as a person uses it: each command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assistant.settings import ROOT


class Terminal:
    """Runs commands with stores of its own."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.folder = folder
        self.environ = os.environ | {
            "THIMBLE_MODELS_DIR": str(models),
            "THIMBLE_STORE_DIR": str(folder / "chroma_store"),
            "THIMBLE_HISTORY_DIR": str(folder / "history"),
            "THIMBLE_USERS_FILE": str(folder / "users.json"),
            "THIMBLE_MAX_NEW_TOKENS": "40",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "assistant", *words], cwd=ROOT, env=self.environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, given: str = "", status: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        out, err = process.communicate(given, timeout=120)
        assert process.returncode == status, (words, process.returncode, out, err)
        assert "Traceback" not in err
        return out, err


@pytest.fixture(scope="module")
def terminal(packaged_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    made = Terminal(packaged_models, tmp_path_factory.mktemp("terminal"))
    out, _ = made.run("ingest", "samples")
    assert "added" in out
    return made


def test_ingesting_again_embeds_nothing_and_says_so(terminal: Terminal) -> None:
    out, _ = terminal.run("ingest", "samples")
    assert out.startswith("Nothing to do")


def test_ask_prints_quotes_answer_and_books(terminal: Terminal) -> None:
    out, err = terminal.run("ask", "How often should I descale the kettle?", "--session", "kettle")
    assert "every four weeks" in out
    assert "k2-manual.pdf, page 2" in out
    assert "RAM" in err
    assert "tokens" in err


def test_ask_reads_standard_input_and_writes_json(terminal: Terminal) -> None:
    out, _ = terminal.run("ask", "-", "--json", given="What does the travel kettle cost?")
    answer = json.loads(out)
    assert any("35.50" in quote["text"] for quote in answer["quotes"])
    assert answer["memory"]["after"] > 0


def test_chat_holds_a_conversation(terminal: Terminal) -> None:
    lines = "How long is the notice period?\nAnd for managers?\n/sources\n/undo\n/nonsense\n/quit\n"
    out, err = terminal.run("chat", "--session", "talk", given=lines)
    assert "managers" in out
    assert "Taken back: And for managers?" in out
    assert "no command /nonsense" in out
    assert "error" not in err.lower()


def test_search_shows_each_parts_score(terminal: Terminal) -> None:
    out, err = terminal.run("search", "warranty of the kettle", "--top-k", "3")
    assert "cosine" in out
    assert "BM25" in out
    assert "searched" in err


def test_documents_are_listed_and_removed(terminal: Terminal) -> None:
    extra = terminal.folder / "extra.txt"
    extra.write_text("The green door is locked at nine.")
    terminal.run("ingest", str(extra))
    out, _ = terminal.run("documents")
    assert "extra.txt" in out
    out, _ = terminal.run("documents", "remove", "extra.txt")
    assert "removed extra.txt" in out
    out, _ = terminal.run("documents")
    assert "extra.txt" not in out
    terminal.run("documents", "check")


def test_sessions_are_listed_shown_renamed_exported_and_deleted(terminal: Terminal) -> None:
    terminal.run("ask", "How long is the trial period?", "--session", "trial")
    out, _ = terminal.run("sessions")
    assert "trial" in out
    out, _ = terminal.run("sessions", "show", "trial")
    assert "How long is the trial period?" in out
    terminal.run("sessions", "rename", "trial", "About trials")
    out, _ = terminal.run("sessions", "list")
    assert "About trials" in out
    out, _ = terminal.run("sessions", "search", "trial period")
    assert "trial" in out
    out, _ = terminal.run("sessions", "export", "trial", "--format", "markdown")
    assert "# About trials" in out
    exported = terminal.folder / "all.jsonl"
    terminal.run("sessions", "export", "-o", str(exported))
    terminal.run("sessions", "delete", "trial")
    _, err = terminal.run("sessions", "show", "trial", status=1)
    assert "trial" in err
    out, _ = terminal.run("sessions", "import", str(exported))
    out, _ = terminal.run("sessions", "list")
    assert "About trials" in out
    terminal.run("sessions", "check")


def test_users_are_added_and_removed(terminal: Terminal) -> None:
    terminal.run("users", "add", "ann", "--password-stdin", given="a long enough password\n")
    out, _ = terminal.run("users")
    assert out.strip() == "ann"
    assert "a long enough password" not in (terminal.folder / "users.json").read_text()
    terminal.run("users", "remove", "ann")


def test_memory_prints_the_plan(terminal: Terminal) -> None:
    out, _ = terminal.run("memory")
    assert "budget" in out.lower()
    out, _ = terminal.run("memory", "--json")
    assert json.loads(out)


def test_models_are_listed(terminal: Terminal) -> None:
    out, _ = terminal.run("models")
    assert "smollm2-135m-instruct" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ask", "x", "--set", "topk=3"), "did you mean top_k"),
        (("ask", "x", "--set", "top_k"), "NAME=VALUE"),
        (("ask", "x", "--model", "no-such-folder/"), "no-such-folder"),
        (("ask", " "), "no question"),
        (("ask", "x", "--document", "absent.txt"), "absent.txt"),
        (("sessions", "show", "absent"), "absent"),
        (("documents", "remove", "absent.txt"), "absent.txt"),
        (("ingest", "no/such/path"), "no/such/path"),
        (("users", "remove", "nobody"), "nobody"),
        (("memory", "--memory-budget=-1GiB"), "negative"),
        (("ask", "x", "--memory-budget", "20MB"), "MiB"),
    ],
)
def test_bad_input_is_one_sentence_with_the_remedy(terminal: Terminal, words: tuple[str, ...], says: str) -> None:
    _, err = terminal.run(*words, status=1)
    assert says in err


def test_debug_shows_the_traceback(terminal: Terminal) -> None:
    process = terminal.start("ask", "x", "--debug", "--model", "no-such-folder/")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in err


def test_after_a_kill_the_question_and_what_was_shown_are_there(terminal: Terminal) -> None:
    process = terminal.start("ask", "What is said about working from home?", "--session", "killed", "--set",
                             "max_new_tokens=200")  # fmt: skip
    assert process.stdout is not None
    database = terminal.folder / "history" / "history.sqlite3"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with sqlite3.connect(database) as db:
            row = db.execute("SELECT status, answer FROM turns WHERE session_id = 'killed'").fetchone()
        db.close()
        if row is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, _ = terminal.run("sessions", "show", "killed")
    assert "What is said about working from home?" in out
    assert "interrupted" in out
