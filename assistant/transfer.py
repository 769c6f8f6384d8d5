"""Conversations out of the history and into it: our JSON Lines, Markdown, ChatGPT's and ShareGPT's files.

Everything streams: one conversation of a foreign file, one turn of ours is in RAM at a time. What can't be taken is
passed over and listed with its reason; a file that was cut off gives what is whole.
"""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from .errors import ImportFormatError, SessionExistsError, SessionNameError, StorageFullError
from .foreign import Conversation, conversation_from
from .history import History, NewTurn, Session
from .jsonstream import CutOffError, array_items, line_items
from .records import LOCAL_USER, Turn

FORMAT, VERSION = "thimble-history", 1
_SHORT = 1000  # turns that may be held in RAM, so that a session can be stored again after making room
_LISTED = 1000  # skipped conversations that a report names
_TURN_FIELDS = ("id", "parent_id", "question", "answer", "status", "created_at", "finished_at", "error", "feedback",
                "details")  # fmt: skip
_STATUSES = ("done", "stopped", "failed", "interrupted")


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is."""

    bytes_done: int
    bytes_total: int
    conversations: int


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        kind: What the file was: ``thimble``, ``chatgpt``, ``sharegpt``, ``messages`` or empty.
        conversations: How many were taken.
        turns: In them.
        skipped: (title or place in the file, reason) of what was passed over; the first thousand.
        skipped_count: How many there were.
        cut_off: What is missing at the end of a file that was cut off; empty when it is whole.
    """

    kind: str = ""
    conversations: int = 0
    turns: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_count: int = 0
    cut_off: str = ""

    def skip(self, name: str, reason: str) -> None:
        """Note what was passed over."""
        self.skipped_count += 1
        if len(self.skipped) < _LISTED:
            self.skipped.append((name, reason))

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"Imported {self.conversations} conversations with {self.turns} turns."]
        if self.cut_off:
            lines.append(f"The file is cut off: {self.cut_off}.")
        if self.skipped_count:
            lines.append(f"Passed over {self.skipped_count}:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped[:20]]
        return "\n".join(lines)


# Out


def export_jsonl(history: History, user: str = LOCAL_USER, session_id: str | None = None) -> Iterator[str]:
    """Yield one session, or all of a user's, as lines of JSON: every branch, everything that is stored.

    Raises:
        UnknownSessionError: The user has no such session.
    """
    sessions = [history.session(session_id, user)] if session_id is not None else _all_sessions(history, user)
    yield json.dumps({"type": FORMAT, "version": VERSION, "exported_at": time.time()}) + "\n"
    count = 0
    for session in sessions:
        count += 1
        yield json.dumps(
            {"type": "session", "id": session.id, "title": session.title, "created_at": session.created_at,
             "updated_at": session.updated_at, "turns": session.turn_count, "head": session.head_turn_id},
            ensure_ascii=False,
        ) + "\n"  # fmt: skip
        for turn in history.every_turn(session.id, user):
            line = {"type": "turn", "session_id": session.id}
            line.update({name: getattr(turn, name) for name in _TURN_FIELDS})
            yield json.dumps(line, ensure_ascii=False) + "\n"
    yield json.dumps({"type": "end", "sessions": count}) + "\n"


def export_markdown(history: History, user: str = LOCAL_USER, session_id: str | None = None) -> Iterator[str]:
    """Yield one session, or all of a user's, as Markdown to read: the branch that is shown.

    Raises:
        UnknownSessionError: The user has no such session.
    """
    sessions = [history.session(session_id, user)] if session_id is not None else _all_sessions(history, user)
    for place, session in enumerate(sessions):
        yield ("\n" if place else "") + f"# {session.title}\n"
        for turn in _shown(history, session, user):
            yield f"\n## You, {_date(turn.created_at)}\n\n{turn.question}\n"
            status = "" if turn.status == "done" else f" ({turn.status})"
            yield f"\n## Thimble{status}\n\n{turn.answer}\n"
            quotes = turn.details.get("quotes") or ()
            for quote in quotes:
                if isinstance(quote, dict) and quote.get("text"):
                    text = " ".join(str(quote["text"]).split())
                    yield f"\n> [{quote.get('number', '')}] {text} — {quote.get('name', '')}\n"


def _all_sessions(history: History, user: str) -> Iterator[Session]:
    """Yield the sessions as they are now, the oldest last; one that goes meanwhile is passed over."""
    ids, offset = [], 0
    while page := history.sessions(user, limit=500, offset=offset):
        ids += [session.id for session in page]
        offset += len(page)
    for session_id in dict.fromkeys(ids):
        found = [session for session in [history.find_session(session_id, user)] if session is not None]
        yield from found


def _shown(history: History, session: Session, user: str) -> Iterator[Turn]:
    """Yield the branch shown, oldest first, a page in RAM at a time."""
    ids = [turn.id for turn in history.window(session.id, user)]
    for turn_id in reversed(ids):
        yield history.turn(turn_id, session.id, user)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else "at an unknown time"


# In


def import_file(history: History, path: Path, user: str = LOCAL_USER, *,
                on_progress: Callable[[ImportProgress], None] | None = None) -> ImportReport:  # fmt: skip
    """Take the conversations of a file into a user's history.

    Reads our export (and our archive), ChatGPT's ``conversations.json`` (also inside its zip) with all branches,
    ShareGPT lists and lists of ``messages``, as one JSON array or one object a line. What was imported before is
    passed over.

    Args:
        history: Where they go.
        path: The file.
        user: Whose they become.
        on_progress: Called after each conversation.

    Raises:
        ImportFormatError: The file can't be read, or is none of these.
        StorageFullError: There is no room; what was imported so far stays.
    """
    report = ImportReport()
    with _opened(path) as (file, total):

        def told() -> None:
            if on_progress is not None:
                on_progress(ImportProgress(min(file.tell(), total), total, report.conversations))

        head = file.read(1 << 16)
        file.seek(0)
        first = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if first == b"{" and _is_lines(head):
            _import_lines(history, file, user, report, told)
        elif first in (b"[", b"{"):
            _import_array(history, file, user, report, told)
        else:
            raise ImportFormatError(f"{path.name} is not an export of conversations: it holds no JSON.")
        if not report.kind and not report.cut_off:
            raise ImportFormatError(
                f"{path.name} holds no conversations that can be read here: our export, ChatGPT's conversations.json, "
                "ShareGPT lists and lists of messages can be."
            )
    return report


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                name = next((name for name in bundle.namelist() if name.endswith("conversations.json")), None)
                if name is None:
                    raise ImportFormatError(f"{path.name} is a zip without a conversations.json in it.")
                with bundle.open(name) as file:
                    yield file, bundle.getinfo(name).file_size
            return
        with path.open("rb") as plain:
            if plain.read(2) == b"\x1f\x8b":
                import gzip

                with gzip.open(path, "rb") as unpacked:
                    yield unpacked, path.stat().st_size  # type: ignore[misc]
                return
            plain.seek(0)
            yield plain, path.stat().st_size
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as exc:
        raise ImportFormatError(f"{path.name} can't be read: {getattr(exc, 'strerror', None) or exc}.") from exc


def _is_lines(head: bytes) -> bool:
    """Return whether the first line is an object by itself."""
    line = head.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0]
    try:
        return isinstance(json.loads(line), dict) and b"\n" in head
    except ValueError:
        return len(line) >= 1 << 15  # a first line too long to see its end: no pretty-printer made it


def _import_array(history: History, file: IO[bytes], user: str, report: ImportReport, told: Callable[[], None]) -> None:
    """Take the items of one JSON array, an item in RAM at a time."""
    try:
        for item in array_items(file):
            place = f"conversation {item.number}"
            if item.error:
                report.skip(place, item.error)
            else:
                _take(history, item.value, place, user, report)
            told()
    except CutOffError as exc:
        report.cut_off = f"it ends within conversation {exc}, which is left out"


def _import_lines(history: History, file: IO[bytes], user: str, report: ImportReport, told: Callable[[], None]) -> None:
    """Take JSON Lines: ours, or one conversation a line."""
    lines = _Lines(file, report)
    for line in lines:
        kind = line.get("type")
        if kind == FORMAT:
            report.kind = "thimble"
            if line.get("version", 0) > VERSION:
                raise ImportFormatError("The export was made by a newer Thimble; update, then import it again.")
        elif kind in ("session", "turn"):
            report.kind = "thimble"
            _take_ours(history, line, lines, user, report)
        elif kind == "end":
            lines.ended = True
        else:
            lines.ended = True  # foreign lines have no end to wait for
            _take(history, line, f"line {lines.number}", user, report)
        told()
    if report.kind == "thimble" and not lines.ended and not report.cut_off and not lines.archive:
        report.cut_off = "its end is missing"


class _Lines:
    """Lines of JSON, with one that can be pushed back."""

    def __init__(self, file: IO[bytes], report: ImportReport) -> None:
        self._items, self._report = line_items(file), report
        self._back: dict[str, Any] | None = None
        self.number, self.ended, self.archive = 0, False, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (line := self.next()) is not None:
            yield line

    def push(self, line: dict[str, Any]) -> None:
        self._back = line

    def next(self) -> dict[str, Any] | None:
        if self._back is not None:
            line, self._back = self._back, None
            return line
        try:
            for item in self._items:
                self.number = item.number
                if isinstance(item.value, dict):
                    return item.value
                self._report.skip(f"line {item.number}", item.error or "not an object")
        except CutOffError as exc:
            self._report.cut_off = f"line {exc}, its last, is not whole"
        return None


def _take_ours(history: History, line: dict[str, Any], lines: _Lines, user: str, report: ImportReport) -> None:
    """Take one session of our export, or a run of turns from our archive."""
    if line["type"] == "session":
        session_id, title, declared, head = line.get("id"), line.get("title"), line.get("turns"), line.get("head")
        pending: list[dict[str, Any]] = []
    else:
        session_id, title, declared, head = line.get("session_id"), line.get("title"), None, None
        pending, lines.archive = [line], True
    name = str(title or session_id)
    count = 0

    def turns() -> Iterator[NewTurn]:
        nonlocal count
        known: set[str] = set()
        last: str | None = None
        for raw in chain(pending, iter(lines.next, None)):
            if raw.get("type") != "turn" or raw.get("session_id") != session_id:
                lines.push(raw)
                return
            try:
                turn = _turn_from(raw, known, last)
            except (KeyError, TypeError, ValueError) as exc:
                report.skip(f"{name}, line {lines.number}", f"not a turn ({type(exc).__name__}: {exc})")
                continue
            known.add(turn.key)
            last = turn.key
            count += 1
            yield turn

    source = turns()
    short = isinstance(declared, int) and declared <= _SHORT
    _add(history, str(session_id), list(source) if short else source, user, report, name=name, title=str(title or ""),
         head=None if head is None else str(head))  # fmt: skip
    taken = count
    for _ in source:  # of a session that was passed over: read past its turns
        pass
    if declared is not None and isinstance(declared, int) and taken and count < declared:
        report.skip(name, f"only {count} of its {declared} turns are in the file; those were taken")


def _turn_from(raw: dict[str, Any], known: set[str], last: str | None) -> NewTurn:
    key, parent = str(raw["id"]), raw.get("parent_id")
    status = raw.get("status") if raw.get("status") in _STATUSES else "interrupted"
    details = raw.get("details")
    if parent is not None:
        parent = str(parent) if str(parent) in known else last
    return NewTurn(
        key, parent, str(raw["question"]), str(raw.get("answer") or ""), status,  # type: ignore[arg-type]
        float(raw.get("created_at") or 0), None if raw.get("finished_at") is None else float(raw["finished_at"]),
        str(raw.get("error") or ""), int(raw.get("feedback") or 0), details if isinstance(details, dict) else {},
    )  # fmt: skip


def _take(history: History, item: object, place: str, user: str, report: ImportReport) -> None:
    """Take one conversation of a foreign file."""
    try:
        found: Conversation = conversation_from(item)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        report.skip(place, str(exc) if isinstance(exc, ImportFormatError) else "not a conversation")
        return
    except ImportFormatError as exc:
        report.skip(place, str(exc))
        return
    report.kind = report.kind or found.kind
    name = found.title or place
    if not found.turns:
        report.skip(name, "it holds no text")
        return
    _add(history, found.session_id, found.turns, user, report, name=name, title=found.title, head=found.head)


def _add(history: History, session_id: str, turns: Iterable[NewTurn], user: str, report: ImportReport, *, name: str,
         title: str, head: str | None) -> None:  # fmt: skip
    try:
        session = history.add(session_id, turns, user=user, title=title, head=head)
    except SessionExistsError:
        report.skip(name, "it is here already")
    except SessionNameError as exc:
        report.skip(name[:80], str(exc))
    except StorageFullError as exc:
        if exc.__cause__ is not None:  # the disk; nothing after this would fit either
            raise
        report.skip(name, str(exc))
    else:
        report.conversations += 1
        report.turns += session.turn_count
