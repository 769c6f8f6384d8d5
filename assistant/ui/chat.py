"""Asking: the streamed endpoint that Gradio queues and serves, and the small routes around a turn.

Gradio keeps nothing of a turn: the endpoint's one argument names a session, and its replies are read from ``runs``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import gradio as gr
from fastapi import APIRouter
from pydantic import BaseModel

from assistant.errors import AssistantError, QuestionError, SettingsError
from assistant.records import Event

from .channels import forget_finished
from .guard import failure_text
from .runs import Begin, Run
from .site import Site, User
from .views import Json

log = logging.getLogger(__name__)

FRAME_S = 0.04  # how often new text goes to a watching tab: 25 times a second reads as a stream
MAX_QUESTION = 200_000  # characters; longer ones are no question, and the tokenizer would chew on them for seconds


class Stop(BaseModel):
    """Which answer to stop."""

    session_id: str


class Feedback(BaseModel):
    """A thumb up (1), down (-1) or taken back (0)."""

    session_id: str
    turn_id: int
    value: int


class Place(BaseModel):
    """A turn of a session."""

    session_id: str
    turn_id: int = 0


def add_endpoint(app: gr.Server, site: Site) -> None:
    """Register ``/gradio_api/call/turn``, which streams one turn's events."""
    description = "Ask, retry, edit or follow; streams a turn's events."

    @app.api(name="turn", concurrency_limit=None, description=description)  # type: ignore[untyped-decorator]
    async def turn(call: dict[str, Any], request: gr.Request) -> AsyncIterator[dict[str, Any]]:
        forget_finished(app.get_blocks()._queue)
        try:
            run = await asyncio.to_thread(_begin, site, request.username or "", call)
        except AssistantError as error:
            yield {"type": "error", "kind": type(error).__name__, "message": str(error)}
            return
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("A question failed [%s]", reference)
            yield {"type": "error", "kind": "unexpected", "message": failure_text(reference)}
            return
        if run is None:
            yield {"type": "idle"}
            return
        yield {"type": "started", "session_id": run.session_id, "question": run.question}
        position, done = 0, False
        while not done:
            events, position, done = run.since(position)
            for event in events:
                yield event
            if not done:
                await asyncio.sleep(FRAME_S)


def router(site: Site) -> APIRouter:
    """Return the routes around a turn."""
    routes = APIRouter(prefix="/api")

    @routes.post("/stop")
    def stop(body: Stop, user: User) -> Json:
        run = site.runs.get(user, body.session_id)
        if run is not None:
            run.stop.set()
        return {"stopped": run is not None}

    @routes.post("/feedback")
    def feedback(body: Feedback, user: User) -> Json:
        if body.value not in (-1, 0, 1):
            raise SettingsError("Feedback is 1, -1 or 0.")
        site.require_session(body.session_id, user)
        site.assistant.history.set_feedback(body.session_id, body.turn_id, body.value, user)
        return {}

    @routes.post("/undo")
    def undo(body: Place, user: User) -> Json:
        site.require_session(body.session_id, user)
        site.assistant.undo(body.session_id, user=user)
        return {}

    @routes.post("/switch")
    def switch(body: Place, user: User) -> Json:
        site.assistant.history.switch(body.session_id, body.turn_id, user)
        return {}

    return routes


def _begin(site: Site, user: str, call: dict[str, Any]) -> Run | None:
    kind, session_id = str(call.get("kind", "ask")), str(call.get("session_id") or "")
    question = str(call.get("question") or "").strip()
    if kind == "follow":
        return site.runs.get(user, session_id)
    if session_id:
        site.require_session(session_id, user)
    elif kind == "ask":
        session_id = uuid.uuid4().hex
    if kind in ("ask", "edit") and not question:
        raise QuestionError("Please write a question.")
    if len(question) > MAX_QUESTION:
        raise QuestionError(f"The question has {len(question):,} characters; put so long a text in as a document.")
    return site.runs.start(user, session_id, question, _beginner(site, user, session_id, question, kind, call))


def _beginner(site: Site, user: str, session_id: str, question: str, kind: str, call: dict[str, Any]) -> Begin:
    assistant = site.assistant

    def begin(stop: Any) -> Iterator[Event]:
        if kind == "retry":
            return assistant.retry(session_id, user=user, stop=stop)
        if kind == "edit":
            return assistant.edit(session_id, int(call.get("turn_id") or 0), question, user=user, stop=stop)
        version = call.get("version")
        return assistant.stream(
            question,
            session_id=session_id,
            user=user,
            documents=[str(name) for name in call.get("documents") or ()] or None,
            stop=stop,
            expected_version=int(version) if version is not None else None,
        )

    return begin
