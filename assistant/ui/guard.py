"""The gate in front of the whole server: which paths exist, who may pass, and what every reply carries.

An allow-list: Gradio brings about sixty routes (file serving, proxying, uploads, monitoring …) and the page needs
four of them, so the rest do not exist here. Knows nothing about chats or documents.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from assistant.records import LOCAL_USER

from .auth import VISIT_S, Access, Tokens

log = logging.getLogger(__name__)

COOKIE = "thimble"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send the login form with "Origin: null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_OPEN = re.compile(r"/(static/.*|login|favicon\.ico|robots\.txt|api/health)\Z")
_GRADIO = re.compile(r"/gradio_api/call/[a-z_]+(/[0-9a-f]{32})?\Z")
_PAGE = re.compile(r"/(api/.*|logout)?\Z")
_STARTUP = "/gradio_api/startup-events"
_SAFE = {"GET", "HEAD", "OPTIONS"}

App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """Wraps an ASGI application; see the module."""

    def __init__(self, app: App, access: Access, tokens: Tokens) -> None:
        self._app = app
        self._access = access
        self._tokens = tokens
        self.hosts = set(access.hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        reply = _Reply(send, secure=_is_tls(scope, headers))
        refusal = self._refusal(scope, headers, reply)
        if refusal is not None:
            await refusal(scope, receive, reply.send)
            return
        try:
            await self._app(scope, receive, reply.send)
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("Request %s %s failed [%s]", scope["method"], scope["path"], reference)
            if not reply.started:
                await unexpected(reference)(scope, receive, reply.send)

    def _refusal(self, scope: Any, headers: Headers, reply: _Reply) -> Response | None:
        path, host = scope["path"], headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            return problem(421, "This address is not one that the chat answers to.")
        is_open = _OPEN.match(path) is not None
        if path == _STARTUP and _is_loopback(scope):
            return None
        if not (is_open or _GRADIO.match(path) or _PAGE.match(path)):
            return problem(404, "There is nothing here.")
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and urlsplit(origin).netloc != host:
            return problem(403, "Another site may not do this for you.")
        user = self._user(headers, reply)
        scope.setdefault("state", {})["user"] = user
        if user is None and not is_open:
            return RedirectResponse("/login", 303) if path == "/" else problem(401, "Please log in.", kind="login")
        return None

    def _user(self, headers: Headers, reply: _Reply) -> str | None:
        mode = self._access.mode
        if mode == "local":
            return LOCAL_USER
        user = self._tokens.user(_cookie(headers), mode)
        if user is None and mode == "public":
            user, cookie = self._tokens.visitor()
            reply.cookies.append(set_cookie(cookie, VISIT_S, secure=reply.secure))
        return user


class _Reply:
    """Adds what every reply carries, and notes whether it began."""

    def __init__(self, send: Any, *, secure: bool) -> None:
        self._send = send
        self.secure = secure
        self.started = False
        self.cookies: list[str] = []

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]  # Gradio allows any origin on a host that is not this machine
            for name, value in HEADERS.items():
                headers[name] = value
            if self.secure:
                headers["strict-transport-security"] = "max-age=31536000"
            headers.setdefault("cache-control", "no-store")
            for cookie in self.cookies:
                headers.append("set-cookie", cookie)
        await self._send(message)


def set_cookie(value: str, lasts_s: int, *, secure: bool) -> str:
    """Write the login cookie: out of reach of scripts and other sites, and of plain HTTP where there is TLS."""
    return f"{COOKIE}={value}; Path=/; Max-Age={lasts_s}; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")


def problem(status: int, message: str, *, kind: str = "refused", headers: dict[str, str] | None = None) -> Response:
    """Make the reply to a request that won't be done: one sentence for the screen."""
    return JSONResponse({"error": kind, "message": message}, status, headers)


def unexpected(reference: str) -> Response:
    """Make the reply to a failure nobody foresaw: a sentence and where to find more."""
    return problem(500, failure_text(reference), kind="unexpected")


def failure_text(reference: str) -> str:
    """Word a failure nobody foresaw."""
    return f"Something went wrong here. The log has more, under the reference {reference}."


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0].strip("[]").lower() if not host.endswith("]") else host.strip("[]").lower()


def _is_tls(scope: Any, headers: Headers) -> bool:
    return scope.get("scheme") == "https" or headers.get("x-forwarded-proto", "").split(",")[0].strip() == "https"


def _is_loopback(scope: Any) -> bool:
    client = scope.get("client")
    return client is not None and client[0] in ("127.0.0.1", "::1")


def as_json(value: object) -> str:
    """Write JSON that may stand inside HTML."""
    return json.dumps(value).replace("<", "\\u003c").replace("&", "\\u0026")
