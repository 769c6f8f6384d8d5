"""What the model reads this turn, counted by its own tokenizer, with a receipt that adds up.

Knows nothing about storage or search: it is given turns, quotes and a counter. Nothing is summarised or cut in the
middle; a turn or a quote goes in whole or stays out, and the receipt says so.

Tokens of parts don't add up by themselves: a tokenizer may merge the end of one text with the start of the next. So a
part is measured by what it adds to the prompt when it is put in, in this order: template, system, window, recalled,
evidence, question. The sum of such differences is the length of the whole prompt, whatever the tokenizer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from .errors import ContextOverflowError
from .records import Message, Quote, TokenReceipt, Turn

LISTED_LEFT_OUT = 20
"""How many of the turns that did not fit a receipt names."""

Render = Callable[[str, Sequence[Quote], Sequence[Quote]], str]
"""Makes the user's message of (question, quotes, recalled turns)."""

Earlier = Callable[[Sequence[str]], str]
"""Writes the questions of earlier turns, oldest first, for the head of the user's message."""


class Counter(Protocol):
    """What counts: the chat model."""

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Return the length of the prompt of *messages*: chat template and generation prompt included."""
        ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes into the model, and how it was chosen.

    Attributes:
        window: Turns the model sees, oldest first.
        recalled: Recalled turns that fitted, in the order they were said.
        evidence: Quotes that fitted, best first.
    """

    messages: tuple[Message, ...]
    receipt: TokenReceipt
    window: tuple[Turn, ...]
    recalled: tuple[Quote, ...]
    evidence: tuple[Quote, ...]


def share(context_tokens: int, wanted: int, part: float) -> int:
    """Return *wanted*, or where it is 0 the default *part* of the context."""
    return wanted if wanted > 0 else int(context_tokens * part)


def readable(turn: Turn) -> bool:
    """Return whether a turn may stand in a prompt: it has an answer, whole or in part, and did not fail.

    That the documents don't say is no answer: a small model that sees it before takes it for the way to reply.
    """
    if turn.details.get("declined"):
        return False
    return turn.status in ("done", "stopped", "interrupted") and bool(turn.answer.strip())


def fit(system: str, window: Iterable[Turn], recalled: Sequence[Quote], evidence: Sequence[Quote], question: str, *,
        context_tokens: int, reserve_tokens: int, model: Counter, render: Render, window_tokens: int = 0,
        recall_tokens: int = 0, evidence_tokens: int = 0, total_turns: int | None = None,
        estimated: bool = False, earlier: Earlier | None = None) -> Fitted:  # fmt: skip
    """Choose what the model reads this turn so that prompt and answer fit its context.

    When room is short the question comes first, then evidence, then the window, then recalled turns.

    Args:
        system: The system prompt.
        window: Turns, newest first; read lazily, only as far as they fit (`History.window` is meant).
        recalled: Quotes of old turns, best first. One whose turn is in the window is left out: it is there already.
        evidence: Quotes of documents, best first.
        question: As asked.
        context_tokens: The model's context length, in its own tokens.
        reserve_tokens: Kept free for the answer.
        model: Counts prompts.
        render: Makes the last message.
        window_tokens: Most tokens of the window; 0 is a quarter of the context.
        recall_tokens: Most tokens of recalled turns; 0 is an eighth of the context.
        evidence_tokens: Most tokens of evidence; 0 is three eighths of the context.
        total_turns: Turns there are, so that those left out can be counted without reading them.
        estimated: Whether *model* only estimates.
        earlier: Writes the questions of the window at the head of the last message, and their answers stay out; by
            default the window is given as turns.

    Returns:
        The messages and a receipt whose parts add up to the length of the prompt, to the token.

    Raises:
        ContextOverflowError: The question alone does not fit.
    """
    fitting = _Fitting(system, question, model, render, context_tokens - reserve_tokens, earlier)
    fitting.require_question(context_tokens, reserve_tokens)
    fitting.caps = {
        "evidence": share(context_tokens, evidence_tokens, 3 / 8),
        "window": share(context_tokens, window_tokens, 1 / 4),
        "recalled": share(context_tokens, recall_tokens, 1 / 8),
    }
    fitting.add_evidence(evidence)
    left_out = fitting.add_window(window)
    fitting.add_recalled(recalled)
    parts = fitting.settle()
    shown = {quote.number for quote in fitting.evidence}
    left_out = [*(turn.id for turn in fitting.dropped), *left_out][:LISTED_LEFT_OUT]
    count = len(left_out) if total_turns is None else max(total_turns - len(fitting.window), len(left_out))
    receipt = TokenReceipt(
        context=context_tokens, reserve=reserve_tokens, **parts, prompt=sum(parts.values()),
        window_turns=tuple(turn.id for turn in fitting.window), left_out_turns=tuple(left_out), left_out_count=count,
        recalled_turns=tuple(dict.fromkeys(quote.turn_id for quote in fitting.recalled if quote.turn_id is not None)),
        left_out_quotes=tuple(quote.number for quote in evidence if quote.number not in shown), estimated=estimated,
    )  # fmt: skip
    return Fitted(tuple(fitting.messages()), receipt, tuple(fitting.window), tuple(fitting.recalled),
                  tuple(fitting.evidence))  # fmt: skip


def fit_window(window: Iterable[Turn], *, context_tokens: int, model: Counter, window_tokens: int = 0,
               earlier: Earlier | None = None) -> list[Turn]:  # fmt: skip
    """Return the turns that the window alone would hold, oldest first: those that recall need not look for."""
    fitting = _Fitting("", "", model, lambda question, _quotes, _recalled: question, context_tokens, earlier)
    fitting.caps = {"window": share(context_tokens, window_tokens, 1 / 4)}
    fitting.add_window(window)
    return fitting.window


class _Fitting:
    """The choice as it grows."""

    def __init__(self, system: str, question: str, model: Counter, render: Render, room: int,
                 earlier: Earlier | None) -> None:  # fmt: skip
        self.system, self.question, self.model, self.render, self.room = system, question, model, render, room
        self.earlier = earlier
        self.caps: dict[str, int] = {}
        self.window: list[Turn] = []
        self.recalled: list[Quote] = []
        self.evidence: list[Quote] = []
        self.dropped: list[Turn] = []

    def messages(self) -> list[Message]:
        last = self.render(self.question, self.evidence, self.recalled)
        return self._messages(self.system, self.window, last)

    def count(self) -> int:
        return self.model.count_prompt(self.messages())

    def require_question(self, context_tokens: int, reserve_tokens: int) -> None:
        over = self.count() - self.room
        if over <= 0:
            return
        empty = self.model.count_prompt(self._messages(self.system, (), self.render("", (), ())))
        if empty >= self.room:
            raise ContextOverflowError(
                f"A context of {context_tokens} tokens has no room for a question: the system prompt takes {empty} and "
                f"{reserve_tokens} are kept for the answer; raise context_tokens or lower max_new_tokens.",
                over_tokens=over,
            )
        raise ContextOverflowError(
            f"The question is {over} tokens too long: the model reads {context_tokens}, of which {reserve_tokens} are "
            f"kept for the answer and {empty} are the prompt around it. Shorten it, or put the long part into a "
            "document.",
            over_tokens=over,
        )

    def add_evidence(self, quotes: Sequence[Quote]) -> None:
        """Take quotes, best first; a long one that does not fit leaves room for shorter ones after it."""
        before = self.count()
        for quote in quotes:
            self.evidence.append(quote)
            now = self.count()
            if now > self.room or now - before > self.caps["evidence"]:
                self.evidence.pop()

    def add_window(self, window: Iterable[Turn]) -> list[int]:
        """Take turns, newest first, up to the first that does not fit; return ids of turns left out."""
        bare = self.model.count_prompt(self._messages(self.system, (), ""))
        room, used = min(self.caps["window"], self.room - self.count()), 0
        turns = (turn for turn in window if readable(turn))
        for turn in turns:
            used += self.model.count_prompt(self._messages(self.system, (turn,), "")) - bare
            if used > room:
                rest = islice(turns, LISTED_LEFT_OUT - 1)
                return [turn.id, *(other.id for other in rest)]
            self.window.insert(0, turn)
        return []

    def add_recalled(self, quotes: Sequence[Quote]) -> None:
        seen = {turn.id for turn in self.window}
        before = self.count()
        for quote in quotes:
            if quote.turn_id in seen:
                continue
            chosen = self.recalled
            self.recalled = sorted([*chosen, quote], key=lambda quote: (quote.turn_id or 0, quote.said_by != "user"))
            now = self.count()
            if now > self.room or now - before > self.caps["recalled"]:
                self.recalled = chosen

    def settle(self) -> dict[str, int]:
        """Measure the parts in their order; drop what does not fit after all, where counts don't add up."""
        while True:
            parts = self._parts()
            over = next((name for name, cap in self.caps.items() if parts[name] > cap), "")
            if not over and sum(parts.values()) <= self.room:
                return parts
            if self.recalled and over in ("", "recalled"):
                self.recalled.pop()
            elif self.window and over in ("", "window"):
                self.dropped.insert(0, self.window.pop(0))
            elif self.evidence:
                self.evidence.pop()
            else:
                return parts

    def _parts(self) -> dict[str, int]:
        steps = {
            "template": self._messages("", (), ""),
            "system": self._messages(self.system, (), ""),
            "window": self._messages(self.system, self.window, ""),
            "recalled": self._messages(self.system, self.window, self._said("", (), self.recalled)),
            "evidence": self._messages(self.system, self.window, self._said("", self.evidence, self.recalled)),
            "question": self.messages(),
        }
        parts, last, messages_before, total = {}, "", None, 0
        for name, messages in steps.items():
            before, total = total, total if messages == messages_before else self.model.count_prompt(messages)
            parts[name], messages_before = total - before, messages
            if parts[name] < 0 and last:  # a merge across the border: the part before gave it away
                parts[last], parts[name] = parts[last] + parts[name], 0
            last = name
        return parts

    def _said(self, question: str, quotes: Sequence[Quote], recalled: Sequence[Quote]) -> str:
        return self.render(question, quotes, recalled) if quotes or recalled else ""

    def _messages(self, system: str, window: Sequence[Turn], last: str) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": system}]
        if self.earlier is not None:
            last = self.earlier([turn.question for turn in window]) + last if window else last
        else:
            for turn in window:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
        messages.append({"role": "user", "content": last})
        return messages
