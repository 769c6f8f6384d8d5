"""The whole turn, on the real models and stores: what is found, said, stored, stopped and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from assistant import Assistant, Settings
from assistant.errors import (
    AccessError,
    ContextOverflowError,
    QuestionError,
    StaleSessionError,
    UnknownDocumentError,
    UnknownSessionError,
)
from assistant.records import Done, Queued, Retrieved, Token
from assistant.settings import ROOT


@pytest.fixture(scope="module")
def settings(packaged_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("thimble")
    return Settings(
        models_dir=packaged_models, store_dir=folder / "chroma_store", history_dir=folder / "history", max_new_tokens=60
    )


@pytest.fixture(scope="module")
def assistant(settings: Settings) -> Iterator[Assistant]:
    with Assistant(settings) as made:
        report = made.ingest([ROOT / "samples"])
        assert not report.refused, report.refused
        yield made


def test_an_answer_carries_the_quote_it_rests_on_and_receipts_that_add_up(assistant: Assistant) -> None:
    answer = assistant.ask("How long is the notice period after the trial period?")
    assert any("six weeks to the end of a month" in quote.text for quote in answer.quotes[:2])
    handbook = (ROOT / "samples" / "handbook.md").read_text()
    for quote in answer.quotes:
        if quote.name == "handbook.md":
            assert " ".join(quote.text.split()) in " ".join(handbook.split())
    assert answer.status == "done"
    assert answer.text
    tokens = answer.tokens
    assert tokens is not None
    parts = tokens.template + tokens.system + tokens.window + tokens.recalled + tokens.evidence + tokens.question
    assert parts == tokens.prompt
    assert tokens.prompt + tokens.reserve <= tokens.context
    assert tokens.generated > 0
    memory = answer.memory
    assert memory is not None
    assert memory.peak >= max(memory.before, memory.after) > 0
    assert memory.left == memory.budget - memory.after
    json.dumps(answer.as_dict())


def test_a_follow_up_finds_what_it_refers_to(assistant: Assistant) -> None:
    first = assistant.ask("How long is the notice period?", session_id="follow-up")
    second = assistant.ask("And for managers?", session_id=first.session_id)
    assert any(
        "three months to the end of a\nquarter" in quote.text or "managers" in quote.text for quote in second.quotes
    )
    assert len(second.searched) > 1
    assert second.tokens is not None
    assert second.tokens.window_turns == (first.turn_id,)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How often should I descale the kettle?", "every four weeks"),
        ("What does the travel kettle cost?", "35.50"),
        ("How many days do I have to return unused articles?", "45 days"),
        ("Why does the light blink red three times?", "without water"),
    ],
)
def test_every_sample_format_is_quoted(assistant: Assistant, question: str, expected: str) -> None:
    answer = assistant.ask(question)
    assert any(expected in quote.text for quote in answer.quotes), [quote.text for quote in answer.quotes]


def test_what_no_document_says_is_said_to_be_unsaid(assistant: Assistant) -> None:
    answer = assistant.ask("Who won the chess world championship in 1972?")
    assert answer.answerable < assistant.settings.answer_threshold
    assert answer.text.startswith("The documents don't seem to say")
    assert answer.tokens is None
    assert answer.declined
    again = assistant.ask("How many days of paid holiday are there?", session_id=answer.session_id)
    assert not again.declined
    assert again.tokens is not None
    assert answer.turn_id not in again.tokens.window_turns
    assert "don't seem to say" not in again.text


@pytest.mark.parametrize(("style", "turns"), [("auto", False), ("questions", False), ("turns", True)])
def test_a_small_model_is_given_questions_unless_told_otherwise(
    style: str, turns: bool, tmp_path: Path, packaged_models: Path
) -> None:
    settings = Settings(models_dir=packaged_models, store_dir=tmp_path / "s", history_dir=tmp_path / "h",
                        window_style=style)  # fmt: skip
    with Assistant(settings) as assistant:
        assert (assistant.parts.earlier is None) == turns


def test_events_come_in_order_and_the_pieces_are_the_answer(assistant: Assistant) -> None:
    events = list(assistant.stream("How long is the trial period?"))
    kinds = [type(event) for event in events]
    assert kinds[0] is Retrieved
    assert kinds[-1] is Done
    assert kinds.count(Retrieved) == kinds.count(Done) == 1
    done = events[-1]
    assert isinstance(done, Done)
    assert "".join(event.text for event in events if isinstance(event, Token)) == done.answer.text


def test_a_stopped_turn_keeps_what_there_was(assistant: Assistant) -> None:
    stop = threading.Event()
    answer = None
    for event in assistant.stream("What is said about working from home?", session_id="stopped", stop=stop):
        if isinstance(event, Token):
            stop.set()
        if isinstance(event, Done):
            answer = event.answer
    assert answer is not None
    assert answer.status == "stopped"
    (turn,) = assistant.history.turns("stopped")
    assert turn.status == "stopped"
    assert turn.answer == answer.text != ""


def test_closing_the_stream_stops_the_turn(assistant: Assistant) -> None:
    events = assistant.stream("What is said about holidays?", session_id="closed")
    text = ""
    for event in events:
        if isinstance(event, Token):
            text += event.text
            break
    events.close()  # type: ignore[attr-defined]
    (turn,) = assistant.history.turns("closed")
    assert turn.status == "stopped"
    assert turn.answer == text
    assert assistant.parts.admission.running == 0


def test_turns_of_two_users_queue_and_stay_apart(assistant: Assistant) -> None:
    seen: list[object] = []
    first = assistant.stream("How many days of paid holiday?", session_id="shared", user="ann")
    next(first)

    def second() -> None:
        seen.extend(assistant.stream("Who pays for fire safety courses?", session_id="shared", user="bob"))

    thread = threading.Thread(target=second)
    thread.start()
    while not any(isinstance(event, Queued) for event in seen) and thread.is_alive():
        thread.join(0.01)
    list(first)
    thread.join(60)
    assert isinstance(seen[0], Queued)
    assert isinstance(seen[-1], Done)
    assert seen[-1].answer.time.queued_s > 0
    assert [turn.question for turn in assistant.history.turns("shared", "ann")] == ["How many days of paid holiday?"]
    with pytest.raises(UnknownSessionError):
        assistant.history.turns("shared", "eve")


def test_retry_and_edit_keep_the_old_branch(assistant: Assistant) -> None:
    first = assistant.ask("How long is the trial period?", session_id="branches")
    *_, retried = assistant.retry("branches")
    assert isinstance(retried, Done)
    turns = assistant.history.turns("branches")
    assert [turn.id for turn in turns] == [retried.answer.turn_id]
    list(assistant.edit("branches", retried.answer.turn_id, "How long is the warranty?"))
    assert assistant.history.turns("branches")[0].question == "How long is the warranty?"
    assistant.history.switch("branches", first.turn_id)
    assert assistant.history.turns("branches")[0].id == first.turn_id
    assert assistant.undo("branches") is not None
    assert assistant.history.turns("branches") == []


def test_a_stale_caller_is_refused(assistant: Assistant) -> None:
    assistant.ask("How long is the trial period?", session_id="stale")
    with pytest.raises(StaleSessionError):
        list(assistant.stream("And then?", session_id="stale", expected_version=0))
    assert len(assistant.history.turns("stale")) == 1


@pytest.mark.parametrize("question", ["", "  \n "])
def test_an_empty_question_is_refused_and_not_stored(assistant: Assistant, question: str) -> None:
    with pytest.raises(QuestionError):
        assistant.ask(question, session_id="empty-question")
    with pytest.raises(UnknownSessionError):
        assistant.history.session("empty-question")


def test_too_long_a_question_says_by_how_much_and_is_kept_as_failed(assistant: Assistant) -> None:
    with pytest.raises(ContextOverflowError, match="token") as caught:
        assistant.ask("notice period " * 3000, session_id="long")
    assert caught.value.over_tokens > 3000
    (turn,) = assistant.history.turns("long")
    assert turn.status == "failed"
    assert turn.answer == ""
    assert "token" in turn.error


def test_documents_can_be_listed_chosen_and_removed(assistant: Assistant, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The password of the guest network is changed on the first Tuesday of each month.")
    assistant.ingest([note], session_id="private")
    assert "note.txt" in {document.name for document in assistant.documents(session_id="private")}
    assert "note.txt" not in {document.name for document in assistant.documents()}
    question = "When is the password of the guest network changed?"
    assert any("first Tuesday" in quote.text for quote in assistant.ask(question, session_id="private").quotes)
    assert not any("first Tuesday" in quote.text for quote in assistant.ask(question, session_id="other").quotes)
    only = assistant.ask(question, session_id="private", documents=["handbook.md"])
    assert {quote.name for quote in only.quotes if quote.kind == "document"} <= {"handbook.md"}
    with pytest.raises(AccessError):
        assistant.remove_document("handbook.md", user="ann")
    assistant.remove_document("note.txt", session_id="private")
    with pytest.raises(UnknownDocumentError, match=r"note\.txt"):
        assistant.remove_document("note.txt", session_id="private")


def test_everything_is_there_after_a_restart(settings: Settings, assistant: Assistant) -> None:
    assistant.ask("How long is the trial period?", session_id="restart")
    with Assistant(settings) as again:
        (turn,) = again.history.turns("restart")
        assert turn.answer
        assert turn.details["quotes"]
        report = again.ingest([ROOT / "samples"])
        assert (report.chunks_embedded, len(report.added), len(report.updated)) == (0, 0, 0)


def test_without_a_chat_model_the_quotes_are_the_answer(settings: Settings, assistant: Assistant) -> None:
    fields = {name: getattr(settings, name) for name in ("models_dir", "store_dir", "history_dir")}
    with Assistant(Settings(model="none", **fields)) as without:
        answer = without.ask("How long is the notice period after the trial period?")
    assert "six weeks" in answer.text
    assert "[1]" in answer.text
    assert answer.tokens is None


def test_models_leave_when_idle_and_come_back(settings: Settings, assistant: Assistant) -> None:
    fields = {name: getattr(settings, name) for name in ("models_dir", "store_dir", "history_dir")}
    with Assistant(Settings(idle_unload_s=0.5, max_new_tokens=8, **fields)) as idle:
        first = idle.ask("How long is the trial period?", session_id="idle")
        model = idle.parts.chat_model
        assert model is not None
        pause = threading.Event()
        for _ in range(600):
            if not (model.loaded or idle.embedder.loaded):
                break
            pause.wait(0.05)
        assert not model.loaded
        assert not idle.embedder.loaded
        second = idle.ask("How long is the trial period?", session_id="idle")
        assert idle.parts.chat_model is model
        assert [quote.text for quote in second.quotes[:2]] == [quote.text for quote in first.quotes[:2]]
        assert second.text


@pytest.mark.parametrize("model", ["packaged", "none"])
def test_five_megabytes_are_no_question(model: str, settings: Settings, tmp_path: Path) -> None:
    pasted = "why is the sky blue? " * 250_000
    fresh = Settings(model=model, models_dir=settings.models_dir, store_dir=tmp_path / "s", history_dir=tmp_path / "h")
    with Assistant(fresh) as new:
        with pytest.raises(QuestionError, match="5,250,000 characters, and 200,000 are the most"):
            new.ask(pasted, session_id="pasted")
        assert new.history.sessions() == []
        assert new.parts._made == {}, "something was loaded for it"


def test_a_new_model_is_run_with_the_smallest_weights_from_the_first_start_on(
    packaged_models: Path, tmp_path: Path
) -> None:
    from assistant.inference import quantized

    folder = tmp_path / "new-model"
    folder.mkdir()
    for path in (packaged_models / "smollm2-135m-instruct").iterdir():
        if not path.name.startswith("model.int"):
            (folder / path.name).symlink_to(path.resolve())
    settings = Settings(model=str(folder), models_dir=packaged_models, store_dir=tmp_path / "store",
                        history_dir=tmp_path / "history")  # fmt: skip
    with Assistant(settings) as assistant:
        model = assistant.parts.chat_model
        assert model is not None
        assert model.dtype == ("int4" if quantized.has_int4() else "int8")
    assert (folder / f"model.{model.dtype}.safetensors").is_file()
    assert not (folder / "model.int8.safetensors").exists() or model.dtype == "int8"
