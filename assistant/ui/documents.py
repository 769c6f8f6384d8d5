"""Routes of the documents: list, upload, remove, preview, the passage around a quote, the image of a PDF page."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from assistant.errors import DocumentTooLargeError
from assistant.settings import ROOT
from assistant.units import format_bytes

from . import pdf_page
from .ingests import Upload
from .site import Site, User
from .views import Json, document_view, passage_view

SAMPLES = ROOT / "samples"
MAX_AROUND = 4000
CHECKED_BYTES = 8_000_000  # of a file of unknown size, between two looks at whether it still has room


class Password(BaseModel):
    """Opens an encrypted file; not kept."""

    password: str


def router(site: Site) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api")

    @routes.get("/documents")
    def listed(user: User, session_id: str = "") -> Json:
        documents = site.assistant.documents(user=user, session_id=session_id or None)
        return {
            "documents": [document_view(document, user=user) for document in documents],
            "uploads": site.ingests.listed(user),
        }

    @routes.delete("/documents/{document_id}")
    def remove(document_id: str, user: User, session_id: str = "") -> Json:
        site.require_writable()
        removed = site.assistant.remove_document(document_id, user=user, session_id=session_id or None)
        site.ingests.forget(Path(removed.source))
        return {}

    @routes.get("/uploads")
    def uploads(user: User) -> Json:
        return {"uploads": site.ingests.listed(user)}

    @routes.put("/uploads")
    async def upload(request: Request, user: User, name: str, session_id: str = "") -> Json:
        site.require_writable()
        return (await _receive(site, request, user, session_id or None, name.replace("\\", "/"))).view()

    @routes.delete("/uploads/{upload_id}")
    def cancel(upload_id: str, user: User) -> Json:
        site.ingests.cancel(user, upload_id)
        return {}

    @routes.post("/uploads/{upload_id}/password")
    def unlock(upload_id: str, body: Password, user: User) -> Json:
        site.require_writable()
        site.ingests.unlock(user, upload_id, body.password)
        return {}

    @routes.delete("/uploads")
    def clear(user: User) -> Json:
        site.ingests.clear(user)
        return {}

    @routes.post("/samples")
    def samples(user: User) -> Json:
        site.require_writable()
        paths = sorted(path for path in SAMPLES.iterdir() if path.name != "README.md")
        return {"uploads": [site.ingests.add_existing(user, path.name, path).view() for path in paths]}

    @routes.get("/passage")
    def passage(user: User, document_id: str, start: int = 0, end: int = 0, around: int = 1200) -> Json:
        start, end = max(0, start), max(0, end)
        return passage_view(site.assistant.passage(document_id, start, end, min(max(0, around), MAX_AROUND), user=user))

    @routes.get("/documents/{document_id}/page/{page}.png")
    def page_image(document_id: str, page: int, user: User) -> Response:
        path = Path(site.assistant.passage(document_id, 0, 0, 0, user=user).source)
        image = pdf_page.draw(path, page) if path.suffix.lower() == ".pdf" and path.is_file() else None
        if image is None:
            return Response(status_code=404)
        return Response(image, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    return routes


async def _receive(site: Site, request: Request, user: str, session_id: str | None, name: str) -> Upload:
    """Take a file in as it comes, refusing what is too large by its announced size where it has one."""
    limit = site.assistant.settings.max_file_bytes
    announced = int(request.headers.get("content-length") or 0)
    too_large = DocumentTooLargeError(name, f"is over the limit of {format_bytes(limit)}", "split it")
    if announced > limit:
        raise too_large
    upload = await asyncio.to_thread(site.ingests.expect, user, session_id, name, announced)
    received, checked = 0, max(announced, CHECKED_BYTES)
    try:
        with upload.part.open("wb") as file:
            async for block in request.stream():
                received += len(block)
                if received > limit:
                    raise too_large
                if received > checked:
                    site.ingests.check(user, received, written_bytes=received)
                    checked = received + CHECKED_BYTES
                file.write(block)
        if not announced:
            site.ingests.check(user, received, written_bytes=received)
        return site.ingests.add(upload)
    except BaseException:  # also when the tab went away
        site.ingests.unexpect(upload)
        raise
