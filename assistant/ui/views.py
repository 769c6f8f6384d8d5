"""Records as the page reads them: JSON with the keys that ``static/*.js`` uses, and no more.

Nothing is escaped here: the page writes all of it as text, never as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from assistant.history.search import TurnHit
from assistant.records import (
    LOCAL_USER,
    SHARED,
    Answer,
    DocumentInfo,
    Done,
    Event,
    Passage,
    Queued,
    Quote,
    Retrieved,
    Token,
    Turn,
)

Json = dict[str, Any]


def event_view(event: Event) -> Json:
    """Return one event of a turn."""
    match event:
        case Queued():
            return {"type": "queued", "position": event.position}
        case Retrieved():
            return {
                "type": "quotes",
                "turn_id": event.turn_id,
                "quotes": [quote_view(quote) for quote in event.quotes],
                "answerable": event.answerable,
            }
        case Token():
            return {"type": "text", "text": event.text}
        case Done():
            return {"type": "done", "turn": answer_view(event.answer)}


def quote_view(quote: Quote | Mapping[str, Any]) -> Json:
    """Return a quote, fresh or as it was stored with its turn."""
    if not isinstance(quote, Quote):
        known = {name: quote[name] for name in Quote.__dataclass_fields__ if name in quote}
        quote = Quote(**{"number": 0, "text": "", "name": "", "score": 0.0, **known})
    return {**asdict(quote), "place": quote.place}


def answer_view(answer: Answer) -> Json:
    """Return a finished turn as the page shows it, from what it gave."""
    return {
        "id": answer.turn_id,
        "session_id": answer.session_id,
        "answer": answer.text,
        "status": answer.status,
        **_evidence(answer.as_dict()),
    }


def turn_view(turn: Turn) -> Json:
    """Return a stored turn as the page shows it."""
    return {
        "id": turn.id,
        "session_id": turn.session_id,
        "parent_id": turn.parent_id,
        "question": turn.question,
        "answer": turn.answer,
        "status": turn.status,
        "created_at": turn.created_at,
        "error": turn.error,
        "feedback": turn.feedback,
        **_evidence(turn.details),
    }


def document_view(document: DocumentInfo, *, user: str) -> Json:
    """Return a document as the panel lists it; its path stays here."""
    return {
        "id": document.id,
        "name": document.name,
        "status": document.status,
        "reason": document.reason,
        "size_bytes": document.size_bytes,
        "chunk_count": document.chunk_count,
        "added_at": document.added_at,
        "session_only": document.session_id is not None,
        "removable": document.owner == user or (user == LOCAL_USER and document.owner == SHARED),
    }


def passage_view(passage: Passage) -> Json:
    """Return a passage without the path of its document."""
    names = ("name", "text", "quote_start", "quote_end")
    return {name: getattr(passage, name) for name in names}


def hit_view(hit: TurnHit) -> Json:
    """Return a search hit, its text cut in pieces of which every second one matched."""
    pieces, at = [], 0
    for start, end in hit.marks:
        pieces += [hit.text[at:start], hit.text[start:end]]
        at = end
    return {
        "session_id": hit.session_id,
        "title": hit.title,
        "turn_id": hit.turn_id,
        "pieces": [*pieces, hit.text[at:]],
    }


def _evidence(details: Mapping[str, Any]) -> Json:
    return {
        "quotes": [quote_view(quote) for quote in details.get("quotes") or ()],
        "marks": list(details.get("marks") or ()),
        "answerable": details.get("answerable"),
        "notices": list(details.get("notices") or ()),
        "searched": list(details.get("searched") or ()),
        "tokens": details.get("tokens"),
        "memory": details.get("memory"),
        "time": details.get("time"),
    }
