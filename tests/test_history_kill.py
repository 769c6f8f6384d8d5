"""History against ``kill -9``: no question is lost, no text that was shown for a second, and the file stays sound."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant.errors import StorageFullError
from assistant.history import History

WRITER = Path(__file__).with_name("history_writer.py")
PROMISED_S = 1.0


class Killed:
    """Writers on one store, killed at a random moment, and what they had told by then."""

    def __init__(self, folder: Path, rng: random.Random, *, writers: int = 1, longest_s: float = 1.8) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.logs = [folder.parent / f"{folder.name}-{rng.random()}.log" for _ in range(writers)]
        self.processes = [
            subprocess.Popen([sys.executable, str(WRITER), str(folder), str(log), log.name], stderr=subprocess.PIPE)
            for log in self.logs
        ]
        for log in self.logs:
            _wait_for(lambda log=log: log.exists() and log.stat().st_size > 0, 30)
        self.kill_at = [time.monotonic() + rng.random() * longest_s for _ in self.logs]

    def finish(self) -> list[str]:
        """Kill the writers when it is time; return what is not on the disk though it should be."""
        killed = []
        for process, at in sorted(zip(self.processes, self.kill_at, strict=True), key=lambda pair: pair[1]):
            time.sleep(max(0.0, at - time.monotonic()))
            assert process.poll() is None, f"the writer died by itself: {process.stderr.read().decode()}"  # type: ignore[union-attr]
            killed.append((process, time.monotonic()))
            os.kill(process.pid, signal.SIGKILL)
        times = {}
        for process, at in killed:
            process.wait()
            process.stderr.close()  # type: ignore[union-attr]
            times[process.pid] = at
        with History.open(self.folder) as history:
            missing = [
                problem
                for process, log in zip(self.processes, self.logs, strict=True)
                for problem in _missing(history, log, times[process.pid])
            ]
            report = history.check()
            if not report.ok or history.recovered is not None:
                missing.append(f"check: {report} {history.recovered}")
        return missing


def _missing(history: History, log: Path, killed_at: float) -> Iterator[str]:
    asked: dict[int, str] = {}
    early: dict[int, str] = defaultdict(str)
    shown: dict[int, str] = defaultdict(str)
    done = set()
    for line in log.read_text().splitlines():
        event, turn_id, text, at = json.loads(line)
        if event == "asked":
            asked[turn_id] = text
        elif event == "shown":
            shown[turn_id] += text
            if at < killed_at - PROMISED_S:
                early[turn_id] += text
        elif event == "done":
            done.add(turn_id)
    stored = {
        turn.id: turn
        for session in history.sessions()
        for turn in history.turns(session.id, limit=1_000_000)
    }  # fmt: skip
    for turn_id, question in asked.items():
        turn = stored.get(turn_id)
        if turn is None or turn.question != question:
            yield f"question {turn_id} is lost"
        elif turn_id in done and (turn.status, turn.answer) != ("done", shown[turn_id]):
            yield f"finished turn {turn_id} is not what was finished"
        elif turn_id not in done and turn.status not in ("interrupted", "done"):
            yield f"turn {turn_id} is marked {turn.status}"
        elif not turn.answer.startswith(early[turn_id]) or not shown[turn_id].startswith(turn.answer[:-20]):
            yield f"shown text of turn {turn_id} is not stored: {turn.answer[-50:]!r} {early[turn_id][-50:]!r}"


def _wait_for(ready: object, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


def _kill_many(folder: Path, kills: int, *, at_once: int, seed: int) -> list[str]:
    """Kill *kills* writers, half of them alone on their store, half in pairs; stores are used again and again."""
    rng = random.Random(seed)
    missing, count, round_number = [], 0, 0
    while count < kills:
        pairs = [1, 2][round_number % 2]
        batch = [
            Killed(folder / f"store-{pairs}-{place}", rng, writers=pairs)
            for place in range(max(1, min(at_once, kills - count) // pairs))
        ]
        for killed in batch:
            missing += killed.finish()
            count += pairs
        round_number += 1
    return missing


def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    assert _kill_many(tmp_path, 30, at_once=6, seed=random.randrange(1 << 30)) == []


@pytest.mark.soak
def test_three_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    assert _kill_many(tmp_path, 300, at_once=6, seed=random.randrange(1 << 30)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a small disk can't be mounted here (it needs root): {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_harms_nothing(small_disk: Path) -> None:
    folder, stored, refused = small_disk / "history", {}, 0
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 500_000)
    with History.open(folder) as history:
        for number in range(400):
            try:
                turn = history.begin("s", f"{number} " + "long question " * 200)
                stored[turn.id] = ""
                history.append(turn.id, "an answer " * 300)
                stored[turn.id] = history.finish(turn.id).answer
            except StorageFullError:
                refused += 1
                if refused > 20:
                    break
        assert refused > 20
        with pytest.raises(StorageFullError, match="unharmed"):
            history.begin("t", "no room " * 100_000)
        assert len(stored) > 5
    with History.open(folder) as history:
        assert history.recovered is None
        found = {turn.id: turn for turn in history.turns("s", limit=1000)}
        assert found.keys() == stored.keys()
        assert all(found[turn_id].answer == answer for turn_id, answer in stored.items() if answer)
        assert history.check().ok
        filler.unlink()
        history.delete("s")
        turn = history.begin("s", "room again?")
        assert history.finish(turn.id, answer="yes").answer == "yes"
        assert history.check().ok


def test_killed_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"
    rng = random.Random()
    for round_number in range(3):
        filler.write_bytes(b"x" * 600_000)
        killed = Killed(small_disk / "history", rng, writers=2, longest_s=1.5)
        missing = killed.finish()
        assert missing == []
        filler.unlink()
        assert shutil.disk_usage(small_disk).free > 500_000, round_number
