"""Who is asking: signed login cookies, visitors of a public chat, and slowing down those who guess passwords.

Knows nothing about HTTP beyond the text of a cookie. Holds nothing for each login: a cookie proves itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from assistant.users import VISITOR_PREFIX, Users

LOGIN_S = 14 * 86_400  # a login lasts two weeks
VISIT_S = 86_400  # a visitor of a public chat is forgotten after a day
FREE_TRIES = 3
MAX_WAIT_S = 60.0
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the chat, and how.

    Attributes:
        mode: ``local`` has one user and no login; ``login`` asks for one; ``public`` lets anybody in, read-only for
            documents, each visitor with chats of their own for a day.
        users: Of ``login``.
        hosts: Host names the page answers to; empty for any. Keeps other sites from reaching a chat on this
            machine by a name that points here (DNS rebinding).
    """

    mode: Literal["local", "login", "public"] = "local"
    users: Users | None = None
    hosts: frozenset[str] = frozenset()


class Tokens:
    """Cookie texts that prove who somebody is: name, end and an HMAC over both and the password's stamp.

    Args:
        secret_path: Where the key is kept (made when missing), so that a restart logs nobody out.
    """

    def __init__(self, secret_path: Path, users: Users | None) -> None:
        self._key = _secret(secret_path)
        self._users = users

    def login(self, user: str) -> str:
        """Make the cookie of a user who gave the right password."""
        return self._sign(user, LOGIN_S, (self._users and self._users.stamp(user)) or "")

    def visitor(self) -> tuple[str, str]:
        """Make a new visitor; returns (user, cookie)."""
        user = VISITOR_PREFIX + secrets.token_hex(12)
        return user, self._sign(user, VISIT_S, "")

    def user(self, cookie: str, mode: str) -> str | None:
        """Return whose cookie it is; None when it is forged, too old, or the password changed since."""
        try:
            name64, end, mark = cookie.split(".")
            user = base64.urlsafe_b64decode(name64.encode()).decode()
            too_old = int(end) < time.time()
        except (ValueError, UnicodeDecodeError):
            return None
        is_visitor = user.startswith(VISITOR_PREFIX)
        if too_old or is_visitor != (mode == "public"):
            return None
        stamp = "" if is_visitor else (self._users.stamp(user) if self._users else None)
        if stamp is None or not hmac.compare_digest(self._mark(user, end, stamp), mark):
            return None
        return user

    def _sign(self, user: str, lasts_s: int, stamp: str) -> str:
        end = str(int(time.time()) + lasts_s)
        return f"{base64.urlsafe_b64encode(user.encode()).decode()}.{end}.{self._mark(user, end, stamp)}"

    def _mark(self, user: str, end: str, stamp: str) -> str:
        return hmac.new(self._key, f"{user}\n{end}\n{stamp}".encode(), hashlib.sha256).hexdigest()


class Throttle:
    """Make each further wrong password wait longer: 2, 4, 8 … 60 seconds, by address and by name.

    By name too, because behind a share link everybody comes from one address. Remembers at most 4,096 of each.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait_s(self, *keys: str) -> float:
        """Return how long these must still wait before another try; 0 when they may."""
        now = self._clock()
        with self._lock:
            ends = [self._failures.get(key, (0, 0.0)) for key in keys]
        return max((end - now for count, end in ends if count > FREE_TRIES), default=0.0) if ends else 0.0

    def failed(self, *keys: str) -> None:
        """Note a wrong password."""
        now = self._clock()
        with self._lock:
            for key in keys:
                count = self._failures.pop(key, (0, 0.0))[0] + 1
                wait = min(MAX_WAIT_S, 2.0 ** max(0, count - FREE_TRIES))
                self._failures[key] = (count, now + wait)
                while len(self._failures) > _REMEMBERED:
                    self._failures.popitem(last=False)

    def succeeded(self, *keys: str) -> None:
        """Forget the failures of these."""
        with self._lock:
            for key in keys:
                self._failures.pop(key, None)


def _secret(path: Path) -> bytes:
    try:
        key = path.read_bytes()
        if len(key) == 32:
            return key
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_bytes(32)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(key)
    return key
