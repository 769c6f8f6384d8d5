"""What of the browser chat outlives its process: notes of uploads, and visitors' chats that must not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from assistant.history import History
from assistant.ui.auth import VISIT_S
from assistant.ui.spool import Spool
from assistant.ui.visitors import Visitors

ROOT = Path(__file__).resolve().parent.parent


def another_process(code: str) -> subprocess.Popen[str]:
    """Run code that prints a line when it is ready and then waits to be killed."""
    script = f"import sys, time\nfrom pathlib import Path\n{code}\nprint('ready', flush=True)\ntime.sleep(600)\n"
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_notes_of_a_killed_process_are_taken_over_once_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    child = another_process(
        "from assistant.ui.spool import Spool\n"
        f"spool = Spool(Path({str(folder)!r}))\n"
        "for name in 'xyz':\n    spool.put(name, {'name': name}); time.sleep(0.02)\n"
        "spool.drop('y')"
    )
    mine = Spool(folder)
    assert mine.take_over() == []
    assert len(list(mine.notes())) == 2
    kill(child)
    assert mine.take_over() == [{"name": "x"}, {"name": "z"}]
    other = Spool(folder)
    assert other.take_over() == []
    mine.close()
    assert other.take_over() == [{"name": "x"}, {"name": "z"}]
    for name in "xz":
        other.drop(name)
    other.close()
    assert list(folder.iterdir()) == []


def test_a_note_cut_off_or_foreign_costs_itself_alone(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    first = Spool(folder)
    first.put("good", {"name": "good"})
    place = next(folder.iterdir())
    (place / "half.json").write_text('{"name": "ha')
    (place / "list.json").write_text("[]")
    first.close()
    second = Spool(folder)
    assert second.take_over() == [{"name": "good"}]
    second.close()


def add_chat(history: History, user: str, name: str) -> None:
    turn = history.begin(name, "A question", user=user)
    history.finish(turn.id, answer="An answer")


def test_what_a_killed_public_chat_left_goes_at_the_next_start_of_any(tmp_path: Path) -> None:
    child = another_process(
        "from assistant.history import History\nfrom assistant.ui.visitors import Visitors\n"
        f"folder = Path({str(tmp_path)!r})\nhistory = History.open(folder)\n"
        "Visitors(history, folder, public=True).__enter__()\n"
        "turn = history.begin('a', 'Secret?', user='visitor-1')\nhistory.finish(turn.id, answer='Yes')"
    )
    with History.open(tmp_path) as history:
        add_chat(history, "local", "mine")
        with Visitors(history, tmp_path, public=False):
            assert history.users() == ["local", "visitor-1"], "its chat still runs"
        kill(child)
        with Visitors(history, tmp_path, public=False):
            assert history.users() == ["local"]
        assert history.check().ok


def test_the_last_public_chat_to_end_deletes_the_visitors(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        with Visitors(history, tmp_path, public=True):
            add_chat(history, "visitor-1", "a")
            with Visitors(history, tmp_path, public=True):
                add_chat(history, "visitor-2", "b")
            assert history.users() == ["visitor-1", "visitor-2"]
        assert history.users() == []
        assert history.check().ok


def test_a_visit_ends_after_a_day_while_the_chat_runs(tmp_path: Path) -> None:
    with History.open(tmp_path) as history, Visitors(history, tmp_path, public=True) as visitors:
        add_chat(history, "visitor-1", "old")
        add_chat(history, "visitor-2", "new")
        with history._db.write() as db:
            db.execute("UPDATE sessions SET updated_at = ? WHERE id = 'old'", (time.time() - VISIT_S - 1,))
        visitors._clear(all_of_them=False)
        assert history.users() == ["visitor-2"]
        assert history.check().ok
