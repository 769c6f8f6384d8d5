"""Recall: a fact from long ago comes back, to its user alone, and only when it matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assistant import Assistant, Settings
from assistant.embedding import Embedder
from assistant.history import History, NewTurn
from assistant.recall import Recall
from assistant.records import Message
from assistant.settings import ROOT

FACT = "By the way, our cat Schnurri was born in the barn of my aunt in Tübingen."


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "history") as opened:
        yield opened


def small_talk(history: History, session_id: str, *, user: str = "local", turns: int = 400, fact: str = FACT) -> None:
    topics = ("invoices", "the roof", "train times", "a birthday cake", "the printer", "holiday plans", "taxes")
    history.add(
        session_id,
        [
            NewTurn(
                str(number), str(number - 1) if number else None,
                fact if number == 2 else f"What about {topics[number % 7]} in week {number}?",
                "How nice." if number == 2 else f"Nothing new about {topics[number % 7]} so far.",
            )
            for number in range(turns)
        ],
        user=user,
    )  # fmt: skip


def test_a_fact_from_turn_three_comes_back_after_400_turns_and_a_restart(tmp_path: Path, embedder: Embedder) -> None:
    with History.open(tmp_path) as history:
        small_talk(history, "s")
    with History.open(tmp_path) as history:
        window = [turn.id for turn in history.turns("s", limit=8)]
        quotes = Recall(history, embedder).search("Where was Schnurri born?", turns=window, session_id="s")
        assert quotes[0].text == FACT
        third = history.turns("s", limit=1000)[2]
        assert (quotes[0].kind, quotes[0].turn_id, quotes[0].said_by) == ("turn", third.id, "user")
        assert quotes[0].text == third.question[quotes[0].start : quotes[0].end]
        assert quotes[0].score > 0.55
        assert history.check().ok


def test_what_does_not_matter_is_not_recalled(history: History, embedder: Embedder) -> None:
    small_talk(history, "s")
    recall = Recall(history, embedder)
    assert recall.search("Who won the 1954 football world cup?", session_id="s") == []
    assert recall.search("How do I boil an egg?", session_id="s") == []


def test_turns_in_the_window_are_not_recalled(history: History, embedder: Embedder) -> None:
    small_talk(history, "s", turns=5)
    everything = [turn.id for turn in history.turns("s")]
    recall = Recall(history, embedder)
    assert recall.search("Where was Schnurri born?", turns=everything, session_id="s") == []
    assert recall.search("Where was Schnurri born?", session_id="s")


def test_other_sessions_only_when_asked_and_other_users_never(history: History, embedder: Embedder) -> None:
    small_talk(history, "cats", turns=20)
    small_talk(history, "new", turns=20, fact="Nothing of note.")
    small_talk(history, "cats", user="bob", turns=20, fact="Schnurri was born on the moon, says bob.")
    recall = Recall(history, embedder)
    assert recall.search("Where was Schnurri born?", session_id="new") == []
    found = recall.search("Where was Schnurri born?", session_id="new", across_sessions=True)
    assert [quote.text for quote in found][:1] == [FACT]
    assert {quote.session_id for quote in found} == {"cats"}
    assert found[0].name == history.session("cats").title
    assert not [quote for quote in found if "bob" in quote.text]
    assert recall.search("Where was Schnurri born?", user="eve", session_id="cats") == []
    assert recall.search("Where was Schnurri born?", user="eve", across_sessions=True) == []


def test_turns_of_another_branch_are_not_recalled(history: History, embedder: Embedder) -> None:
    small_talk(history, "s", turns=6)
    before = history.turns("s")[1]
    history.finish(history.begin("s", "Let us start over.", parent_id=before.id).id, answer="All right.")
    assert Recall(history, embedder).search("Where was Schnurri born?", session_id="s") == []


def test_a_deleted_session_takes_its_vectors_along(history: History, embedder: Embedder) -> None:
    small_talk(history, "s", turns=10)
    recall = Recall(history, embedder)
    assert recall.index(session_id="s") == 10
    assert recall.index(session_id="s") == 0
    assert history.recall_index.embedded("local", "s")
    history.delete("s")
    assert history.recall_index.embedded("local", None) == []
    assert recall.search("Where was Schnurri born?", session_id="s") == []


def test_stored_vectors_say_what_the_embedder_says(history: History, embedder: Embedder) -> None:
    small_talk(history, "s", turns=6)
    Recall(history, embedder).index(session_id="s")
    ((ids, blob),) = history.recall_index.vectors("local", "s")
    packed = np.frombuffer(blob, [("scale", "<f4"), ("values", "i1", (embedder.dimension,))])
    kept = packed["values"] * packed["scale"][:, None]
    texts = [text for turn in history.turns("s") for text in (turn.question, turn.answer)]
    assert len(ids) == 6
    assert (kept * embedder.embed(texts)).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("session_id", ["s", None])
def test_reading_vectors_sorts_nothing(history: History, embedder: Embedder, session_id: str | None) -> None:
    small_talk(history, "s", turns=6)
    Recall(history, embedder).index(session_id="s")
    asked: list[str] = []
    history._db._reader.set_trace_callback(asked.append)
    list(history.recall_index.vectors("local", session_id))
    history._db._reader.set_trace_callback(None)
    assert asked
    plan = " ".join(row["detail"] for row in history._db.all("EXPLAIN QUERY PLAN " + asked[0]))
    assert "TEMP B-TREE" not in plan, "a page of vectors would cost sorting all that come after it"


def test_a_long_turn_is_quoted_by_its_best_sentences(history: History, embedder: Embedder) -> None:
    long = "It rained all day and nothing else happened. " * 20 + FACT + " Then it rained again for a week. " * 20
    small_talk(history, "s", turns=30, fact=long)
    quote = Recall(history, embedder).search("Where was Schnurri born?", session_id="s")[0]
    assert FACT in quote.text
    assert len(quote.text) < 800
    assert long[quote.start : quote.end] == quote.text


def test_after_400_turns_and_a_restart_the_model_reads_the_fact_from_turn_three(
    packaged_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        models_dir=packaged_models, store_dir=tmp_path / "store", history_dir=tmp_path / "history", max_new_tokens=40
    )
    with Assistant(settings) as assistant:
        assistant.ingest([ROOT / "samples"])
        small_talk(assistant.history, "s")
    with Assistant(settings) as assistant:
        model, read = assistant.parts.chat_model, []
        assert model is not None
        start = model.start

        def noted(messages: Sequence[Message], *args: Any, **more: Any) -> Any:
            read.append((list(messages), model.count_prompt(messages)))
            return start(messages, *args, **more)

        monkeypatch.setattr(model, "start", noted)
        answer = assistant.ask("Where was our cat Schnurri born?", session_id="s")
        third = assistant.history.turns("s", limit=1000)[2]
        assert third.question == FACT
        quote = next(quote for quote in answer.quotes if quote.turn_id == third.id)
        assert (quote.kind, quote.text, quote.said_by) == ("turn", FACT, "user")
        ((messages, length),) = read
        assert FACT in messages[-1]["content"]
        assert not any(FACT in message["content"] for message in messages[:-1]), "it was in the window"
        assert answer.tokens is not None
        assert third.id in answer.tokens.recalled_turns
        assert third.id not in answer.tokens.window_turns
        assert answer.tokens.recalled > 0
        assert answer.tokens.prompt == length
        kept = assistant.history.turns("s", limit=1)[0].details
        assert FACT in [quote["text"] for quote in kept["quotes"]]
        assert third.id in kept["tokens"]["recalled_turns"]
        assert assistant.history.check().ok
