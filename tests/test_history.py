"""History: turns are durable, form a tree, and belong to one user."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.errors import HistoryError, SessionNameError, StaleSessionError, UnknownSessionError, UnknownTurnError
from assistant.history import History


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "history") as opened:
        yield opened


def ask(history: History, session_id: str, question: str, answer: str = "So it is.", **begin: object) -> int:
    turn = history.begin(session_id, question, **begin)  # type: ignore[arg-type]
    history.append(turn.id, answer)
    history.finish(turn.id)
    return turn.id


def questions(history: History, session_id: str, **page: object) -> list[str]:
    return [turn.question for turn in history.turns(session_id, **page)]  # type: ignore[arg-type]


def test_a_finished_turn_is_read_back_whole(history: History) -> None:
    turn = history.begin("contract", "How long is the notice period?")
    assert turn.status == "running"
    history.append(turn.id, "Three ")
    history.append(turn.id, "months.")
    done = history.finish(turn.id, details={"quotes": [{"number": 1}], "tokens": {"prompt": 12}})
    assert done == history.turns("contract")[0]
    assert (done.answer, done.status, done.details["tokens"]) == ("Three months.", "done", {"prompt": 12})
    assert done.finished_at is not None


def test_the_question_is_there_for_others_at_once(history: History) -> None:
    history.begin("s", "Still there?")
    with History.open(history.folder) as other:
        assert [(turn.question, turn.status) for turn in other.turns("s")] == [("Still there?", "running")]


def test_text_that_waits_is_on_disk_within_a_second_though_nothing_follows(history: History) -> None:
    turn = history.begin("s", "Tell me.")
    for piece in ("One", ", two", ", three"):
        history.append(turn.id, piece)
    time.sleep(0.9)
    with History.open(history.folder) as other:
        assert other.turns("s")[0].answer == "One, two, three"


def test_finish_may_replace_the_answer(history: History) -> None:
    turn = history.begin("s", "?")
    history.append(turn.id, "raw")
    assert history.finish(turn.id, answer="polished", status="stopped").answer == "polished"
    assert history.turns("s")[0].status == "stopped"
    with pytest.raises(UnknownTurnError):
        history.append(turn.id, "more")


def test_pages_run_backwards_from_the_newest(history: History) -> None:
    ids = [ask(history, "s", str(n)) for n in range(10)]
    assert questions(history, "s", limit=3) == ["7", "8", "9"]
    assert questions(history, "s", limit=3, before=ids[7]) == ["4", "5", "6"]
    assert questions(history, "s", limit=9, before=ids[2]) == ["0", "1"]
    assert [turn.question for turn in history.window("s")] == [str(n) for n in reversed(range(10))]
    assert history.session("s").length == 10


def test_editing_keeps_the_old_branch_and_switching_returns_to_it(history: History) -> None:
    first = ask(history, "s", "first")
    second = ask(history, "s", "second")
    ask(history, "s", "third")
    edited = ask(history, "s", "second, better", parent_id=first)
    assert questions(history, "s") == ["first", "second, better"]
    assert history.siblings("s", edited) == [second, edited]
    history.switch("s", second)
    assert questions(history, "s") == ["first", "second", "third"]
    history.switch("s", edited)
    assert questions(history, "s") == ["first", "second, better"]
    assert history.session("s").turn_count == 4


def test_the_first_question_can_be_edited_too(history: History) -> None:
    old = ask(history, "s", "frist")
    new = ask(history, "s", "first", parent_id=None)
    assert questions(history, "s") == ["first"]
    assert history.siblings("s", new) == [old, new]


def test_undo_steps_back_and_hands_the_turn_over(history: History) -> None:
    ask(history, "s", "first")
    second = ask(history, "s", "second")
    undone = history.undo("s")
    assert undone is not None
    assert undone.question == "second"
    assert questions(history, "s") == ["first"]
    history.undo("s")
    assert questions(history, "s") == []
    assert history.undo("s") is None
    history.switch("s", second)
    assert questions(history, "s") == ["first", "second"]


def test_a_stale_tab_is_told(history: History) -> None:
    ask(history, "s", "first")
    seen = history.session("s").version
    ask(history, "s", "from another tab")
    with pytest.raises(StaleSessionError, match="reload"):
        history.begin("s", "second", expected_version=seen)
    assert questions(history, "s") == ["first", "from another tab"]
    ask(history, "s", "third", expected_version=history.session("s").version)


def test_one_user_sees_nothing_of_another(history: History) -> None:
    mine = ask(history, "plans", "my secret", user="ann")
    ask(history, "plans", "his secret", user="bob")
    assert [turn.question for turn in history.turns("plans", "ann")] == ["my secret"]
    assert [session.title for session in history.sessions("bob")] == ["his secret"]
    assert history.sessions("eve") == []
    for forbidden in (
        lambda: history.turns("plans", "eve"),
        lambda: history.session("plans", "eve"),
        lambda: history.rename("plans", "mine now", "eve"),
        lambda: history.delete("plans", "eve"),
        lambda: history.undo("plans", "eve"),
        lambda: list(history.window("plans", "eve")),
    ):
        with pytest.raises(UnknownSessionError):
            forbidden()
    for forbidden in (
        lambda: history.turn(mine, "plans", "bob"),
        lambda: history.switch("plans", mine, "bob"),
        lambda: history.siblings("plans", mine, "bob"),
        lambda: history.set_feedback("plans", mine, 1, "bob"),
        lambda: history.begin("plans", "?", user="bob", parent_id=mine),
        lambda: history.turns("plans", "bob", before=mine),
    ):
        with pytest.raises(UnknownTurnError):
            forbidden()
    history.delete("plans", "bob")
    assert [turn.question for turn in history.turns("plans", "ann")] == ["my secret"]


def test_titles_come_from_the_first_question_until_renamed(history: History) -> None:
    ask(history, "s", "What does  the\ncontract say about " + "notice periods " * 10)
    title = history.session("s").title
    assert title.startswith("What does the contract say about notice")
    assert len(title) <= 61
    history.rename("s", " Contract\n2026 ")
    ask(history, "s", "And then?")
    assert history.session("s").title == "Contract 2026"
    history.rename("s", "")
    assert history.session("s").title == title


def test_sessions_are_listed_by_use_though_the_clock_runs_backwards(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(history, "a", "first")
    ask(history, "b", "second")
    monkeypatch.setattr(time, "time", lambda: 1.0)
    ask(history, "a", "third")
    assert [session.id for session in history.sessions()] == ["a", "b"]
    assert questions(history, "a") == ["first", "third"]
    empty = history.create_session(title="Notes")
    assert [session.title for session in history.sessions(limit=1)] == ["Notes"]
    assert history.turns(empty.id) == []


def test_feedback_is_kept(history: History) -> None:
    turn = ask(history, "s", "?")
    history.set_feedback("s", turn, -1)
    assert history.turns("s")[0].feedback == -1


@pytest.mark.parametrize(
    "name", ["a/b/../c", 'Müller\'s "plan"; DROP TABLE turns', "😀👩\u200d👩", " padded ", "%_*", "-"]
)
def test_strange_session_names_are_just_names(history: History, name: str) -> None:
    ask(history, name, "hello")
    assert questions(history, name) == ["hello"]
    assert [session.id for session in history.sessions()] == [name.strip()]


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\nb", "\ud800", "\x7f", "é" * 201, "x" * 10_000])
def test_names_that_cannot_be_stored_are_refused_in_words(history: History, name: str) -> None:
    with pytest.raises(SessionNameError) as caught:
        history.begin(name, "hello")
    assert len(str(caught.value)) < 200
    assert history.sessions() == []


def test_lone_surrogates_become_the_replacement_character_and_the_rest_stays(history: History) -> None:
    ask(history, "s", "a\ud800b\x00c\x1b[31m\r\n", answer="pair \ud83d\ude00, half \udc00")
    turn = history.turns("s")[0]
    assert turn.question == "a\ufffdb\x00c\x1b[31m\r\n"
    assert turn.answer == "pair 😀, half \ufffd"


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=8))
def test_any_text_comes_back_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    with History.open(tmp_path_factory.mktemp("any")) as history:
        turn = history.begin("s", "".join(reversed(pieces)))
        for piece in pieces:
            history.append(turn.id, piece)
        history.finish(turn.id)
        stored = history.turns("s")[0]
        assert (stored.question, stored.answer) == ("".join(reversed(pieces)), "".join(pieces))


def test_a_newer_format_is_not_touched(tmp_path: Path) -> None:
    with History.open(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "history.sqlite3")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match="newer Thimble"):
        History.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HistoryError, match="history_dir"):
        History.open(tmp_path / "file" / "history")


def test_a_piece_on_its_way_to_the_disk_never_comes_after_the_end(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = history.begin("contract", "How long is the notice period?")
    history.append(turn.id, "Three")  # written at once; what follows is the flushing thread's
    under_way, write = threading.Event(), history._buffer._write

    def slowly(turn_id: int, text: str) -> None:
        under_way.set()
        time.sleep(0.3)
        write(turn_id, text)

    monkeypatch.setattr(history._buffer, "_write", slowly)
    history.append(turn.id, " months.")
    assert under_way.wait(10)
    history.finish(turn.id, answer="Three months.", details={"quotes": []})
    time.sleep(0.5)  # room for a straggler
    assert [stored.answer for stored in history.turns("contract")] == ["Three months."]
    assert not history.check().problems
