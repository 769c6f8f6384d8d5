"""Routes of the documents: list, upload, remove, preview, the passage around a quote, the image of a PDF page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from assistant.errors import DocumentTooLargeError
from assistant.settings import ROOT
from assistant.units import format_bytes

from . import pdf_page
from .site import Site, User
from .views import Json, document_view, passage_view

SAMPLES = ROOT / "samples"
MAX_AROUND = 4000


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
        path = await _receive(site, request, user, session_id or None, name)
        return site.ingests.add(user, session_id or None, name.replace("\\", "/"), path).view()

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
        return {"uploads": [site.ingests.add(user, None, path.name, path, ours=False).view() for path in paths]}

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


async def _receive(site: Site, request: Request, user: str, session_id: str | None, name: str) -> Path:
    limit = site.assistant.settings.max_file_bytes
    announced = int(request.headers.get("content-length") or 0)
    too_large = DocumentTooLargeError(name, f"is over the limit of {format_bytes(limit)}", "split it")
    if announced > limit:
        raise too_large
    path = site.ingests.place(user, session_id, name, announced)
    part = path.with_name(path.name + ".part")
    received = 0
    try:
        with part.open("wb") as file:
            async for block in request.stream():
                received += len(block)
                if received > limit:
                    raise too_large
                file.write(block)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
