"""Transfer: what goes out comes back in; foreign and broken files give what is whole, and a report."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assistant.errors import ImportFormatError, UnknownSessionError
from assistant.history import History
from assistant.transfer import export_jsonl, export_markdown, import_file


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "history") as opened:
        yield opened


def ask(history: History, session_id: str, question: str, answer: str, **begin: Any) -> int:
    turn = history.begin(session_id, question, **begin)
    return history.finish(
        turn.id, answer=answer, details={"quotes": [{"number": 1, "text": "So.", "name": "a.pdf"}]}
    ).id


def contents(history: History, user: str = "local") -> dict[str, list[tuple[str, str, str, bool]]]:
    return {
        session.id: [
            (turn.question, turn.answer, turn.status, bool(turn.details))
            for turn in history.turns(session.id, user, limit=10_000)
        ]
        for session in history.sessions(user, limit=10_000)
    }


def filled(history: History) -> None:
    first = ask(history, "contract", "How long?", "Three\nmonths \u2028 \x00 😀")
    ask(history, "contract", "And managers?", "Six.")
    ask(history, "contract", "And for managers?", "Six months.", parent_id=first)
    ask(history, "other", "Hi", "Ho")
    history.rename("other", "Greetings")
    ask(history, "his", "secret", "of bob", user="bob")


def test_an_export_comes_back_with_all_branches(history: History, tmp_path: Path) -> None:
    filled(history)
    (tmp_path / "all.jsonl").write_text("".join(export_jsonl(history)), encoding="utf-8")
    with History.open(tmp_path / "fresh") as fresh:
        seen: list[int] = []
        report = import_file(fresh, tmp_path / "all.jsonl", on_progress=lambda done: seen.append(done.conversations))
        assert (report.kind, report.conversations, report.turns, report.skipped, report.cut_off) == (
            "thimble", 2, 4, [], "",
        )  # fmt: skip
        assert seen[-1] == 2
        assert contents(fresh) == contents(history)
        assert fresh.session("other").title == "Greetings"
        turn = fresh.turns("contract")[1]
        assert len(fresh.siblings("contract", turn.id)) == 2
        again = import_file(fresh, tmp_path / "all.jsonl")
        assert again.conversations == 0
        assert [reason for _, reason in again.skipped] == ["it is here already"] * 2
        assert fresh.check().ok


def test_one_user_exports_nothing_of_another(history: History) -> None:
    filled(history)
    assert "secret" not in "".join(export_jsonl(history))
    assert "secret" in "".join(export_jsonl(history, "bob"))
    with pytest.raises(UnknownSessionError):
        list(export_markdown(history, "local", "his"))


def test_markdown_reads_well(history: History) -> None:
    filled(history)
    text = "".join(export_markdown(history, session_id="contract"))
    assert text.startswith("# How long?\n\n## You, ")
    assert "## Thimble\n\nSix months.\n" in text
    assert "> [1] So. — a.pdf" in text
    assert "And managers?" not in text


def test_a_cut_off_export_gives_what_is_whole_and_says_so(history: History, tmp_path: Path) -> None:
    filled(history)
    whole = "".join(export_jsonl(history)).encode()
    for cut in sorted(random.Random(4).sample(range(60, len(whole) - 1), 40)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        with History.open(tmp_path / f"fresh-{cut}") as fresh:
            report = import_file(fresh, path)
            assert report.cut_off, cut
            assert "cut off" in str(report)
            ends = whole[:cut].count(b"\n")
            turns = sum(json.loads(line)["type"] == "turn" for line in whole.splitlines()[:ends])
            assert report.turns == turns


def node(key: str, parent: str | None, children: list[str], role: str = "", text: str = "", **more: Any) -> Any:
    content = {"content_type": "text", "parts": [text]}
    message = {"author": {"role": role}, "content": content, "create_time": 5.5, **more}
    return {"id": key, "parent": parent, "children": children, "message": message if role else None}


def chatgpt(**changes: Any) -> dict[str, Any]:
    mapping = {
        "root": node("root", None, ["sys"]),
        "sys": node("sys", "root", ["q1"], "system", "hidden"),
        "q1": node("q1", "sys", ["a1", "a1b"], "user", "Capital of France?"),
        "a1": node("a1", "q1", ["q2", "q2b"], "assistant", "Paris."),
        "a1b": node("a1b", "q1", [], "assistant", "Lyon?"),
        "q2": node("q2", "a1", ["t2"], "user", "Weather?"),
        "t2": node("t2", "q2", ["r2"], "assistant", "search(weather)", recipient="browser"),
        "r2": node("r2", "t2", ["a2"], "tool", "sunny"),
        "a2": node("a2", "r2", ["a3"], "assistant", "Let me see."),
        "a3": node("a3", "a2", [], "assistant", "Sunny."),
        "q2b": node("q2b", "a1", [], "user", "And Spain?"),
    }
    return {
        "title": "France",
        "conversation_id": "c-1",
        "create_time": 5,
        "mapping": mapping,
        "current_node": "a3",
        **changes,
    }


def test_chatgpt_trees_keep_their_branches(history: History, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([chatgpt(), {"odd": 1}, 7, chatgpt(conversation_id="c-2", mapping={}, title="Empty")]))
    report = import_file(history, path)
    assert (report.kind, report.conversations, report.turns) == ("chatgpt", 1, 4)
    assert [name for name, _ in report.skipped] == ["conversation 2", "conversation 3", "Empty"]
    assert history.session("chatgpt-c-1").title == "France"
    shown = history.turns("chatgpt-c-1")
    assert [(turn.question, turn.answer) for turn in shown] == [
        ("Capital of France?", "Paris."), ("Weather?", "Let me see.\n\nSunny."),
    ]  # fmt: skip
    others = [history.turn(key, "chatgpt-c-1").question for key in history.siblings("chatgpt-c-1", shown[1].id)]
    assert sorted(others) == ["And Spain?", "Weather?"]
    answers = {history.turn(key, "chatgpt-c-1").answer for key in history.siblings("chatgpt-c-1", shown[0].id)}
    assert answers == {"Paris.", "Lyon?"}
    assert history.check().ok


def test_half_characters_and_broken_items_cost_nothing_else(history: History, tmp_path: Path) -> None:
    odd = chatgpt(conversation_id="c-odd", title="half \ud83d \x00 of it")
    odd["mapping"]["a3"]["message"]["content"]["parts"] = ["half \udc00 and bell \x07"]
    latin = json.dumps(chatgpt(conversation_id="c-latin", title="caf\xe9"), ensure_ascii=False).encode("latin-1")
    parts = [json.dumps(odd).encode(), latin, b'{"title": oops}', json.dumps(chatgpt()).encode()]
    (tmp_path / "conversations.json").write_bytes(b"[" + b",\n".join(parts) + b"]")
    report = import_file(history, tmp_path / "conversations.json")
    assert (report.conversations, report.skipped, report.cut_off) == (3, [("conversation 3", "not JSON")], "")
    assert history.turns("chatgpt-c-odd")[-1].answer == "Let me see.\n\nhalf \ufffd and bell \x07"
    assert history.session("chatgpt-c-odd").title == "half \ufffd of it"
    assert history.session("chatgpt-c-latin").title == "caf\ufffd"
    assert history.check().ok


def test_chatgpt_zip_and_cut_off(history: History, tmp_path: Path) -> None:
    text = json.dumps([chatgpt(conversation_id=f"c-{n}") for n in range(5)])
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as bundle:
        bundle.writestr("data/conversations.json", text)
    assert import_file(history, tmp_path / "export.zip").conversations == 5
    (tmp_path / "cut.json").write_text(text[: int(len(text) * 0.7)])
    with History.open(tmp_path / "fresh") as fresh:
        report = import_file(fresh, tmp_path / "cut.json")
        assert report.conversations == 3
        assert "conversation 4" in report.cut_off


def test_sharegpt_lists_arrays_and_lines(history: History, tmp_path: Path) -> None:
    said = [("human", "Hi"), ("gpt", "Ho"), ("human", "And?"), ("gpt", "So.")]
    one = {"id": "x/1", "conversations": [{"from": who, "value": text} for who, text in said]}
    asked = {"role": "user", "content": [{"type": "text", "text": "Q"}]}
    two = {"messages": [{"role": "system", "content": "be nice"}, asked, {"role": "assistant", "content": "A"}]}
    (tmp_path / "a.json").write_text(json.dumps([one, two], indent=1))
    (tmp_path / "b.jsonl").write_text(json.dumps(one) + "\n" + json.dumps(two) + "\nnot json\n" + json.dumps(two))
    report = import_file(history, tmp_path / "a.json", "ann")
    assert (report.conversations, report.turns) == (2, 3)
    report = import_file(history, tmp_path / "b.jsonl", "bob")
    assert (report.conversations, report.turns) == (2, 3)
    assert [reason for _, reason in report.skipped] == ["not JSON", "it is here already"]
    assert contents(history, "ann") == contents(history, "bob")
    assert sorted(turns[0][:2] for turns in contents(history, "bob").values()) == [("Hi", "Ho"), ("Q", "A")]


JUNK = (b"", b"hello", b"[]", b"{}", b"[1, 2]", b'{"a": [', b"\x00\x01", b"PK\x03\x04junk", b"\x1f\x8b")


@pytest.mark.parametrize("content", JUNK)
def test_other_files_are_refused_in_words(history: History, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    try:
        said = str(import_file(history, tmp_path / "other.json"))
    except ImportFormatError as exc:
        said = str(exc)
    assert "other.json" in said or "cut off" in said
    assert history.sessions() == []


def test_a_missing_file_is_named(history: History, tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"none\.json"):
        import_file(history, tmp_path / "none.json")


def test_the_archive_can_be_imported(tmp_path: Path) -> None:
    with History.open(tmp_path / "small", max_bytes=1_000_000) as history:
        for number in range(150):
            ask(history, f"s{number // 10}", f"question {number} " + "long " * 1000, "yes")
        left = {turn.question for session in history.sessions(limit=100) for turn in history.turns(session.id)}
    archives = list((tmp_path / "small" / "archive").glob("*.gz"))
    assert archives
    assert all(gzip.decompress(path.read_bytes()) for path in archives)
    with History.open(tmp_path / "fresh") as fresh:
        for path in archives:
            assert import_file(fresh, path).conversations > 0
        back = {turn.question for session in fresh.sessions(limit=100) for turn in fresh.turns(session.id)}
    assert len(back | left) == 150
    assert not back & left


KEYS = [
    *("mapping", "conversations", "messages", "from", "value", "role", "content", "parts", "message", "author"),
    *("children", "parent", "id", "title", "current_node", "a"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(json_values, max_size=4))
def test_no_json_crashes_an_import(history: History, tmp_path: Path, items: list[Any]) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(items))
    try:
        report = import_file(history, path)
    except ImportFormatError:
        return
    assert report.conversations + report.skipped_count == len(items)


MEASURE = """
import sys
from pathlib import Path
from assistant.history import History
from assistant.memory import PeakMeter
from assistant.transfer import import_file
with History.open(Path(sys.argv[1])) as history:
    with PeakMeter() as meter:
        report = import_file(history, Path(sys.argv[2]))
    print(report.conversations, meter.peak - meter.before)
"""


def test_importing_many_conversations_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(1000):
            file.write(
                ("," if number else "") + json.dumps(chatgpt(conversation_id=f"c-{number}", filler="x" * 20_000))
            )
        file.write("]")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "history"), str(path)], capture_output=True,
                          text=True, check=True, cwd=Path(__file__).parent.parent)  # fmt: skip
    conversations, peak = map(int, done.stdout.split())
    assert conversations == 1000
    assert 0 < peak <= 30_000_000  # of a file of 22 MB
