"""Parts of the browser chat that need no browser: words, uploads' names, running turns, who may come in, ports."""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.errors import BusyError, InferenceError, ServerError, SettingsError
from assistant.records import Event, Quote, Retrieved, Token
from assistant.settings import Settings
from assistant.ui import launch, views
from assistant.ui.channels import UNREAD
from assistant.ui.ingests import safe_parts
from assistant.ui.runs import Run, Runs
from assistant.ui.server import GUEST, access_for, check_port
from assistant.ui.sessions import file_name
from assistant.ui.strings import FOLDER, MESSAGES, Strings
from assistant.users import Users

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "assistant" / "ui" / "static"


# Words


def test_every_language_has_every_word_and_the_same_places_in_it() -> None:
    english = json.loads((FOLDER / "en.json").read_text())
    for path in FOLDER.glob("*.json"):
        words = json.loads(path.read_text())
        assert set(words) == set(english), path.name
        for key, text in words.items():
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), (path.name, key)


def test_every_word_is_used_and_every_used_word_exists() -> None:
    english = json.loads((FOLDER / "en.json").read_text())
    pages = "".join(path.read_text() for path in STATIC.rglob("*.html"))
    scripts = "".join(path.read_text() for path in STATIC.rglob("*.js"))
    python = "".join(path.read_text() for path in (ROOT / "assistant" / "ui").glob("*.py"))
    in_pages = {key for key in english if f"${key.replace('.', '_')}" in pages}
    literal = set(re.findall(r"""["'`]([a-z]+(?:\.[a-z]+)+)["'`]""", scripts + python))
    made = re.findall(r"`([a-z]+(?:\.[a-z]+)*\.)\$\{", scripts)
    unused = {k for k in english if k not in in_pages | literal and not any(k.startswith(prefix) for prefix in made)}
    assert unused == set()
    used = set(re.findall(r"""\bt\(["']([a-z.]+)["']""", scripts))
    assert used <= set(english)
    assert {name.replace("_", ".") for name in re.findall(r"\$([a-z_]+)", pages)} <= set(english) | {
        "language", "problem",
    }  # fmt: skip


def sentences(*places: str) -> set[str]:
    """What the named modules raise or say, with ``{}`` for what varies, from their source."""
    found: set[str] = set()
    for place in places:
        root = ROOT / "assistant" / place
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
                if name.endswith("Error") or name in ("problem", "skip"):
                    found |= {text for text in map(template, node.args) if " " in text}  # type: ignore[attr-defined]
    return found


def template(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def test_what_the_program_says_is_said_in_german_too() -> None:
    german = json.loads((MESSAGES / "de.json").read_text())
    for english, other in german.items():
        assert set(re.findall(r"\{\w+\}", other)) <= set(re.findall(r"\{\w+\}", english)), english
    known = {re.sub(r"\{\w+\}", "{}", key).rstrip(".") for key in german}
    page = {text.rstrip(".") for text in sentences("ui")}
    not_seen_in_the_page = {
        text for text in page if text.startswith(("--", "Port ", "No share link", "The chat can't be"))
    }
    assert page - not_seen_in_the_page - known == set()
    rest = {text.rstrip(".") for text in sentences("loaders", "ingest.py", "transfer.py", "budget.py", "admission.py")}
    assert len(rest & known) >= 0.9 * len(rest), f"not in messages/de.json: {sorted(rest - known)}"


@pytest.mark.parametrize(
    ("wanted", "header", "chosen"),
    [("", "de-AT,de;q=0.9,en;q=0.5", "de"), ("", "fr, de;q=0.3, en;q=0.7", "en"), ("de", "en", "de"),
     ("xx", "", "en"), ("", ";;;", "en"), ("../en", "", "en"), ("", "de;q=0, en", "en")],
)  # fmt: skip
def test_the_language_follows_the_reader(wanted: str, header: str, chosen: str) -> None:
    assert Strings().choose(wanted, header) == chosen


# Uploads


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.txt", ["a.txt"]), ("../../etc/passwd", ["etc", "passwd"]), ("/abs/x.md", ["abs", "x.md"]),
     ("..\\..\\boot.ini", ["boot.ini"]), ("", ["unnamed"]), ("....//....//x", ["x"]), (".env", ["env"]),
     ("a\x00b\n.txt", ["ab.txt"]), ("docs/sub/ü.pdf", ["docs", "sub", "ü.pdf"]), ("x\u202efdp.exe", ["xfdp.exe"])],
)  # fmt: skip
def test_upload_names_lead_nowhere(name: str, parts: list[str]) -> None:
    assert safe_parts(name) == parts


@given(st.text(max_size=300))
def test_no_upload_name_leaves_its_folder(name: str) -> None:
    parts = safe_parts(name)
    folder = Path("/srv/uploads/user")
    assert folder in folder.joinpath(*parts).parents
    assert all(part not in ("", ".", "..") and "/" not in part and "\\" not in part for part in parts)
    assert all(len(part.encode()) <= 255 for part in parts)


# Running turns


def test_watchers_see_all_events_and_text_runs_together() -> None:
    run = Run("local", "s", "q")
    for event in views_of([Token("a"), Token("b")]):
        run.add(event)
    events, position, done = run.since(0)
    assert events == [{"type": "text", "text": "ab"}]
    assert (position, done) == (2, False)
    run.add({"type": "text", "text": "c"})
    run.finish()
    assert run.since(position) == ([{"type": "text", "text": "c"}], 3, True)
    assert run.since(0)[0] == [{"type": "text", "text": "abc"}]


def views_of(events: list[Event]) -> list[dict[str, object]]:
    return [views.event_view(event) for event in events]


def wait_until_over(run: Run) -> list[dict[str, object]]:
    for _ in range(500):
        events, _, done = run.since(0)
        if done:
            return events
        time.sleep(0.01)
    pytest.fail("the run did not end")


def test_a_session_is_answered_once_at_a_time_and_stops_when_asked() -> None:
    runs = Runs(places=2)

    def begin(stop: threading.Event) -> Iterator[Event]:
        while not stop.wait(0.01):
            yield Token("x")

    first = runs.start("ada", "1", "q", begin)
    with pytest.raises(BusyError, match="still being answered"):
        runs.start("ada", "1", "q", begin)
    second = runs.start("ada", "2", "q", begin)
    with pytest.raises(BusyError, match="2 questions"):
        runs.start("ada", "3", "q", begin)
    other = runs.start("bob", "1", "q", begin)
    assert runs.get("bob", "1") is other
    assert runs.get("bob", "2") is None
    first.stop.set()
    wait_until_over(first)
    assert runs.get("ada", "1") is None
    runs.close()
    assert wait_until_over(second) is not None
    with pytest.raises(BusyError, match="closing"):
        runs.start("ada", "9", "q", begin)


def test_failures_become_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def told(stop: threading.Event) -> Iterator[Event]:
        yield Retrieved((), (), (), 0.0, 1)
        raise InferenceError("The model stumbled; ask again.")

    def untold(stop: threading.Event) -> Iterator[Event]:
        yield Token("half")
        raise ZeroDivisionError("secret detail")

    runs = Runs()
    events = wait_until_over(runs.start("local", "1", "q", told))
    assert events[-1] == {"type": "error", "kind": "InferenceError", "message": "The model stumbled; ask again."}
    events = wait_until_over(runs.start("local", "2", "q", untold))
    assert events[-1]["kind"] == "unexpected"
    assert "secret detail" not in str(events)
    assert "secret detail" in caplog.text


def test_a_quote_stored_by_another_version_still_shows() -> None:
    view = views.quote_view({"text": "x", "name": "a.md", "number": 2, "line": 3, "unknown": 1})
    assert view["place"] == "a.md, line 3"
    assert views.quote_view(Quote(1, "x", "b.pdf", 0.5, page=2))["place"] == "b.pdf, page 2"


# Serving


def settings(tmp_path: Path) -> Settings:
    return Settings(users_file=tmp_path / "users.json", history_dir=tmp_path, store_dir=tmp_path)


def test_alone_on_this_machine_needs_no_login(tmp_path: Path) -> None:
    access, made = access_for(settings(tmp_path), host="127.0.0.1", share=False, public=False, auth="")
    assert (access.mode, made) == ("local", "")
    assert "localhost" in access.hosts


@pytest.mark.parametrize(("host", "share"), [("0.0.0.0", False), ("127.0.0.1", True), ("192.168.1.5", False)])
def test_whoever_is_reachable_needs_a_login(tmp_path: Path, host: str, share: bool) -> None:
    access, made = access_for(settings(tmp_path), host=host, share=share, public=False, auth="")
    assert access.mode == "login"
    assert access.users is not None
    assert access.users.verify(GUEST, made)
    assert not (tmp_path / "users.json").exists()
    Users(tmp_path / "users.json").add("ada", "correct horse")
    access, made = access_for(settings(tmp_path), host=host, share=share, public=False, auth="")
    assert (access.mode, made) == ("login", "")


def test_public_must_be_said_and_excludes_a_login(tmp_path: Path) -> None:
    access, made = access_for(settings(tmp_path), host="0.0.0.0", share=False, public=True, auth="")
    assert (access.mode, made) == ("public", "")
    with pytest.raises(SettingsError, match="choose one"):
        access_for(settings(tmp_path), host="0.0.0.0", share=False, public=True, auth="ada:correct horse")
    with pytest.raises(SettingsError, match="NAME:PASSWORD"):
        access_for(settings(tmp_path), host="0.0.0.0", share=False, public=False, auth="ada")


def test_a_port_in_use_names_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"Port {port} .*try --port \d+") as caught:
            check_port("127.0.0.1", port)
    free = int(re.search(r"--port (\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    check_port("127.0.0.1", free)


def test_a_port_in_use_is_one_sentence_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert launch.main(["--port", str(taken.getsockname()[1])]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_download_names_hold_no_header() -> None:
    named = file_name('Notice "period"\r\nX-Evil: 1 ✓', "md")
    assert "\r" not in named
    assert "\n" not in named
    assert named.startswith('attachment; filename="Notice period')


def test_gradio_keeps_nothing_of_calls_that_are_over() -> None:
    run = subprocess.run([sys.executable, ROOT / "tests" / "gradio_calls.py"], capture_output=True, text=True,
                         cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr
    kept = json.loads(run.stdout)
    assert kept["answered"] == [True] * 22
    assert max(kept["after_reading"]) <= 2
    assert max(kept["after_many_unread"]) <= UNREAD + 2
