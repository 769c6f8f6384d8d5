"""Budget: the receipt's parts add up to the length of the true prompt, to the token, whatever goes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.budget import LISTED_LEFT_OUT, Fitted, fit, fit_window
from assistant.errors import ContextOverflowError
from assistant.inference.chat_text import ChatText
from assistant.prompts import Prompts
from assistant.records import Message, Quote, Turn

ROOT = Path(__file__).resolve().parent.parent


class Model:
    """The real tokenizer and chat template of the packaged model, which counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.text = ChatText(folder)
        self.asked = 0

    def count_prompt(self, messages: Sequence[Message]) -> int:
        self.asked += 1
        return len(self.text.prompt(messages))


@pytest.fixture(scope="module")
def model(packaged_models: Path) -> Model:
    return Model(packaged_models / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts.load(ROOT / "prompts")


def turn(number: int, question: str, answer: str, status: str = "done") -> Turn:
    return Turn(number, "s", number - 1 or None, question, answer, status, 0.0)  # type: ignore[arg-type]


def quote(number: int, text: str, **more: object) -> Quote:
    return replace(Quote(number, text, "a.pdf", 0.5), **more)


def recalled(number: int, turn_id: int, text: str) -> Quote:
    return quote(number, text, kind="turn", turn_id=turn_id, said_by="user")


def parts(fitted: Fitted) -> list[int]:
    receipt = fitted.receipt
    return [receipt.template, receipt.system, receipt.window, receipt.recalled, receipt.evidence, receipt.question]


def assert_adds_up(model: Model, fitted: Fitted) -> None:
    receipt = fitted.receipt
    assert min(parts(fitted)) >= 0
    assert sum(parts(fitted)) == receipt.prompt == len(model.text.prompt(fitted.messages))
    assert receipt.prompt + receipt.reserve <= receipt.context


def test_everything_fits_and_is_counted(model: Model, prompts: Prompts) -> None:
    window = [turn(2, "And managers?", "Six months."), turn(1, "How long is the notice?", "Three months.")]
    fitted = fit(
        prompts.system, window, [recalled(3, 9, "My name is Ada.")], [quote(1, "The notice period is three months.")],
        "Why?", context_tokens=2048, reserve_tokens=256, model=model, render=prompts.user_message,
    )  # fmt: skip
    assert_adds_up(model, fitted)
    assert all(part > 0 for part in parts(fitted))
    assert fitted.receipt.window_turns == (1, 2)
    assert fitted.receipt.recalled_turns == (9,)
    assert (fitted.receipt.left_out_turns, fitted.receipt.left_out_quotes) == ((), ())
    assert [message["role"] for message in fitted.messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert "Ada" in fitted.messages[-1]["content"]


def test_newest_turns_first_and_the_rest_is_listed(model: Model, prompts: Prompts) -> None:
    reads = 0

    def window() -> Iterator[Turn]:
        nonlocal reads
        for number in range(100_000, 0, -1):
            reads += 1
            yield turn(number, f"Question {number}?", "An answer of some ten words, more or less, in all.")

    model.asked = 0
    fitted = fit(
        prompts.system, window(), (), (), "Now?", context_tokens=2048, reserve_tokens=256, model=model,
        render=prompts.user_message, window_tokens=300, total_turns=100_000,
    )  # fmt: skip
    assert_adds_up(model, fitted)
    shown = fitted.receipt.window_turns
    assert shown == tuple(range(100_001 - len(shown), 100_001))
    assert 5 < len(shown) < 20
    assert 200 < fitted.receipt.window <= 300
    newest = 100_000 - len(shown)
    assert fitted.receipt.left_out_turns == tuple(range(newest, newest - LISTED_LEFT_OUT, -1))
    assert fitted.receipt.left_out_count == newest
    assert reads < 50
    assert model.asked < 50


def test_failed_and_empty_turns_stay_out(model: Model, prompts: Prompts) -> None:
    window = [turn(5, "q5", "", "running"), turn(4, "q4", "half", "interrupted"), turn(3, "q3", "oops", "failed"),
              turn(2, "q2", " ", "stopped"), turn(1, "q1", "yes")]  # fmt: skip
    fitted = fit(prompts.system, window, (), (), "Now?", context_tokens=2048, reserve_tokens=9, model=model,
                 render=prompts.user_message)  # fmt: skip
    assert fitted.receipt.window_turns == (1, 4)


def test_a_window_of_questions_stands_at_the_head_of_the_last_message(model: Model, prompts: Prompts) -> None:
    window = [turn(2, "And managers?", "three months"), turn(1, "How long is notice?", "six weeks")]
    fitted = fit(prompts.system, window, (), [quote(1, "Notice is in writing.")], "Now?", context_tokens=2048,
                 reserve_tokens=9, model=model, render=prompts.user_message,
                 earlier=prompts.earlier_questions)  # fmt: skip
    assert [message["role"] for message in fitted.messages] == ["system", "user"]
    last = fitted.messages[-1]["content"]
    assert last.startswith("Asked before: How long is notice? And managers?\n")
    assert "months" not in last
    assert "weeks" not in last
    assert fitted.receipt.window_turns == (1, 2)
    assert fitted.receipt.window > 0
    assert fitted.receipt.prompt == model.count_prompt(fitted.messages)


def test_a_declined_turn_stays_out_lest_the_model_takes_it_for_the_way_to_reply(model: Model, prompts: Prompts) -> None:
    declined = replace(turn(2, "q2", "The documents don't seem to say."), details={"declined": True})
    answered = replace(turn(1, "q1", "yes"), details={"declined": False})
    fitted = fit(prompts.system, [declined, answered], (), (), "Now?", context_tokens=2048, reserve_tokens=9,
                 model=model, render=prompts.user_message)  # fmt: skip
    assert fitted.receipt.window_turns == (1,)


def test_what_is_in_the_window_is_not_recalled_again(model: Model, prompts: Prompts) -> None:
    fitted = fit(
        prompts.system, [turn(7, "My cat is Tom.", "Nice.")],
        [recalled(1, 7, "My cat is Tom."), recalled(2, 3, "Yes.")], (), "Who is Tom?", context_tokens=2048,
        reserve_tokens=9, model=model, render=prompts.user_message,
    )  # fmt: skip
    assert fitted.receipt.recalled_turns == (3,)


def test_a_long_quote_leaves_room_for_short_ones(model: Model, prompts: Prompts) -> None:
    quotes = [quote(1, "The first. "), quote(2, "a long one " * 200), quote(3, "The third.")]
    fitted = fit(prompts.system, (), (), quotes, "?", context_tokens=2048, reserve_tokens=256, model=model,
                 render=prompts.user_message, evidence_tokens=100)  # fmt: skip
    assert_adds_up(model, fitted)
    assert [kept.number for kept in fitted.evidence] == [1, 3]
    assert fitted.receipt.left_out_quotes == (2,)


def test_too_long_a_question_says_by_how_many_tokens(model: Model, prompts: Prompts) -> None:
    def ask(words: int) -> Fitted:
        return fit(prompts.system, (), (), (), "word " * words, context_tokens=512, reserve_tokens=100, model=model,
                   render=prompts.user_message)  # fmt: skip

    with pytest.raises(ContextOverflowError, match=r"tokens too long.*512") as caught:
        ask(1000)
    over = caught.value.over_tokens
    assert over > 500
    assert_adds_up(model, ask(1000 - over))
    with pytest.raises(ContextOverflowError):
        ask(1000 - over + 1)


def test_a_context_without_room_for_any_question_names_the_settings(model: Model, prompts: Prompts) -> None:
    with pytest.raises(ContextOverflowError, match="max_new_tokens"):
        fit(prompts.system, (), (), (), "?", context_tokens=60, reserve_tokens=50, model=model,
            render=prompts.user_message)  # fmt: skip


def test_the_window_alone_is_the_window_that_fit_chooses(model: Model, prompts: Prompts) -> None:
    window = [turn(number, f"Question {number}?", "So be it. " * number) for number in range(60, 0, -1)]
    alone = fit_window(window, context_tokens=2048, model=model)
    fitted = fit(prompts.system, window, (), (), "?", context_tokens=2048, reserve_tokens=99, model=model,
                 render=prompts.user_message)  # fmt: skip
    assert tuple(alone) == fitted.window


texts = st.text(max_size=60) | st.text(alphabet="ab \n.,:;!?'<|im_end|>[]{}0é😀", max_size=200)
filled = texts.map(lambda text: text or "x")


@settings(max_examples=200, deadline=None)
@given(
    window=st.lists(
        st.tuples(texts, texts, st.sampled_from(["done", "stopped", "failed", "interrupted"])), max_size=12
    ),
    old=st.lists(st.tuples(st.integers(1, 15), filled), max_size=5),
    evidence=st.lists(filled, max_size=6),
    question=texts,
    system=texts,
    context=st.integers(60, 2048),
    reserve=st.integers(1, 256),
    caps=st.tuples(*[st.integers(0, 600)] * 3),
)
def test_parts_always_add_up_to_the_true_prompt(
    model: Model, prompts: Prompts, window: list[tuple[str, str, str]], old: list[tuple[int, str]],
    evidence: list[str], question: str, system: str, context: int, reserve: int, caps: tuple[int, int, int],
) -> None:  # fmt: skip
    turns = [turn(len(window) - place, *said) for place, said in enumerate(window)]
    quotes = [quote(number, text) for number, text in enumerate(evidence, 1)]
    try:
        fitted = fit(
            system, turns, [recalled(9, turn_id, text) for turn_id, text in old], quotes, question,
            context_tokens=context, reserve_tokens=reserve, model=model, render=prompts.user_message,
            window_tokens=caps[0], recall_tokens=caps[1], evidence_tokens=caps[2], total_turns=len(turns),
        )  # fmt: skip
    except ContextOverflowError as exc:
        over = exc.over_tokens
    else:
        over = 0
    bare = model.count_prompt([{"role": "system", "content": system}, {"role": "user", "content": question}])
    assert over == max(0, bare + reserve - context)
    if over:
        return
    assert_adds_up(model, fitted)
    receipt = fitted.receipt
    assert receipt.window <= (caps[0] or context // 4)
    assert receipt.recalled <= (caps[1] or context // 8)
    assert receipt.evidence <= (caps[2] or context * 3 // 8)
    assert set(receipt.window_turns) | set(receipt.left_out_turns) <= {turn.id for turn in turns}
    assert not set(receipt.window_turns) & (set(receipt.left_out_turns) | set(receipt.recalled_turns))
    assert {kept.number for kept in fitted.evidence} | set(receipt.left_out_quotes) == {kept.number for kept in quotes}
    assert fitted.messages[-1]["content"].endswith(question)
