"""Turns being written, apart from the tabs that watch them.

A turn belongs to the server: a tab that reloads, closes or loses its connection stops nothing, and any tab of the same
user may watch or stop it. Holds one turn's text while it is written, and nothing afterwards.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from assistant.errors import AssistantError, BusyError
from assistant.records import Event

from .guard import failure_text
from .views import event_view

log = logging.getLogger(__name__)

Json = dict[str, Any]
Begin = Callable[[threading.Event], Iterator[Event]]


class Run:
    """One turn being written: its events so far, for any number of watchers."""

    def __init__(self, user: str, session_id: str, question: str) -> None:
        self.user = user
        self.session_id = session_id
        self.question = question
        self.stop = threading.Event()
        self._events: list[Json] = []
        self._lock = threading.Lock()
        self._done = False

    def since(self, position: int) -> tuple[list[Json], int, bool]:
        """Return the events from *position* on, text run together, where to go on, and whether it is over."""
        with self._lock:
            fresh, done = self._events[position:], self._done
        merged: list[Json] = []
        for event in fresh:
            if event["type"] == "text" and merged and merged[-1]["type"] == "text":
                merged[-1] = {"type": "text", "text": merged[-1]["text"] + event["text"]}
            else:
                merged.append(event)
        return merged, position + len(fresh), done

    def add(self, event: Json) -> None:
        """Note an event."""
        with self._lock:
            self._events.append(event)

    def finish(self) -> None:
        """Note that no more will come."""
        with self._lock:
            self._done = True


class Runs:
    """All turns being written, one a session.

    Args:
        places: How many one user may have at once; None for no limit (the assistant's own queue still has one).
    """

    def __init__(self, places: int | None = None) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], tuple[Run, threading.Thread]] = {}
        self._closed = False

    def start(self, user: str, session_id: str, question: str, begin: Begin) -> Run:
        """Start to write a turn.

        Args:
            user: Whose.
            session_id: The chat it belongs to.
            question: Shown to tabs that join later.
            begin: Given the event that stops it, returns the turn's events.

        Raises:
            BusyError: This session is still being answered, or the user has no place left.
        """
        with self._lock:
            if self._closed:
                raise BusyError("The chat is closing down.")
            if (user, session_id) in self._runs:
                raise BusyError("This chat is still being answered; stop the answer or wait for it.")
            if self._places is not None and sum(key[0] == user for key in self._runs) >= self._places:
                raise BusyError(f"You may have {self._places} questions under way; wait for one to be answered.")
            run = Run(user, session_id, question)
            thread = threading.Thread(target=self._write, args=(run, begin), name=f"turn-{session_id[:8]}", daemon=True)
            self._runs[user, session_id] = run, thread
        thread.start()
        return run

    def get(self, user: str, session_id: str) -> Run | None:
        """Return the turn being written in a session, if any."""
        with self._lock:
            found = self._runs.get((user, session_id))
        return found[0] if found else None

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop all and wait until what they wrote is stored."""
        with self._lock:
            self._closed = True
            running = list(self._runs.values())
        for run, _ in running:
            run.stop.set()
        for _, thread in running:
            thread.join(timeout_s)

    def _write(self, run: Run, begin: Begin) -> None:
        try:
            events = begin(run.stop)
            with closing(events):  # type: ignore[type-var]  # the assistant's events are a generator
                for event in events:
                    run.add(event_view(event))
        except AssistantError as error:
            run.add({"type": "error", "kind": type(error).__name__, "message": str(error)})
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("A turn failed [%s]", reference)
            run.add({"type": "error", "kind": "unexpected", "message": failure_text(reference)})
        finally:
            with self._lock:
                del self._runs[run.user, run.session_id]
            run.finish()
