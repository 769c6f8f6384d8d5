"""History within its share of the disk: who leaves, where to, and that the limit holds on the disk."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from assistant.errors import StorageFullError
from assistant.history import History, NewTurn

LIMIT = 1_000_000


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def ask(history: History, session_id: str, question: str, answer: str = "yes", **begin: object) -> int:
    turn = history.begin(session_id, question, **begin)  # type: ignore[arg-type]
    history.append(turn.id, answer)
    return history.finish(turn.id, details={"receipt": {"prompt": 512}}).id


def test_deleting_a_session_reaches_the_archive(tmp_path: Path) -> None:
    def archived() -> bytes:
        return b"".join(gzip.decompress(path.read_bytes()) for path in (tmp_path / "archive").iterdir())

    with History.open(tmp_path, max_bytes=LIMIT) as history:
        while history.find_session("s") is None or history.session("s").archived_count < 20:
            ask(history, "s", "the secret", "long " * 400)
            ask(history, "other", "the rest", "long " * 400)
            ask(history, "s", "again", "short")
        assert b"the secret" in archived()
        history.delete("s")
        assert b"the secret" not in archived()
        rest = archived().count(b"the rest")
        for _ in range(40):
            ask(history, "third", "more", "long " * 400)
        assert archived().count(b"the rest") >= rest > 0
        assert history.check().ok


def test_the_disk_never_holds_more_than_the_limit(tmp_path: Path) -> None:
    rng = random.Random(3)
    largest = 0
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        for number in range(250):
            words = " ".join(f"w{rng.randint(0, 5000)}" for _ in range(rng.randint(1, 900)))
            newest = ask(history, f"s{rng.randint(0, 30)}", f"{number} {words}", words[:3000])
            largest = max(largest, size(tmp_path))
        assert largest <= LIMIT
        assert largest > LIMIT // 2
        head = history.turns(history.sessions()[0].id)[-1]
        assert head.id == newest
        assert history.check().ok
    assert size(tmp_path) <= LIMIT


def test_the_oldest_turns_of_the_least_recently_used_session_leave_first(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        for number in range(8):
            ask(history, "old", f"old {number}", "long " * 400)
        for number in range(8):
            ask(history, "kept in use", f"used {number}", "long " * 400)
        while history.session("kept in use").archived_count == 0 and history.find_session("old") is not None:
            if history.session("old").archived_count:
                left = [turn.question for turn in history.turns("old")]
                assert left == [f"old {number}" for number in range(8 - len(left), 8)]
            ask(history, "kept in use", "more", "long " * 400)
        assert history.find_session("old") is None
        assert [note for note in history.notices() if "“old 0”" in note and "archive" in note]
        assert history.notices() == []
        assert history.search("local", "old") == []
        assert history.check().ok


def test_a_single_session_loses_its_oldest_turns_and_counts_them(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT, archive=False) as history:
        ids = [ask(history, "s", f"turn {number}", "long " * 1200) for number in range(120)]
        session = history.session("s")
        assert session.archived_count > 0
        assert session.turn_count + session.archived_count == 120
        assert session.length == 120
        assert [turn.id for turn in history.turns("s", limit=1000)] == ids[session.archived_count :]
        assert not (tmp_path / "archive").exists()
        assert "deleted" in history.notices()[0]
        assert history.check().ok


def test_a_turn_too_large_for_the_history_is_refused_in_words(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        before = ask(history, "s", "small")
        with pytest.raises(StorageFullError, match="history_max_bytes"):
            history.begin("s", "x" * 600_000)
        assert [turn.id for turn in history.turns("s")] == [before]
        ask(history, "s", "and on")


def test_each_user_is_told_of_their_own_turns_only(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        ask(history, "a", "ann's title", "long " * 400, user="ann")
        while history.find_session("a", "ann") is not None:
            ask(history, "b", "bob's", "long " * 400, user="bob")
        assert not [note for note in history.notices("bob") if "ann" in note]
        assert [note for note in history.notices("ann") if "ann's title" in note]


def test_what_is_deleted_is_not_on_the_disk_any_more(tmp_path: Path) -> None:
    with History.open(tmp_path) as history:
        ask(history, "s", "the password is xyzzy-plugh-42", "noted: xyzzy-plugh-42 " * 500)
        ask(history, "t", "something else")
        history.delete("s")
    assert all(b"xyzzy-plugh" not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_archive_is_bounded_too_and_says_what_it_drops(tmp_path: Path) -> None:
    rng = random.Random(5)
    archive = tmp_path / "archive"
    told: list[str] = []
    asked = 0
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        while not [note for note in told if "archive of old conversations is full" in note]:
            noise = " ".join(f"{rng.getrandbits(64):x}" for _ in range(700))  # hardly compressible
            ask(history, f"s{asked // 20}", f"question {asked}", noise)
            asked += 1
            told += history.notices()
            if archive.exists():
                assert sum(path.stat().st_size for path in archive.iterdir()) <= LIMIT
            assert asked < 1500
        oldest, *_ = sorted(archive.glob("*.gz"))
        ask(history, "last", "and on", noise)
        for number in range(40):
            ask(history, f"more {number}", "and on", noise)
        assert not oldest.exists()
        (first,) = [note for note in told if "archive of old conversations is full" in note and "“question 0”" in note]
        assert "deleted" in first
        assert history.check().ok


def test_a_line_separator_in_an_archived_turn_does_not_break_deleting(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        ask(history, "s", "one \u2028 two \x85 three", "long " * 400)
        ask(history, "s", "the newest", "short")
        while not history.session("s").archived_count:
            ask(history, "other", "the rest", "long " * 400)
            ask(history, "s", "the newest", "short")
        history.delete("s")
        assert b"two" not in b"".join(gzip.decompress(path.read_bytes()) for path in (tmp_path / "archive").iterdir())
        assert not [note for note in history.notices() if "one" in note], "a deleted title is told no more"
        assert history.check().ok


def test_many_sessions_that_left_are_told_in_a_few_sentences(tmp_path: Path) -> None:
    with History.open(tmp_path, max_bytes=LIMIT) as history:
        for number in range(200):
            ask(history, f"s{number}", f"title {number}", "long " * 800)
        notes = history.notices()
        assert 2 <= len(notes) <= 4
        assert "others were moved to the archive too" in notes[-1]
        assert history.notices() == []


def test_text_without_a_word_said_twice_does_not_jam_a_full_history(tmp_path: Path) -> None:
    rng = random.Random(7)

    def noise(words: int = 700) -> str:
        return " ".join(f"{rng.getrandbits(64):x}" for _ in range(words))

    with History.open(tmp_path, max_bytes=LIMIT) as history:
        for number in range(80):
            ask(history, f"s{number // 20}", f"question {number}", noise())
        for number in range(20):
            turns = [NewTurn(str(place), None, noise(150), noise(150)) for place in range(3)]
            history.add(f"imported {number}", turns)
        assert history.search("local", turns[-1].question.split()[0])
        assert history.check().ok
    assert size(tmp_path) <= LIMIT
