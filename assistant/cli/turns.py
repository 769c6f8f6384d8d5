"""``ask``, ``chat`` and ``search``: questions from the terminal."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from assistant.core import Assistant, new_session_id
from assistant.errors import AssistantError, QuestionError
from assistant.memory import MemoryTrace
from assistant.records import Answer, Done, Event, Queued, Quote, Retrieved, Token
from assistant.settings import Settings
from assistant.starting import undisturbed
from assistant.units import format_bytes, format_seconds

_HELP = """Type a question and press Enter. Ctrl+C stops an answer; Ctrl+D ends the chat.
  /retry        answer the last question again
  /undo         take the last turn back
  /sources      show the passages behind the last answer
  /help         show this
  /quit         end the chat"""


def ask(settings: Settings, args: argparse.Namespace) -> int:
    """Ask one question; print quotes and answer as they come, or everything as JSON."""
    question = sys.stdin.read() if args.question == "-" else args.question
    if not question.strip():
        raise QuestionError("There is no question; write what you want to know.")
    with Assistant(settings) as assistant:
        trace = _tracing(args)
        events = _until_answered(assistant.stream(question, session_id=args.session, documents=args.document))
        if args.json:
            answer = _last(events)
            print(json.dumps(answer.as_dict(), ensure_ascii=False, indent=2))
        else:
            answer = show_events(events)
            if args.session is None:
                print(f"session {answer.session_id} (continue it with --session {answer.session_id})", file=sys.stderr)
        _show_growth(trace)
    return 0


def chat(settings: Settings, args: argparse.Namespace) -> int:
    """Chat line by line until the input ends."""
    session_id = args.session or new_session_id()
    with Assistant(settings) as assistant:
        for note in assistant.plan_memory():
            print(f"note: {note}", file=sys.stderr)
        print(f"Session {session_id}. {_HELP.splitlines()[0]} /help lists commands.")
        trace = _tracing(args)
        assistant.parts.warm_chat_model()
        last: Answer | None = None
        while (line := _read()) is not None:
            try:
                if line in ("/quit", "/exit"):
                    break
                if line == "/help":
                    print(_HELP)
                elif line == "/undo":
                    turn = assistant.undo(session_id)
                    print(f"Taken back: {turn.question}" if turn else "There is nothing to take back.")
                elif line == "/sources":
                    _show_sources(last)
                elif line.startswith("/") and line != "/retry":
                    print(f"There is no command {line.split()[0]}; /help lists them.")
                elif line:
                    events = (
                        assistant.retry(session_id)
                        if line == "/retry"
                        else assistant.stream(line, session_id=session_id)
                    )
                    last = show_events(events)
                    _show_growth(trace)
            except AssistantError as exc:
                print(f"! {exc}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\n(stopped; what there was is kept)", file=sys.stderr)
    return 0


def search(settings: Settings, args: argparse.Namespace) -> int:
    """Print the ranking of a search, with what each part of it said."""
    with Assistant(settings) as assistant:
        result = assistant.search(args.query, session_id=args.session, top_k=args.top_k)
    if args.json:
        for hit in result.hits:
            print(json.dumps(asdict(hit), ensure_ascii=False))
        return 0
    for query in result.queries:
        print(f"searched ({query.origin}, weight {query.weight:.2f}): {query.text}", file=sys.stderr)
    if not result.hits:
        print("Nothing found. `python -m assistant ingest PATH` adds documents.", file=sys.stderr)
        return 1
    for rank, hit in enumerate(result.hits, 1):
        parts = "  ".join(f"{name} {value:.3f}" for name, value in hit.parts.items())
        place = _place(hit.document.name, hit.chunk.page, hit.chunk.row, hit.chunk.line)
        print(f"{rank:3}. {hit.score:.4f}  {place}  [{parts}]")
        print(f"     {' '.join(hit.chunk.text.split())[:240]}")
    return 0


def show_events(events: Iterator[Event]) -> Answer:
    """Print what happens; Ctrl+C stops the turn, and what there is by then is kept."""
    try:
        for event in events:
            if isinstance(event, Queued):
                print(f"waiting, place {event.position} in the queue", file=sys.stderr)
            elif isinstance(event, Retrieved):
                _show_quotes(event.quotes)
            elif isinstance(event, Token):
                print(event.text, end="", flush=True)
            elif isinstance(event, Done):
                print()
                _show_books(event.answer)
                return event.answer
    except KeyboardInterrupt:
        events.close()  # type: ignore[attr-defined]  # a generator
        raise
    raise AssistantError("The turn ended without an answer; ask again.")


def _until_answered(events: Iterator[Event]) -> Iterator[Event]:
    """Pass on the events of this process's only turn, without looking for garbage before the answer begins.

    What was loaded by then is needed to the end, and is left out of later collections, that at the exit too.
    """
    try:
        with undisturbed():
            for event in events:
                if isinstance(event, (Token, Done)):
                    gc.freeze()
                    break
                yield event
            else:
                return
        yield event
        yield from events
    finally:
        events.close()  # type: ignore[attr-defined]  # a generator: closing it ends the turn as stopped


def _last(events: Iterator[Event]) -> Answer:
    for event in events:
        if isinstance(event, Done):
            return event.answer
    raise AssistantError("The turn ended without an answer; ask again.")


def _show_quotes(quotes: tuple[Quote, ...]) -> None:
    for quote in quotes:
        recalled = " (said earlier)" if quote.kind == "turn" else ""
        print(f"  [{quote.number}] “{' '.join(quote.text.split())}”\n      {quote.place}{recalled}")
    if quotes:
        print(flush=True)


def _show_books(answer: Answer) -> None:
    for mark in answer.marks:
        if not mark.supported:
            print(f"  ? the sources don't support: {answer.text[mark.start : mark.end].strip()}", file=sys.stderr)
    parts = [f"quotes {format_seconds(answer.time.quotes_s)}"]
    if answer.time.first_token_s is not None:
        parts.append(f"first word {format_seconds(answer.time.first_token_s)}")
    if answer.time.tokens_per_s:
        parts.append(f"{answer.time.tokens_per_s:.0f} tokens/s")
    if answer.tokens is not None:
        parts.append(f"{answer.tokens.prompt + answer.tokens.generated:,} of {answer.tokens.context:,} tokens")
    if answer.memory is not None:
        memory = answer.memory
        parts.append(
            f"RAM {format_bytes(memory.before)} → {format_bytes(memory.after)} of {format_bytes(memory.budget)}"
        )
    print(f"  ({' · '.join(parts)})", file=sys.stderr)
    for action in answer.memory.actions if answer.memory is not None else ():
        print(f"  memory: {action}", file=sys.stderr)
    for notice in answer.notices:
        print(f"  note: {notice}", file=sys.stderr)


def _tracing(args: argparse.Namespace) -> MemoryTrace | None:
    """Start to trace what grows, where that was asked for."""
    if not args.trace_memory:
        return None
    trace = MemoryTrace()
    trace.start()
    return trace


def _show_growth(trace: MemoryTrace | None) -> None:
    for growth in trace.growth() if trace is not None else ():
        print(f"  grew: {growth}", file=sys.stderr)


def _show_sources(answer: Answer | None) -> None:
    if answer is None or not answer.quotes:
        print("There are no sources yet.")
        return
    for quote in answer.quotes:
        print(f"[{quote.number}] {quote.place}\n{quote.context or quote.text}\n")


def _read() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return None


def _place(name: str, page: int | None, row: int | None, line: int | None) -> str:
    for word, number in (("page", page), ("row", row), ("line", line)):
        if number is not None:
            return f"{name}, {word} {number}"
    return name
