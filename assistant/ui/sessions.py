"""Routes of the list of chats: open, search, rename, delete, export, import."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from assistant.errors import SettingsError

from . import exports
from .site import Site, User
from .views import Json, hit_view, turn_view

PAGE = 20  # turns sent when a chat is opened; older ones on request
LISTED = 60
MAX_TITLE = 200


class Title(BaseModel):
    """A chat's new title."""

    title: str


def router(site: Site) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/sessions")

    @routes.get("")
    def listed(user: User, query: str = "", offset: int = 0) -> Json:
        history = site.assistant.history
        if query.strip():
            return {"hits": [hit_view(hit) for hit in history.search(user, query.strip()[:500])]}
        found = history.sessions(user, limit=LISTED + 1, offset=max(0, offset))
        return {"sessions": [_plain(session) for session in found[:LISTED]], "more": len(found) > LISTED}

    @routes.get("/{session_id}")
    def opened(session_id: str, user: User, before: int | None = None, limit: int = PAGE) -> Json:
        history = site.assistant.history
        session = history.session(session_id, user)
        limit = min(max(1, limit), 100)
        turns = history.turns(session_id, user, before=before, limit=limit + 1)
        run = site.runs.get(user, session_id)
        return {
            "session": _plain(session),
            "turns": [
                {**turn_view(turn), "siblings": history.siblings(session_id, turn.id, user)} for turn in turns[-limit:]
            ],
            "more": len(turns) > limit,
            "running": run is not None,
        }

    @routes.patch("/{session_id}")
    def rename(session_id: str, body: Title, user: User) -> Json:
        title = " ".join(body.title.split())[:MAX_TITLE]
        if not title:
            raise SettingsError("A chat needs a title of at least one letter.")
        site.assistant.history.rename(session_id, title, user)
        return {"title": title}

    @routes.delete("/{session_id}")
    def delete(session_id: str, user: User) -> Json:
        run = site.runs.get(user, session_id)
        if run is not None:
            run.stop.set()
        site.assistant.history.delete(session_id, user)
        return {}

    @routes.get("/{session_id}/export")
    def exported(session_id: str, user: User, format: Literal["md", "jsonl"] = "md") -> Response:
        history = site.assistant.history
        pieces = exports.export(history, session_id, user, format)
        named = exports.file_name(history.session(session_id, user).title, format)
        return StreamingResponse(pieces, media_type=exports.KINDS[format], headers={"content-disposition": named})

    return routes


def _plain(record: Any) -> Json:
    return asdict(record)
