"""History after damage: no crash, no silent loss, and the damaged file is kept."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from assistant.errors import HistoryError
from assistant.history import History
from assistant.records import Turn

FILE = "history.sqlite3"


def filled(folder: Path) -> dict[int, Turn]:
    rng, stored = random.Random(5), {}
    with History.open(folder) as history:
        for number in range(120):
            turn = history.begin(f"s{number % 4}", f"question {number} " + "word " * rng.randint(1, 200))
            history.append(turn.id, f"answer {number} " + "lorem " * rng.randint(1, 1500 if number % 30 == 3 else 90))
            stored[turn.id] = history.finish(turn.id, details={"k": ["v"] * rng.randint(1, 90)})
    return stored


def truncated(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def overwritten(path: Path, rng: random.Random) -> None:
    at, length = rng.randrange(path.stat().st_size), rng.choice((1, 16, 512, 4096, 65536))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(rng.randbytes(min(length, path.stat().st_size - at)))


def zeroed(path: Path, rng: random.Random) -> None:
    at, length = rng.randrange(path.stat().st_size), rng.choice((16, 512, 4096, 65536))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(min(length, path.stat().st_size - at)))


@pytest.mark.parametrize("damage", [truncated, overwritten, zeroed])
def test_damage_anywhere_is_told_and_the_rest_recovered(
    tmp_path: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    stored = filled(tmp_path / "whole")
    seed = random.randrange(1 << 30)
    rng, set_aside = random.Random(seed), 0
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder, copy_function=shutil.copy2)
        damage(folder / FILE, rng)
        broken = (folder / FILE).read_bytes()
        with History.open(folder) as history:
            found = {turn.id: turn for session in history.sessions() for turn in history.turns(session.id, limit=1000)}
            notices = history.notices()
            changed = [
                key for key, turn in stored.items()
                if key not in found or (found[key].question, found[key].answer) != (turn.question, turn.answer)
            ]  # fmt: skip
            assert notices or not changed, (seed, number, changed)
            assert history.check().ok, (seed, number)
            report = history.recovered
            if report is not None and report.set_aside is not None:
                set_aside += 1
                assert report.set_aside.read_bytes() == broken
            history.finish(history.begin("s1", "and on?").id, answer="yes")
            history.search("local", "lorem")
        with History.open(folder) as again:
            assert again.recovered is None
            assert again.turns("s1")[-1].question == "and on?"
        shutil.rmtree(folder)
    assert set_aside > 0, seed


def test_turns_below_a_broken_inner_page_are_recovered(tmp_path: Path) -> None:
    stored = filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns'").fetchone()
    with (tmp_path / FILE).open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    with History.open(tmp_path) as history:
        assert history.recovered is not None
        assert history.recovered.lost_turns == 0
        found = {turn.id: turn for session in history.sessions() for turn in history.every_turn(session.id)}
        assert found == stored
        assert "set aside" not in str(history.recovered)
        assert "kept as history.damaged-" in history.notices()[0]


def test_a_file_that_is_no_database_is_kept_and_replaced(tmp_path: Path) -> None:
    tmp_path.joinpath(FILE).write_bytes(b"not a database at all " * 1000)
    with History.open(tmp_path) as history:
        assert history.sessions() == []
        assert history.recovered is not None
        assert history.recovered.set_aside is not None
        assert history.recovered.set_aside.read_bytes().startswith(b"not a database")


def test_changed_text_is_found_by_check_and_marked_by_repair(tmp_path: Path) -> None:
    filled(tmp_path)
    with History.open(tmp_path) as history:
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as db:
            db.execute("UPDATE turns SET indexed = 0, question = 'forged' WHERE id = 7")
        with pytest.raises(HistoryError, match="check --repair"):
            list(history.every_turn("s2"))
        report = history.check()
        assert not report.ok
        assert "1 turns changed" in str(report)
        mended = history.check(repair=True)
        assert mended.ok
        assert mended.damaged_turns == 1
        assert history.check().problems == ()
        assert "changed on the disk" in history.turn(7, "s2").error


def test_wrong_counts_and_heads_are_mended(tmp_path: Path) -> None:
    filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as db:
        db.execute("UPDATE sessions SET turn_count = 1 WHERE id = 's1'")
        db.execute("UPDATE sessions SET head_turn_id = 99999 WHERE id = 's2'")
        db.execute("DELETE FROM sessions WHERE id = 's3'")
    with History.open(tmp_path) as history:
        assert len(history.turns("s2")) == len(history.turns("s3")) == 30
        assert history.session("s1").turn_count == 30
        assert history.recovered is not None
        assert history.recovered.set_aside is None
        assert history.check().ok


def test_a_live_store_is_not_replaced_under_another_process(tmp_path: Path) -> None:
    filled(tmp_path)
    with History.open(tmp_path) as history, History.open(tmp_path):
        with (tmp_path / FILE).open("r+b") as file:
            file.seek(4096 * 20)
            file.write(b"\xff" * 4096 * 3)
        with pytest.raises(HistoryError, match="close it"):
            history.check(repair=True)


def test_turns_of_a_dead_process_are_interrupted_and_those_of_a_live_one_are_not(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        mine = history.begin("s", "mine")
        dead = history.begin("t", "of a process that is gone")
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as db:
            db.execute("UPDATE turns SET owner = 'other-boot/1/1/1' WHERE id = ?", (dead.id,))
        with History.open(tmp_path) as other:
            assert other.turn(mine.id, "s").status == "running"
            assert other.turn(dead.id, "t").status == "interrupted"
        assert history.finish(mine.id, answer="done").status == "done"


def test_search_marks_what_matched_and_keeps_users_apart(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        for user, secret in (("ann", "The Kündigungsfrist is three months."), ("bob", "Three months of rain.")):
            turn = history.begin("s", f"What did {user} note? (plans)", user=user)
            history.finish(turn.id, answer=secret)
        hits = history.search("ann", "month")
        title = "What did ann note? (plans)"
        assert [(hit.session_id, hit.said_by, hit.title) for hit in hits] == [("s", "assistant", title)]
        assert [hits[0].text[start:end] for start, end in hits[0].marks] == ["months"]
        assert history.search("ann", "rain") == []
        assert history.search("ann", "kundigung")
        assert history.search("ann", '"three months"')
        assert history.search("ann", '"months three"') == []
        for odd in ("", "   ", '"', "AND", "a* OR (", "NEAR(", "\0", "-", "😀", "\ud800", "col:x"):
            history.search("ann", odd)
