"""Visitors of a public chat leave nothing behind: when their chats are deleted, and by whom.

A visit lasts a day, and no longer than the public chat. Every public chat on a history holds a shared lock while it
runs; whoever gets the lock alone knows that all visitors there belong to chats that are gone, however they ended.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from assistant.errors import AssistantError
from assistant.users import VISITOR_PREFIX

from .auth import VISIT_S

try:
    import fcntl
except ImportError:  # Windows: nobody can be told apart, so only age counts
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from assistant.history import History

log = logging.getLogger(__name__)

EVERY_S = 3600.0


class Visitors:
    """Clears at the start what gone chats left; as a context of a public chat, keeps its own visitors until the end.

    Args:
        history: Where their chats are.
        folder: Of the history; the lock lies there.
        public: Whether this chat has visitors.
    """

    def __init__(self, history: History, folder: Path, *, public: bool) -> None:
        self._history = history
        self._public = public
        self._file = (folder / "visitors.lock").open("ab")
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Visitors:
        """Clear, and begin to keep."""
        self._clear(all_of_them=self._lock_alone())
        if self._public:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_SH)  # waits for whoever clears, which is quick
            self._thread = threading.Thread(target=self._watch, name="visitors", daemon=True)
            self._thread.start()
        elif fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Delete this chat's visitors, unless another public chat still runs: the last to end deletes them all."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._public:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._clear(all_of_them=fcntl is None or self._lock_alone())
        self._file.close()

    def _lock_alone(self) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                self._clear(all_of_them=False)
            except AssistantError as error:
                log.warning("Old visitors could not be cleared: %s", error)

    def _clear(self, *, all_of_them: bool) -> None:
        """Delete all visitors' chats, or those that nobody can come back to: a visit lasts a day from its first."""
        since = time.time() - VISIT_S
        for user in self._history.users():
            if not user.startswith(VISITOR_PREFIX):
                continue
            while sessions := self._history.sessions(user, limit=1000):
                gone = [session for session in sessions if all_of_them or session.updated_at < since]
                for session in gone:
                    self._history.delete(session.id, user)
                if len(gone) < len(sessions):
                    break
