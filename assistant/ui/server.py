"""Serving: the port, the login, the share link, and closing down in order.

Knows how the chat is put together and started; what it does is in the other modules here.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # kept in RAM for a dashboard that is switched off
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(2**31)  # and made a table of with pandas after each turn
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from assistant.errors import (
    AccessError,
    AssistantError,
    BusyError,
    HistoryError,
    ImportFormatError,
    ServerError,
    SettingsError,
    StaleSessionError,
    StorageFullError,
    UnknownDocumentError,
    UnknownSessionError,
    UnknownTurnError,
)
from assistant.records import LOCAL_USER
from assistant.users import Users, make_password

from . import chat, documents, page, sessions
from .auth import Access, Tokens
from .guard import Guard, problem
from .ingests import Ingests
from .runs import Runs
from .site import Site
from .strings import Strings
from .visitors import Visitors

if TYPE_CHECKING:
    from assistant.core import Assistant
    from assistant.settings import Settings

log = logging.getLogger(__name__)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
GUEST = "guest"
SHARE_SECONDS = 30
_STATUS: dict[type[AssistantError], int] = {
    UnknownSessionError: 404,
    UnknownTurnError: 404,
    UnknownDocumentError: 404,
    StaleSessionError: 409,
    AccessError: 403,
    BusyError: 503,
    StorageFullError: 507,
    ImportFormatError: 400,
    HistoryError: 500,
}


def access_for(settings: Settings, *, host: str, share: bool, public: bool, auth: str) -> tuple[Access, str]:
    """Decide who may use the chat.

    Args:
        settings: Where the users file is.
        host: Address to listen on.
        share: Whether a public link is made.
        public: Whether anybody may come in.
        auth: ``name:password`` of one user for this run; empty for none.

    Returns:
        The access, and a password that was made for ``guest`` (empty when none had to be).

    Raises:
        SettingsError: *auth* is not ``name:password``, or ``--public`` and a login were both asked for.
    """
    exposed = share or host not in LOOPBACK
    hosts = LOOPBACK if host in LOOPBACK else frozenset[str]()
    extra = {}
    if auth:
        name, colon, password = auth.partition(":")
        if not colon:
            raise SettingsError("--auth takes NAME:PASSWORD.")
        extra[name] = password
    if public:
        if auth:
            raise SettingsError("--public lets anybody in and --auth does not; choose one.")
        return Access("public", None, hosts), ""
    users = Users(settings.users_file, extra)
    made = ""
    if exposed and not users.names():
        made = make_password()
        users = Users(settings.users_file, {GUEST: made})
    if exposed or auth:
        return Access("login", users, hosts), made
    return Access("local", None, hosts), ""


class ChatServer:
    """A served chat; close it to stop.

    Args:
        assistant: Not closed here.
        access: Who may use it.
        host: Address to listen on.
        port: To listen on.

    Raises:
        ServerError: The port is in use, or the server did not start.
    """

    def __init__(self, assistant: Assistant, access: Access, *, host: str = "127.0.0.1", port: int = 7860) -> None:
        check_port(host, port)
        settings = assistant.settings
        limited = access.mode != "local"
        tokens = Tokens(settings.history_dir / "cookie.key", access.users)
        self.site = Site(
            assistant=assistant,
            access=access,
            tokens=tokens,
            strings=Strings(),
            runs=Runs(settings.user_queue_places if limited else None),
            ingests=Ingests(assistant, settings.store_dir / "uploads", settings.user_upload_bytes if limited else None),
        )
        self._app = _Application(self.site)
        try:
            _, self.url, _ = self._app.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, inline=False, quiet=True,
                prevent_thread_lock=True, show_error=False, ssr_mode=False, run_history=False,
                enable_monitoring=False, mcp_server=False, pwa=False, num_workers=0, state_session_capacity=64,
                auth_dependency=_user_of, _frontend=False,
            )  # fmt: skip
        except OSError as exc:
            raise ServerError(f"The chat can't be served on {host}, port {port}: {exc}.") from exc

    def share(self) -> str:
        """Open Gradio's tunnel and return the public address.

        Raises:
            ServerError: There is none to be had here; the local address still serves.
        """
        from gradio import networking

        address = urlsplit(self.url)
        try:
            url = networking.setup_tunnel("127.0.0.1", address.port or 80, secrets.token_urlsafe(32), None, None)
        except Exception as exc:
            log.info("No share link", exc_info=exc)
            raise ServerError(
                "No share link can be made here (Gradio's share server or its frpc program can't be reached); "
                f"the chat is at {self.url} all the same."
            ) from exc
        self._app.guard.hosts.add(urlsplit(url).hostname or "")
        return url.replace("http://", "https://", 1)

    def close(self) -> None:
        """Stop answering and reading, store what there is, and free the port."""
        self.site.runs.close()
        self.site.ingests.close()
        self._app.get_blocks().close(verbose=False)

    def __enter__(self) -> ChatServer:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class _Application(gr.Server):
    """Gradio's server with our routes, and the guard outside everything Gradio adds."""

    def __init__(self, site: Site) -> None:
        super().__init__(title="Thimble", openapi_url=None, docs_url=None, redoc_url=None)
        for router in (page.router, chat.router, sessions.router, sessions.transfer_router, documents.router):
            self.include_router(router(site))
        chat.add_endpoint(self, site)
        self.add_exception_handler(AssistantError, _told)
        self.add_exception_handler(RequestValidationError, _misunderstood)
        self.guard = Guard(super().__call__, site.access, site.tokens)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.guard(scope, receive, send)


def check_port(host: str, port: int) -> None:
    """Make sure that a port can be had.

    Raises:
        ServerError: It is in use, or may not be used; names a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            return
        except (OSError, OverflowError) as exc:
            reason = exc
    raise ServerError(f"Port {port} on {host} can't be used ({_why(reason)}); try --port {_free_port(host, family)}.")


def wait_for_end() -> None:
    """Return when the process is asked to end (Ctrl-C, SIGTERM)."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not ended.wait(3600):
        pass


def serve(assistant: Assistant, access: Access, made: str, *, host: str, port: int, share: bool,
          say: Callable[[str], None]) -> None:  # fmt: skip
    """Serve the chat until the process is asked to end, and say where it is.

    Args:
        assistant: Not closed here.
        access: Who may use it.
        host: Address to listen on.
        port: To listen on.
        share: Whether to make a public link.
        say: Told where the chat is.
        made: A password that was made for ``guest``, said once with the address.
    """
    visitors = Visitors(assistant.history, assistant.settings.history_dir, public=access.mode == "public")
    with visitors, ChatServer(assistant, access, host=host, port=port) as server:
        threading.Thread(target=_warm, args=(assistant,), name="warm", daemon=True).start()
        say(f"The chat is at {server.url}")
        if share:
            try:
                say(f"Shared at {server.share()}")
            except ServerError as error:
                say(str(error))
        if made:
            say(f"Log in as {GUEST} with the password {made} (made for this run, said only here).")
        wait_for_end()
        say("Closing …")


async def _told(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
    return problem(status, str(error), kind=type(error).__name__)


async def _misunderstood(request: Request, error: Exception) -> Response:
    log.info("Malformed request to %s: %s", request.url.path, error)
    return problem(422, "The page and the server don't understand each other; reload the page.")


def _user_of(request: Request) -> str:
    user: str = getattr(request.state, "user", None) or LOCAL_USER
    return user


def _warm(assistant: Assistant) -> None:
    """Load the models while the user still types the first question; what fails is told with that question."""
    try:
        assistant.warm(settle=True)
    except Exception as exc:  # noqa: BLE001 - it will be raised again where somebody sees it
        log.info("Could not load the models ahead: %s", exc)


def _why(reason: Exception) -> str:
    return getattr(reason, "strerror", None) or str(reason)


def _free_port(host: str, family: int) -> int:
    with socket.socket(family) as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return 7860
        return int(trial.getsockname()[1])
