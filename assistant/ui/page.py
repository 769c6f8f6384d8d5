"""Routes of the page itself: HTML, scripts and styles from ``static/``, logging in, what the page must know first."""

from __future__ import annotations

import hashlib
import mimetypes
import string
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from assistant import __version__

from .auth import LOGIN_S, Throttle
from .guard import COOKIE, set_cookie
from .site import Site, User
from .views import Json

STATIC = Path(__file__).parent / "static"
LANGUAGE_COOKIE = "thimble-language"


def router(site: Site) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    files = _static_files()
    throttle = Throttle()

    @routes.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return _html(site, request, "index.html")

    @routes.get("/static/{path:path}")
    def static(path: str, request: Request) -> Response:
        found = files.get(path)  # only what was there at the start: no path leads out
        if found is None:
            return PlainTextResponse("There is nothing here.", 404)
        content, kind, tag = found
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    @routes.get("/favicon.ico")
    def favicon() -> Response:
        return Response(files["icon.svg"][0], media_type="image/svg+xml")

    @routes.get("/robots.txt")
    def robots() -> Response:
        return PlainTextResponse("User-agent: *\nDisallow: /\n")

    @routes.get("/api/health")
    def health() -> Json:
        return {"version": __version__}

    @routes.get("/api/start")
    def start(request: Request, user: User) -> Json:
        language = _language(site, request)
        settings = site.assistant.settings
        return {
            "version": __version__,
            "user": user,
            "mode": site.access.mode,
            "read_only": site.read_only,
            "language": language,
            "languages": site.strings.languages,
            "words": site.strings.words(language),
            "messages": site.strings.messages(language),
            "max_file_bytes": settings.max_file_bytes,
            "answer_threshold": settings.answer_threshold,
        }

    @routes.get("/login")
    def login_page(request: Request) -> Response:
        if site.access.mode != "login" or request.state.user is not None:
            return RedirectResponse("/", 303)
        return _html(site, request, "login.html", problem="")

    @routes.post("/login")
    def login(request: Request, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = "") -> Response:
        words = site.strings.words(_language(site, request))
        if site.access.users is None:
            return RedirectResponse("/", 303)
        keys = (f"name:{name.lower()[:64]}", f"from:{request.client.host if request.client else ''}")
        wait = throttle.wait_s(*keys)
        if wait > 0:
            seconds = max(1, round(wait))
            said = words["login.wait"].replace("{seconds}", str(seconds))
            return _html(site, request, "login.html", 429, {"retry-after": str(seconds)}, problem=said)
        if not site.access.users.verify(name, password):
            throttle.failed(*keys)
            return _html(site, request, "login.html", 403, problem=words["login.wrong"])
        throttle.succeeded(*keys)
        reply = RedirectResponse("/", 303)
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")
        reply.headers.append("set-cookie", set_cookie(site.tokens.login(name), LOGIN_S, secure=secure))
        return reply

    @routes.post("/logout")
    def logout() -> Response:
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")
        return reply

    return routes


def _language(site: Site, request: Request) -> str:
    return site.strings.choose(request.cookies.get(LANGUAGE_COOKIE, ""), request.headers.get("accept-language", ""))


def _html(site: Site, request: Request, name: str, status: int = 200, headers: dict[str, str] | None = None,
          **values: str) -> Response:  # fmt: skip
    language = _language(site, request)
    words = {key.replace(".", "_"): escape(text) for key, text in site.strings.words(language).items()}
    page = string.Template((STATIC / name).read_text(encoding="utf-8"))
    filled = page.substitute(words, language=language, **{key: escape(value) for key, value in values.items()})
    return HTMLResponse(filled, status, headers)


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    mimetypes.add_type("text/javascript", ".js")
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.is_file() and path.suffix in (".js", ".css", ".svg"):
            content = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            found[path.relative_to(STATIC).as_posix()] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return found
