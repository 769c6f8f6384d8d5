"""Who may log in: a small file of names and Argon2 hashes.

Knows names, passwords and how to check them. Knows nothing about cookies, pages or what a user may do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from .errors import AccessError, SettingsError

MIN_PASSWORD = 8
MAX_PASSWORD = 1024  # Argon2 would hash megabytes; nobody types them
VISITOR_PREFIX = "visitor-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_RESERVED = {"local"}
# OWASP's second choice for Argon2id (19 MiB, 2 passes): the library's default takes 64 MiB a login, which a process
# with a memory budget would feel.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # no letter that looks like another


def make_password(groups: int = 4) -> str:
    """Make a password that can be read out: groups of five characters, 25 bits each."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(groups))


class Users:
    """The users file: read anew at each question, so that another process may change it; written atomically.

    Args:
        path: The file; need not exist. It is made readable by its owner only.
        extra: Users of this process alone (name to password), never written.

    Raises:
        SettingsError: A name or password in *extra* won't do.
    """

    def __init__(self, path: Path, extra: dict[str, str] | None = None) -> None:
        self.path = path
        self._extra: dict[str, str] = {}
        for name, password in (extra or {}).items():
            _check(name, password)
            self._extra[name] = _HASHER.hash(password)
        self._nobody = _HASHER.hash(secrets.token_hex(16))

    def names(self) -> list[str]:
        """Return who may log in, in order."""
        return sorted(self._read() | self._extra)

    def add(self, name: str, password: str) -> bool:
        """Add a user, or give an existing one a new password.

        Returns:
            Whether the user is new.

        Raises:
            SettingsError: The name or the password won't do.
        """
        _check(name, password)
        with self._locked():
            users = self._read()
            new = name not in users
            users[name] = _HASHER.hash(password)
            self._write(users)
        return new

    def remove(self, name: str) -> None:
        """Remove a user; cookies made for them stop working at once.

        Raises:
            AccessError: There is no such user.
        """
        with self._locked():
            users = self._read()
            if name not in users:
                known = ", ".join(sorted(users)) or "none"
                raise AccessError(f"There is no user {name!r}; the users are: {known}.")
            del users[name]
            self._write(users)

    def verify(self, name: str, password: str) -> bool:
        """Check a password. An unknown name takes as long as a wrong password."""
        stored = self._stored(name)
        try:
            return _HASHER.verify(stored or self._nobody, password[:MAX_PASSWORD]) and stored is not None
        except (VerificationError, InvalidHashError):
            return False

    def stamp(self, name: str) -> str | None:
        """Return a short digest of the user's stored hash: it changes with the password. None for an unknown user."""
        stored = self._stored(name)
        return hashlib.sha256(stored.encode()).hexdigest()[:16] if stored is not None else None

    def _stored(self, name: str) -> str | None:
        return self._extra.get(name) or self._read().get(name)

    def _read(self) -> dict[str, str]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise SettingsError(f"{self.path}: the users file can't be read ({exc}); mend it or move it away.") from exc
        users = data.get("users") if isinstance(data, dict) else None
        if not isinstance(users, dict) or not all(isinstance(value, str) for value in users.values()):
            raise SettingsError(f"{self.path}: this is no users file; move it away and add the users again.")
        return users

    def _write(self, users: dict[str, str]) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)  # mkstemp: mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"version": 1, "users": users}, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _check(name: str, password: str) -> None:
    if not _NAME.match(name) or name in _RESERVED or name.startswith(VISITOR_PREFIX):
        raise SettingsError(
            f"{name!r} can't be a user name; take 1 to 64 letters, digits, dots, dashes, @ or underscores "
            f"(not `local`, nor one that starts with `{VISITOR_PREFIX}`)."
        )
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise SettingsError(f"The password of {name} must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.")
