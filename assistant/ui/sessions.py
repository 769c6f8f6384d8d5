"""Routes of the list of chats: open, search, rename, delete, export, import."""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from assistant.errors import AccessError, SettingsError, StorageFullError
from assistant.transfer import export_jsonl, export_markdown
from assistant.units import format_bytes

from .imports import Import
from .site import Site, User
from .views import Json, hit_view, turn_view

PAGE = 20  # turns sent when a chat is opened; older ones on request
LISTED = 60
MAX_TITLE = 200
MAX_IMPORT = 2_000_000_000  # bytes


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

    @routes.post("")
    def created(user: User) -> Json:
        """Start a chat before its first question: a document can then be put in for it alone."""
        return {"session": _plain(site.assistant.history.create_session(user))}

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
        title = site.assistant.history.session(session_id, user).title
        return _export(site, user, session_id, format, title)

    return routes


def transfer_router(site: Site) -> APIRouter:
    """Return the routes that take in a file of chats, and give out all of a user's."""
    routes = APIRouter(prefix="/api")

    @routes.get("/export")
    def exported(user: User, format: Literal["md", "jsonl"] = "jsonl") -> Response:
        return _export(site, user, None, format, "Thimble chats")

    @routes.post("/import")
    async def imported(request: Request, user: User, name: str = "the file") -> Response:
        if site.access.mode == "public":
            raise AccessError("In a public chat nothing can be imported.")
        path = await _received(site, request)
        reading = Import(site.assistant.history, path, name, user)
        await reading.begun()
        return StreamingResponse(reading.lines(), media_type="application/x-ndjson")

    return routes


async def _received(site: Site, request: Request) -> Path:
    """Write what is sent to a file of its own; refuse what is too large before it is sent, where its size is known."""
    folder = site.assistant.settings.store_dir / "uploads"
    too_large = StorageFullError(f"A file of chats may have {format_bytes(MAX_IMPORT)}; split it.")
    announced = int(request.headers.get("content-length") or 0)
    if announced > MAX_IMPORT:
        raise too_large
    site.ingests.check_disk(announced)
    path = folder / f"import-{secrets.token_hex(8)}.json"
    received = 0
    try:
        with path.open("wb") as file:
            async for block in request.stream():
                received += len(block)
                if received > MAX_IMPORT:
                    raise too_large
                file.write(block)
    except BaseException:  # also when the tab went away
        path.unlink(missing_ok=True)
        raise
    return path


def _export(site: Site, user: str, session_id: str | None, format: str, title: str) -> Response:
    write = export_markdown if format == "md" else export_jsonl
    kind = "text/markdown; charset=utf-8" if format == "md" else "application/jsonl; charset=utf-8"
    headers = {"content-disposition": file_name(title, format)}
    return StreamingResponse(write(site.assistant.history, user, session_id), media_type=kind, headers=headers)


def file_name(title: str, suffix: str) -> str:
    """Return a ``Content-Disposition`` that names a file after a chat (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]+", "", title).strip(" .")[:80] or "chat"
    full = re.sub(r"[\x00-\x1f\x7f/\\:*?\"<>|]+", " ", title).strip(" .")[:80] or "chat"
    return f"attachment; filename=\"{plain}.{suffix}\"; filename*=UTF-8''{quote(full)}.{suffix}"


def _plain(record: Any) -> Json:
    return asdict(record)
