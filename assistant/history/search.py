"""Full-text search over a user's turns, with what matched marked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .schema import Database

_OPEN, _CLOSE = "\ue0f1", "\ue0f2"  # private-use characters: no text means anything by them
_SNIPPET_WORDS = 40
_PIECE = re.compile(r'"([^"]+)"|(\S+)')


@dataclass(frozen=True, slots=True)
class TurnHit:
    """A place where a search matched.

    Attributes:
        said_by: ``user`` where the question matched, ``assistant`` where the answer did.
        text: An excerpt around the match, cut off with ``…``.
        marks: Spans of *text* that matched.
    """

    session_id: str
    title: str
    turn_id: int
    said_by: str
    text: str
    marks: tuple[tuple[int, int], ...]
    created_at: float


def search(db: Database, user: str, query: str, *, session_id: str | None, limit: int, offset: int) -> list[TurnHit]:
    """Return where all words of *query* occur, best first; ``"in quotes"`` means just so, in a row."""
    match = expression(query)
    if not match:
        return []
    rows = db.all(
        "SELECT turns.id, turns.session_id, sessions.title, turns.created_at,"
        " snippet(turns_text, 0, :open, :close, '…', :words) AS question,"
        " snippet(turns_text, 1, :open, :close, '…', :words) AS answer"
        " FROM turns_text JOIN turns ON turns.id = turns_text.rowid"
        " JOIN sessions ON sessions.user = turns.user AND sessions.id = turns.session_id"
        " WHERE turns_text MATCH :match AND turns.user = :user AND (:session IS NULL OR turns.session_id = :session)"
        " ORDER BY rank, turns.id DESC LIMIT :limit OFFSET :offset",
        {"open": _OPEN, "close": _CLOSE, "words": _SNIPPET_WORDS, "match": match, "user": user,
         "session": session_id, "limit": limit, "offset": offset},
    )  # fmt: skip
    hits = []
    for row in rows:
        part = "answer" if _OPEN in row["answer"] and _OPEN not in row["question"] else "question"
        text, marks = _marked(row[part])
        said_by = "assistant" if part == "answer" else "user"
        hits.append(TurnHit(row["session_id"], row["title"], row["id"], said_by, text, marks, row["created_at"]))
    return hits


def expression(query: str) -> str:
    """Return the FTS5 expression for what a person typed: every word, the last one as it is being typed."""
    pieces = []
    for phrase, word in _PIECE.findall(query.replace("\0", " ")):
        text = " ".join(re.findall(r"\w+", phrase or word))
        if text:
            pieces.append((text, bool(phrase)))
    quoted = [f'"{text}"' for text, _ in pieces]
    if quoted and not pieces[-1][1] and not query[-1:].isspace():
        quoted[-1] += "*"
    return " AND ".join(quoted)


def _marked(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Take the marks out of a snippet and return where they were."""
    plain, marks, start = "", [], 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if piece == _OPEN:
            start = len(plain)
        elif piece == _CLOSE:
            marks.append((start, len(plain)))
        else:
            plain += piece
    return plain, tuple(marks)
