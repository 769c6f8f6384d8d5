"""One turn, in order: store the question, wait, search, fit, write, check, give back, store the answer.

Knows the order, and what happens when a turn is stopped, fails or finds nothing; each step itself lives in its module.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage

from . import budget, grounding, judgement, memory, quotes
from .admission import TurnLimits, occupied
from .budget import Fitted
from .chain import LocalChatModel, compose
from .errors import AssistantError, InferenceError, StoppedError
from .history import FOLLOW
from .inference import ChatModel, GenerationStats, Sampling
from .parts import Parts
from .prompts import fill
from .records import (
    LOCAL_USER,
    Answer,
    Done,
    Event,
    Mark,
    MemoryReceipt,
    Message,
    Queued,
    Quote,
    Retrieved,
    Scope,
    SearchResult,
    TimeReceipt,
    Token,
    Turn,
    TurnStatus,
)
from .settings import Settings
from .units import format_bytes

logger = logging.getLogger(__name__)

_FOLLOW_UP_TURNS = 8  # how far back retrieval looks for what a follow-up refers to
_RECALLED_QUOTES = 3  # most old turns brought back; `recall_tokens` bounds them too
_MESSAGES = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


@dataclass(frozen=True, kw_only=True)
class TurnRequest:
    """What is asked, by whom, and where it belongs.

    Attributes:
        document_ids: Search in these documents only.
        parent_id: The turn it follows; by default the last of the session.
        expected_version: Of the session, as the caller last saw it; None does not check.
        stop: Set it to stop the turn; what there is by then is kept.
    """

    question: str
    session_id: str
    user: str = LOCAL_USER
    document_ids: tuple[str, ...] | None = None
    parent_id: int | None = FOLLOW
    expected_version: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class _State:
    """A turn while it runs; gone when it ends."""

    request: TurnRequest
    turn: Turn
    started: float
    queued_s: float = 0.0
    quotes_s: float = 0.0
    first_token_s: float | None = None
    found: SearchResult = field(default_factory=lambda: SearchResult((), ()))
    quotes: tuple[Quote, ...] = ()
    recalled: tuple[Quote, ...] = ()
    answerable: float = 0.0
    declined: bool = False
    fitted: Fitted | None = None
    stats: GenerationStats | None = None
    text: str = ""
    marks: tuple[Mark, ...] = ()
    actions: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    finished: bool = False

    @property
    def shown(self) -> tuple[Quote, ...]:
        """Quotes of documents and of old turns, in the order of their numbers."""
        return self.quotes + self.recalled


class TurnRunner:
    """Runs turns on the parts of one ``Assistant``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pipeline = compose(self._find, self._fit, self._write)

    def run(self, request: TurnRequest) -> Iterator[Event]:
        """Run one turn and yield what happens.

        The question is stored first, and the answer while it grows. Closing the iterator, or setting
        ``request.stop``, stops the turn; both leave it stored as ``stopped`` with what there was.

        Raises:
            BusyError: The queue is full; nothing was stored.
            AssistantError: The turn failed; it is stored as ``failed`` with the reason beside it.
        """
        parts = self._parts
        started = time.monotonic()
        place = parts.admission.join(request.user)
        try:
            turn = parts.history.begin(
                request.session_id, request.question, user=request.user,
                parent_id=request.parent_id, expected_version=request.expected_version,
            )  # fmt: skip
            state = _State(request, turn, started)
            try:
                for position in place.positions(request.stop):
                    yield Queued(position)
                state.queued_s = place.waited_s
                parts.used()
                yield from self._admitted(state)
            except StoppedError:
                yield Done(self._finish(state, "stopped", None))
            except GeneratorExit:  # the caller wants no more; after Done that is how every turn ends
                request.stop.set()
                if not state.finished:
                    self._finish(state, "stopped", None)
                raise
            except Exception as exc:
                self._fail(state, exc)
                if isinstance(exc, AssistantError):
                    raise
                raise InferenceError(
                    f"This turn broke off ({type(exc).__name__}: {exc}); the question is kept. Ask it again."
                ) from exc
        finally:
            place.leave()
            parts.used()

    def _admitted(self, state: _State) -> Iterator[Event]:
        history, stop = self._parts.history, state.request.stop
        with memory.PeakMeter() as meter:
            pieces = self._pipeline.stream({"state": state})
            try:
                for piece in pieces:
                    if "evidence" in piece:
                        state.quotes_s = time.monotonic() - state.started - state.queued_s
                        yield Retrieved(
                            state.shown, state.found.hits, state.found.queries, state.answerable, state.turn.id
                        )
                    elif "answer" in piece:
                        if state.first_token_s is None:
                            state.first_token_s = time.monotonic() - state.started - state.queued_s
                        state.text += piece["answer"]
                        history.append(state.turn.id, piece["answer"])
                        yield Token(piece["answer"])
            finally:
                stop_now = state.text == "" or state.stats is None
                if stop_now:
                    stop.set()
                pieces.close()  # type: ignore[attr-defined]  # a generator; closing it frees the KV cache
            state.marks = self._check(state)
            released = self._parts.release()
        receipt = MemoryReceipt(
            before=meter.before, peak=meter.peak, after=meter.after, released=released,
            budget=self._parts.budget.bytes,
            left=self._parts.budget.bytes - occupied(self._parts.plan, meter.after),
            actions=(*self._parts.plan.notes, *state.actions),
        )  # fmt: skip
        logger.info("turn %d: %s", state.turn.id, _in_words(receipt))
        memory.log_rss(f"turn {state.turn.id}")
        stopped = state.stats is not None and state.stats.finish_reason == "stopped"
        yield Done(self._finish(state, "stopped" if stopped else "done", receipt))

    # The three steps that chain.compose strings together

    def _find(self, value: dict[str, Any]) -> SearchResult:
        state: _State = value["state"]
        parts, request = self._parts, state.request
        _stop_if_asked(request.stop)
        state.actions.extend(parts.gate.search())
        turns = self._earlier(state)
        scope = Scope(request.user, request.session_id)
        recent = list(reversed(list(islice(turns, _FOLLOW_UP_TURNS))))
        state.found = parts.retrieval.search(
            state.turn.question,
            turns=recent,
            top_k=parts.settings.top_k,
            scope=scope,
            document_ids=request.document_ids,
        )
        state.quotes = quotes.select(
            state.turn.question, state.found, parts.embedder, max_quotes=parts.settings.max_quotes
        )
        parts.warm_chat_model()  # not before: torch's import holds the interpreter's lock, and the quotes would wait
        state.answerable = judgement.answerable(state.turn.question, state.found, state.quotes)
        state.recalled = self._recall(state)
        return state.found

    def _fit(self, value: dict[str, Any]) -> Fitted | None:
        state: _State = value["state"]
        parts, settings, model = self._parts, self._parts.settings, self._parts.chat_model
        _stop_if_asked(state.request.stop)
        if model is None or not self._worth_asking(state):
            return None
        limits = self._admit(state, model)
        given = state.quotes[: settings.model_quotes]
        state.fitted = budget.fit(
            parts.prompts.system, self._earlier(state), state.recalled, given, state.turn.question,
            context_tokens=model.context_tokens, reserve_tokens=settings.max_new_tokens, model=model,
            render=parts.prompts.user_message, window_tokens=max(1, limits.window_tokens),
            recall_tokens=max(1, limits.recall_tokens), evidence_tokens=max(1, limits.evidence_tokens),
            total_turns=parts.history.session(state.turn.session_id, state.request.user).length - 1,
            estimated=model.estimated, earlier=parts.earlier,
        )  # fmt: skip
        return state.fitted

    def _admit(self, state: _State, model: ChatModel) -> TurnLimits:
        """Ask whether the turn's predicted peak fits the memory budget, and how long its prompt may be."""
        parts, settings, context = self._parts, self._parts.settings, model.context_tokens
        limits = parts.gate.turn(
            fixed_tokens=model.count_prompt([
                {"role": "system", "content": parts.prompts.system},
                {"role": "user", "content": state.turn.question},
            ]),
            reserve_tokens=settings.max_new_tokens,
            window_tokens=budget.share(context, settings.window_tokens, 1 / 4),
            recall_tokens=budget.share(context, settings.recall_tokens, 1 / 8),
            evidence_tokens=budget.share(context, settings.evidence_tokens, 3 / 8),
        )  # fmt: skip
        state.actions.extend(limits.actions)
        return limits

    def _write(self, values: Iterator[dict[str, Any]]) -> Iterator[str]:
        state: _State = {}  # type: ignore[assignment]  # set by the first of the values, which arrive key by key
        for value in values:
            if "state" in value:
                state = value["state"]
        if state.fitted is None:
            yield self._without_model(state)
            return
        chat = LocalChatModel(model=self._parts.chat_model, sampling=sampling_from(self._parts.settings))
        stream = chat.stream(
            as_langchain(state.fitted.messages), cancelled=state.request.stop, session_id=state.request.session_id
        )
        for chunk in stream:
            if isinstance(chunk, AIMessageChunk) and chunk.response_metadata.get("stats"):
                state.stats = chunk.response_metadata["stats"]
            if chunk.content:
                yield str(chunk.content)

    # What the steps need

    def _earlier(self, state: _State) -> Iterator[Turn]:
        """Yield the turns before this one on its branch, newest first."""
        request = state.request
        for turn in self._parts.history.window(request.session_id, request.user):
            if turn.id != state.turn.id:
                yield turn

    def _recall(self, state: _State) -> tuple[Quote, ...]:
        """Find old turns that matter, among those that the model will not see anyway."""
        parts, request = self._parts, state.request
        if next(self._earlier(state), None) is None and not parts.settings.recall_across_sessions:
            return ()  # a first question: don't make its quotes wait for the chat model to load
        model = parts.chat_model
        context = model.context_tokens if model is not None else 2048
        if model is not None:
            visible = budget.fit_window(
                self._earlier(state),
                context_tokens=context,
                model=model,
                window_tokens=parts.settings.window_tokens,
                earlier=parts.earlier,
            )
        else:
            visible = []
        found = parts.recall.search(
            state.turn.question, turns=[turn.id for turn in visible] + [state.turn.id], user=request.user,
            session_id=request.session_id, across_sessions=parts.settings.recall_across_sessions,
            limit=_RECALLED_QUOTES,
        )  # fmt: skip
        first = len(state.quotes) + 1
        return tuple(replace(quote, number=number) for number, quote in enumerate(found, first))

    def _worth_asking(self, state: _State) -> bool:
        """Whether there is anything the model could word: evidence that answers, or recalled turns."""
        return bool(state.recalled) or (
            bool(state.quotes) and state.answerable >= self._parts.settings.answer_threshold
        )

    def _without_model(self, state: _State) -> str:
        """Reply with what was found, word for word, or say that nothing was."""
        prompts = self._parts.prompts
        if not state.shown:
            state.declined = True
            return prompts.nothing
        if self._worth_asking(state):
            return "\n\n".join(f"{quote.text} [{quote.number}]" for quote in state.shown)
        state.declined = True
        closest = state.quotes[0]
        return fill(prompts.no_answer, closest=f"“{' '.join(closest.text.split())}” [{closest.number}]")

    def _check(self, state: _State) -> tuple[Mark, ...]:
        """Hold the model's sentences against the evidence; text that is quoted needs no check."""
        if state.fitted is None or not state.text:
            return ()
        return grounding.check(state.text, state.shown, self._parts.embedder, question=state.request.question)

    # How a turn ends

    def _finish(self, state: _State, status: TurnStatus, receipt: MemoryReceipt | None) -> Answer:
        total = time.monotonic() - state.started
        stats, tokens = state.stats, state.fitted.receipt if state.fitted else None
        if tokens is not None and stats is not None:
            tokens = replace(tokens, generated=stats.new_tokens)
        rate = stats.new_tokens / stats.decode_s if stats is not None and stats.decode_s > 0 else 0.0
        answer = Answer(
            text=state.text, session_id=state.turn.session_id, turn_id=state.turn.id, status=status,
            quotes=state.shown, sources=tuple(dict.fromkeys(quote.name for quote in state.shown)),
            searched=state.found.queries, answerable=state.answerable, declined=state.declined, marks=state.marks,
            tokens=tokens, memory=receipt,
            time=TimeReceipt(state.queued_s, state.quotes_s, state.first_token_s, total, rate),
            notices=tuple(state.notices) + tuple(self._parts.history.notices(state.request.user)),
        )  # fmt: skip
        details = {name: value for name, value in asdict(answer).items() if name not in _IN_COLUMNS}
        self._parts.history.finish(state.turn.id, answer=state.text, status=status, details=details)
        state.finished = True
        return answer

    def _fail(self, state: _State, exc: Exception) -> None:
        logger.info("turn %d failed", state.turn.id, exc_info=exc)
        try:
            self._parts.history.finish(state.turn.id, answer=state.text, status="failed", error=str(exc))
        except (
            AssistantError
        ) as second:  # a full disk, say: the question is stored, and the first error is the one to tell
            logger.warning("turn %d could not be marked as failed: %s", state.turn.id, second)


def _in_words(receipt: MemoryReceipt) -> str:
    amounts = [f"{name} {format_bytes(getattr(receipt, name))}" for name in ("before", "peak", "after", "released")]
    left = f"{format_bytes(receipt.left)} left of {format_bytes(receipt.budget)}"
    return "; ".join([f"RAM {', '.join(amounts)}, {left}", *receipt.actions])


_IN_COLUMNS = {"text", "session_id", "turn_id", "status"}


def sampling_from(settings: Settings) -> Sampling:
    """Return how the settings want tokens picked."""
    return Sampling(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p,
        top_k=settings.sample_top_k, repetition_penalty=settings.repetition_penalty,
        prompt_bias=settings.prompt_bias, seed=settings.seed, speculation=settings.speculation,
    )  # fmt: skip


def as_langchain(messages: Sequence[Message]) -> list[BaseMessage]:
    """Return our messages as LangChain's."""
    return [_MESSAGES[message["role"]](message["content"]) for message in messages]


def _stop_if_asked(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError("Stopped.")
