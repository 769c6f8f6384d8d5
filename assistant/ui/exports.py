"""One chat as a file to keep: Markdown to read, JSON Lines to process. Written page by page, whatever its length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from assistant.records import Turn

from .views import quote_view

if TYPE_CHECKING:
    from assistant.history import History

KINDS = {"md": "text/markdown; charset=utf-8", "jsonl": "application/jsonl; charset=utf-8"}


def export(history: History, session_id: str, user: str, kind: str) -> Iterator[str]:
    """Yield a chat in pieces, oldest turn first.

    Raises:
        UnknownSessionError: The user has no such chat.
    """
    session = history.session(session_id, user)  # before the first piece, so that the error is a reply of its own
    ids = [turn.id for turn in history.window(session_id, user)]
    return _pieces(history, session_id, user, kind, session.title, ids[::-1])


def file_name(title: str, kind: str) -> str:
    """Return a ``Content-Disposition`` that names the file after the chat (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]+", "", title).strip(" .")[:80] or "chat"
    full = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|]+", " ", title).strip(" .")[:80] or "chat"
    return f"attachment; filename=\"{plain}.{kind}\"; filename*=UTF-8''{quote(full)}.{kind}"


def _pieces(history: History, session_id: str, user: str, kind: str, title: str, ids: list[int]) -> Iterator[str]:
    if kind == "md":
        yield f"# {title}\n"
    for turn_id in ids:
        turn = history.turn(turn_id, session_id, user)
        yield _markdown(turn) if kind == "md" else _line(turn, title)


def _markdown(turn: Turn) -> str:
    asked = datetime.fromtimestamp(turn.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"\n## {' '.join(turn.question.split())}\n\n*{asked}*\n"]
    if turn.answer:
        lines.append(f"\n{turn.answer}\n")
    if turn.status != "done":
        lines.append(f"\n*({turn.status})*\n")
    for stored in turn.details.get("quotes") or ():
        view = quote_view(stored)
        lines.append(f"\n> {' '.join(view['text'].split())}\n>\n> [{view['number']}] {view['place']}\n")
    return "".join(lines)


def _line(turn: Turn, title: str) -> str:
    record = {
        "session_id": turn.session_id, "title": title, "question": turn.question, "answer": turn.answer,
        "status": turn.status, "created_at": turn.created_at, "finished_at": turn.finished_at,
        "feedback": turn.feedback, "quotes": list(turn.details.get("quotes") or ()),
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False) + "\n"
