"""A file of chats on its way into the history: taken in, read in a thread, told about while it is read.

The thread goes on when the tab that sent the file closes; what was read is stored chat by chat, and a second import of
the same file passes it over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import AssistantError
from assistant.transfer import ImportProgress, ImportReport, import_file

from .guard import failure_text
from .views import Json

if TYPE_CHECKING:
    from assistant.history import History

log = logging.getLogger(__name__)

TOLD = 100  # chats passed over that the page lists
EVERY_S = 0.2


class Import:
    """One import under way; deletes its file at the end.

    Args:
        history: Where the chats go.
        path: The file.
        name: How its user named it.
        user: Whose.
    """

    def __init__(self, history: History, path: Path, name: str, user: str) -> None:
        self._history, self._path, self._name, self._user = history, path, name, user
        self._progress: ImportProgress | None = None
        self._report: ImportReport | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._read, name="import", daemon=True).start()

    async def begun(self) -> None:
        """Wait until a first chat was read, or all.

        Raises:
            AssistantError: The file can't be read; nothing was.
        """
        while self._progress is None and not self._ended.is_set():
            await asyncio.sleep(0.02)
        if self._ended.is_set() and self._error is not None and self._progress is None:
            raise self._error

    async def lines(self) -> AsyncIterator[str]:
        """Yield how far it is, a line of JSON each time, and in the last line how it ended."""
        while not self._ended.is_set():
            at = self._progress
            if at is not None:
                share = at.bytes_done / at.bytes_total if at.bytes_total else 0.0
                yield json.dumps({"share": share, "conversations": at.conversations}) + "\n"
            await asyncio.sleep(EVERY_S)
        yield json.dumps(self._end()) + "\n"

    def _end(self) -> Json:
        if self._report is None:
            known = isinstance(self._error, AssistantError)
            return {"error": type(self._error).__name__ if known else "unexpected", "message": str(self._error)}
        report = self._report
        return {
            "conversations": report.conversations,
            "turns": report.turns,
            "skipped": [{"name": name, "reason": reason} for name, reason in report.skipped[:TOLD]],
            "skipped_count": report.skipped_count,
            "cut_off": report.cut_off,
        }

    def _read(self) -> None:
        try:
            self._report = import_file(self._history, self._path, self._user, on_progress=self._note)
        except AssistantError as error:
            self._error = type(error)(str(error).replace(self._path.name, self._name))
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("An import failed [%s]", reference)
            self._error = RuntimeError(failure_text(reference))
        finally:
            self._path.unlink(missing_ok=True)
            self._ended.set()

    def _note(self, progress: ImportProgress) -> None:
        self._progress = progress
