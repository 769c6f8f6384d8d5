"""``sessions``: conversations as people handle them: list, show, search, branch, export, import, check."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

from assistant.errors import HistoryError, UnknownTurnError
from assistant.history import History
from assistant.records import Turn
from assistant.settings import Settings

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but line breaks and tabs
_STATUS = {"stopped": " (stopped)", "failed": " (failed)", "interrupted": " (interrupted)", "running": " (running)"}


def listing(settings: Settings, args: argparse.Namespace) -> int:
    """Print the sessions, the one used last first."""
    with _history(settings) as history:
        sessions = history.sessions(args.user, limit=1000)
    if not sessions:
        print("There are no conversations yet.")
    for session in sessions:
        turns = f"{session.turn_count} turns" if session.turn_count != 1 else "1 turn"
        print(f"{session.id}  {_date(session.updated_at)}  {turns:>9}  {session.title}")
    return 0


def show(settings: Settings, args: argparse.Namespace) -> int:
    """Print the latest turns of a session."""
    with _history(settings) as history:
        turns = history.turns(args.session, args.user, limit=args.turns)
    for turn in turns:
        if args.json:
            print(json.dumps(asdict(turn), ensure_ascii=False))
        else:
            print(_block(turn))
    return 0


def rename(settings: Settings, args: argparse.Namespace) -> int:
    """Give a session another title."""
    with _history(settings) as history:
        session = history.rename(args.session, args.title, args.user)
    print(f"{session.id} is now called {session.title}")
    return 0


def delete(settings: Settings, args: argparse.Namespace) -> int:
    """Delete a session with all its branches."""
    with _history(settings) as history:
        history.delete(args.session, args.user)
    print(f"deleted {args.session}")
    return 0


def undo(settings: Settings, args: argparse.Namespace) -> int:
    """Take the last turn back; it stays as a branch."""
    with _history(settings) as history:
        turn = history.undo(args.session, user=args.user)
    print(f"took back turn {turn.id}: {turn.question}" if turn else "There is nothing to take back.")
    return 0


def branches(settings: Settings, args: argparse.Namespace) -> int:
    """Print where a session branches: each turn that has others beside it."""
    with _history(settings) as history:
        shown = list(history.window(args.session, args.user))[::-1]
        found = False
        for turn in shown:
            siblings = history.siblings(args.session, turn.id, args.user)
            for sibling in siblings if len(siblings) > 1 else ():
                found = True
                mark = "*" if sibling == turn.id else " "
                print(f"{mark} {sibling}  {history.turn(sibling, args.session, args.user).question}")
    if not found:
        print("This conversation has one branch.")
    return 0


def switch(settings: Settings, args: argparse.Namespace) -> int:
    """Make the branch through a turn the one that is shown."""
    with _history(settings) as history:
        session = history.switch(args.session, _turn_id(args.turn), args.user)
    print(f"{session.id} shows the branch through turn {args.turn}")
    return 0


def retry(settings: Settings, args: argparse.Namespace) -> int:
    """Answer the last question again."""
    from assistant.core import Assistant

    from .turns import show_events

    with Assistant(settings) as assistant:
        show_events(assistant.retry(args.session, user=args.user))
    return 0


def edit(settings: Settings, args: argparse.Namespace) -> int:
    """Ask an earlier question differently."""
    from assistant.core import Assistant

    from .turns import show_events

    with Assistant(settings) as assistant:
        show_events(assistant.edit(args.session, _turn_id(args.turn), args.question, user=args.user))
    return 0


def search(settings: Settings, args: argparse.Namespace) -> int:
    """Print where the conversations hold all words of the query, with the words marked."""
    with _history(settings) as history:
        hits = history.search(args.user, args.query)
    for hit in hits:
        who = "you" if hit.said_by == "user" else "answer"
        print(f"{hit.session_id}  turn {hit.turn_id}  {_date(hit.created_at)}  {hit.title}")
        print(f"  {who}: {_marked(hit.text, hit.marks)}")
    if not hits:
        print("No conversation holds all of these words.", file=sys.stderr)
    return 0 if hits else 1


def export(settings: Settings, args: argparse.Namespace) -> int:
    """Write one session, or all, as JSON Lines or Markdown."""
    from assistant.transfer import export_jsonl, export_markdown

    with _history(settings) as history:
        pieces = (export_jsonl if args.format == "jsonl" else export_markdown)(history, args.user, args.session)
        if args.output is None:
            for piece in pieces:
                sys.stdout.write(piece)
            return 0
        try:
            with args.output.open("w", encoding="utf-8") as file:
                file.writelines(pieces)
        except OSError as exc:
            raise HistoryError(f"{args.output} can't be written ({exc.strerror}); name another file.") from exc
    print(f"wrote {args.output}")
    return 0


def import_(settings: Settings, args: argparse.Namespace) -> int:
    """Read conversations from a file, with progress, and say what was passed over and why."""
    from assistant.transfer import ImportProgress, import_file

    shown_at = 0.0

    def say(progress: ImportProgress) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and time.monotonic() - shown_at > 0.1:
            shown_at = time.monotonic()
            share = progress.bytes_done / max(1, progress.bytes_total)
            print(f"\r\033[K{share:4.0%}  {progress.conversations} conversations", end="", file=sys.stderr, flush=True)

    with _history(settings) as history:
        report = import_file(history, args.file, args.user, on_progress=say)
        notices = history.notices(args.user)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(report, *notices, sep="\n")
    return 0


def check(settings: Settings, args: argparse.Namespace) -> int:
    """Verify the conversation store, and with --repair mend it; what is damaged is set aside, never overwritten."""
    with _history(settings) as history:
        mended, report = history.recovered, history.check(repair=args.repair)
    if mended is not None:
        print(mended)  # opening it did that
    print(report)
    return 0 if report.ok else 1


@contextmanager
def _history(settings: Settings) -> Iterator[History]:
    """Open the conversations alone: listing them needs no model, index or torch."""
    history = History.open(settings.history_dir, max_bytes=settings.history_max_bytes, archive=settings.history_archive)
    with history:
        yield history


def _marked(text: str, marks: Sequence[tuple[int, int]]) -> str:
    """Mark what matched: bold on a terminal, in asterisks elsewhere."""
    before, after = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("*", "*")
    parts, at = [], 0
    for start, end in marks:
        parts += [_visible(text[at:start]), before, _visible(text[start:end]), after]
        at = end
    return " ".join("".join([*parts, _visible(text[at:])]).split())


def _turn_id(text: str) -> int:
    if not text.isdigit():
        raise UnknownTurnError(f"{text!r} is no turn number; `sessions show` prints them.")
    return int(text)


def _block(turn: Turn) -> str:
    head = f"── {turn.id}  {_date(turn.created_at)}{_STATUS.get(turn.status, '')}"
    quotes = "".join(
        f"\n  [{quote['number']}] “{' '.join(str(quote['text']).split())}” ({quote['name']})"
        for quote in turn.details.get("quotes", ())
    )
    error = f"\n! {turn.error}" if turn.error else ""
    return _visible(f"{head}\n> {turn.question}\n{turn.answer}{error}{quotes}\n")


def _visible(text: str) -> str:
    """Return *text* with its control characters as signs: what was said must not steer the terminal."""
    return _CONTROL.sub(lambda found: _sign(found[0]), text.replace("\r\n", "\n"))


def _sign(char: str) -> str:
    return chr(0x2400 + ord(char)) if ord(char) < 0x20 else "\ufffd"


def _date(seconds: float) -> str:
    if seconds <= 0:
        return "at unknown time "
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
