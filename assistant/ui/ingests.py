"""Uploaded files on their way into the index, apart from the tab that sent them.

One thread reads one file after another, so that a tab which reloads or closes loses nothing. An upload lives in a
folder of its user's own and goes once it is read; PDF files stay, since their pages can be shown.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from assistant.errors import AssistantError, StorageFullError, UnknownDocumentError
from assistant.records import IngestProgress
from assistant.units import format_bytes

from .guard import failure_text

if TYPE_CHECKING:
    from assistant.core import Assistant

log = logging.getLogger(__name__)

Json = dict[str, Any]
State = Literal["waiting", "reading", "added", "updated", "unchanged", "refused", "cancelled"]
LISTED = 200  # finished uploads still told about, a user
KEPT_SUFFIXES = {".pdf"}
DISK_RESERVE = 200_000_000  # bytes left free on the disk, whatever is uploaded
_ACTIVE = ("waiting", "reading")


@dataclass(slots=True)
class Upload:
    """One file on its way; *name* is how its user named it, for the screen."""

    id: str
    user: str
    session_id: str | None
    name: str
    path: Path
    size_bytes: int
    keep: bool = False
    state: State = "waiting"
    reason: str = ""
    kind: str = ""
    chunks: int = 0
    chunks_per_s: float = 0.0
    share: float = 0.0
    remaining_s: float | None = None
    locked: bool = False
    passwords: tuple[str, ...] = ()
    cancel: threading.Event = field(default_factory=threading.Event)

    def view(self) -> Json:
        """Return what the page shows of it."""
        return {
            "id": self.id,
            "name": self.name,
            "size_bytes": self.size_bytes,
            "state": self.state,
            "reason": self.reason,
            "kind": self.kind,
            "chunks": self.chunks,
            "chunks_per_s": self.chunks_per_s,
            "share": self.share,
            "remaining_s": self.remaining_s,
            "locked": self.locked,
        }


class Ingests:
    """The queue of uploads and the thread that reads them.

    Args:
        folder: Where uploads lie until they are read.
        user_bytes: Disk for one user's uploads and documents; None for no limit but the disk's.
    """

    def __init__(self, assistant: Assistant, folder: Path, user_bytes: int | None = None) -> None:
        self._assistant = assistant
        self._folder = folder
        self._user_bytes = user_bytes
        self._wake = threading.Condition()
        self._waiting: deque[Upload] = deque()
        self._uploads: dict[str, list[Upload]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None
        self._sweep()

    def place(self, user: str, session_id: str | None, name: str, size_bytes: int) -> Path:
        """Return where an upload may be written; nothing that *name* holds leads out of its user's folder.

        Raises:
            StorageFullError: It would fill the disk, or the user's share of it.
        """
        folder = self._folder / _safe_folder(user) / (_safe_folder(session_id) if session_id else "all")
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size_bytes > free - DISK_RESERVE:
            raise StorageFullError(f"{format_bytes(size_bytes)} won't fit on the disk, {format_bytes(free)} are free.")
        if self._user_bytes is not None and (used := self._used(user)) + size_bytes > self._user_bytes:
            raise StorageFullError(
                f"Your documents take {format_bytes(used)} of {format_bytes(self._user_bytes)}; remove some first."
            )
        path = folder.joinpath(*safe_parts(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, user: str, session_id: str | None, name: str, path: Path, *, ours: bool = True) -> Upload:
        """Put a file in line.

        Args:
            user: Whose.
            session_id: The only chat that may use it; None for all.
            name: For the screen.
            path: The file.
            ours: Whether it is an upload, to be deleted once read.
        """
        keep = not ours or path.suffix.lower() in KEPT_SUFFIXES
        size = path.stat().st_size
        upload = Upload(secrets.token_hex(8), user, session_id, name, path, size, keep)
        with self._wake:
            mine = self._uploads.setdefault(user, [])
            mine.append(upload)
            finished = [one for one in mine if one.state not in _ACTIVE]
            for old in finished[: max(0, len(finished) - LISTED)]:
                mine.remove(old)
            self._waiting.append(upload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
            self._wake.notify()
        return upload

    def listed(self, user: str) -> list[Json]:
        """Return a user's uploads, oldest first."""
        with self._wake:
            return [upload.view() for upload in self._uploads.get(user, ())]

    def cancel(self, user: str, upload_id: str) -> None:
        """Stop an upload that is under way; forget one that is over.

        Raises:
            UnknownDocumentError: The user has no such upload.
        """
        with self._wake:
            mine = self._uploads.get(user, [])
            found = next((upload for upload in mine if upload.id == upload_id), None)
            if found is None:
                raise UnknownDocumentError("There is no such upload.")
            found.cancel.set()
            if found.state == "waiting":
                found.state = "cancelled"
            elif found.state != "reading":
                mine.remove(found)
                if found.locked:
                    self._drop(found)

    def unlock(self, user: str, upload_id: str, password: str) -> None:
        """Read a file that needs a password once more, with one.

        Raises:
            UnknownDocumentError: The user has no such upload, or it needs none.
        """
        with self._wake:
            found = next((upload for upload in self._uploads.get(user, ()) if upload.id == upload_id), None)
            if found is None or not found.locked:
                raise UnknownDocumentError("There is no such upload.")
            found.locked, found.state, found.reason, found.passwords = False, "waiting", "", (password,)
            self._waiting.append(found)
            self._wake.notify()

    def clear(self, user: str) -> None:
        """Forget the user's uploads that are over."""
        with self._wake:
            mine = self._uploads.pop(user, [])
            for upload in mine:
                if upload.locked:
                    self._drop(upload)
            left = [upload for upload in mine if upload.state in _ACTIVE]
            if left:
                self._uploads[user] = left

    def forget(self, path: Path) -> None:
        """Delete the file of a document that was removed, where it is an upload."""
        if path.resolve().is_relative_to(self._folder.resolve()):
            path.unlink(missing_ok=True)

    def close(self, timeout_s: float = 20.0) -> None:
        """Stop the file being read (a later ingest goes on where it stopped) and end the thread."""
        with self._wake:
            self._closed = True
            for uploads in self._uploads.values():
                for upload in uploads:
                    upload.cancel.set()
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _used(self, user: str) -> int:
        documents = self._assistant.documents(user=user)
        with self._wake:
            waiting = sum(upload.size_bytes for upload in self._uploads.get(user, ()) if upload.state in _ACTIVE)
        return waiting + sum(document.size_bytes for document in documents if document.owner == user)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                upload = self._waiting.popleft()
            if upload.state == "waiting":
                upload.state = "reading"
                self._read(upload)
            if not upload.locked and (not upload.keep or upload.state in ("refused", "cancelled")):
                self._drop(upload)

    def _read(self, upload: Upload) -> None:
        def on_progress(progress: IngestProgress) -> None:
            upload.chunks = progress.chunks_done
            upload.chunks_per_s = progress.chunks_per_s
            upload.remaining_s = progress.remaining_s
            upload.share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0

        try:
            report = self._assistant.ingest(
                [upload.path], on_progress=on_progress, cancel=upload.cancel, user=upload.user,
                session_id=upload.session_id, passwords=upload.passwords,
            )  # fmt: skip
        except AssistantError as error:
            upload.reason, upload.kind, upload.state = str(error), type(error).__name__, "refused"
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("An upload failed [%s]", reference)
            upload.reason, upload.kind, upload.state = failure_text(reference), "unexpected", "refused"
        else:
            upload.share, upload.remaining_s = 1.0, 0.0
            if report.refused:
                upload.reason, upload.state = next(iter(report.refused.values())), "refused"
                upload.locked = "password" in upload.reason  # kept, until its user gives one or lets it go
            elif report.cancelled:
                upload.state = "cancelled"
            else:
                upload.state = "updated" if report.updated else "unchanged" if report.unchanged else "added"

    def _sweep(self) -> None:
        """Delete what a killed process left behind: uploads that were never read, a day ago or earlier."""
        for path in self._folder.rglob("*"):
            left = path.suffix.lower() not in KEPT_SUFFIXES and path.is_file()
            if left and path.stat().st_mtime < time.time() - 86_400:
                path.unlink(missing_ok=True)

    def _drop(self, upload: Upload) -> None:
        if upload.path.is_relative_to(self._folder):  # the samples are read from where they are
            upload.path.unlink(missing_ok=True)


def safe_parts(name: str) -> list[str]:
    """Return the parts of a relative path that an upload named itself by, each a harmless file name.

    No part is empty, hidden, absolute or ``..``; none holds a separator, a control or a direction-changing character.
    """
    parts = []
    for raw in re.split(r"[/\\]+", name)[-6:]:
        kept = "".join(char for char in unicodedata.normalize("NFC", raw) if unicodedata.category(char)[0] != "C")
        part = kept.strip(" .")
        if part:
            stem, dot, suffix = part.rpartition(".")
            part = f"{_cut(stem, 150)}.{suffix[:12]}" if dot else _cut(part, 160)
            parts.append(part)
    return parts or ["unnamed"]


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")


def _safe_folder(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
