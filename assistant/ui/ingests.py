"""Uploaded files on their way into the index, apart from the tab that sent them.

One thread reads one file after another, so that a tab which reloads or closes loses nothing. An upload lives in a
folder of its user's own and goes once it is read; PDF files stay, since their pages can be shown. What is still on
its way when the process ends, however it ends, goes on at the next start.
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
from .spool import Spool

if TYPE_CHECKING:
    from assistant.core import Assistant

log = logging.getLogger(__name__)

Json = dict[str, Any]
State = Literal["waiting", "reading", "added", "updated", "unchanged", "refused", "cancelled"]
LISTED = 200  # finished uploads still told about, a user
KEPT_SUFFIXES = {".pdf"}
DISK_RESERVE = 200_000_000  # bytes left free on the disk, whatever is uploaded
CUT_OFF = "its sending broke off; add it again"
_ACTIVE = ("waiting", "reading")
_NOTED = ("id", "user", "session_id", "name", "size_bytes", "keep")


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
    given_up: bool = False

    @property
    def part(self) -> Path:
        """Where it lies until all of it has arrived."""
        return self.path.with_name(f"{self.path.name[:100]}.{self.id}.part")

    def note(self, *, whole: bool = True) -> Json:
        """Return what must be known of it after a restart; *whole* when all of it has arrived."""
        return {**{name: getattr(self, name) for name in _NOTED}, "path": str(self.path), "whole": whole}

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
        self._sending: dict[str, Upload] = {}
        self._spool = Spool(folder.with_name(folder.name + "-queue"))
        self._go_on()
        self._sweep()

    def check(self, user: str, size_bytes: int, *, written_bytes: int = 0) -> None:
        """Make sure that an upload has room; *written_bytes* of it lie on the disk already.

        Raises:
            StorageFullError: It would fill the disk, or the user's share of it.
        """
        self.check_disk(size_bytes - written_bytes)
        if self._user_bytes is not None and (used := self._used(user)) + size_bytes > self._user_bytes:
            raise StorageFullError(
                f"Your documents take {format_bytes(used)} of {format_bytes(self._user_bytes)}; remove some first."
            )

    def check_disk(self, size_bytes: int) -> None:
        """Make sure that the disk takes this much more.

        Raises:
            StorageFullError: It does not.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if size_bytes > free - DISK_RESERVE:
            raise StorageFullError(f"{format_bytes(size_bytes)} won't fit on the disk, {format_bytes(free)} are free.")

    def expect(self, user: str, session_id: str | None, name: str, size_bytes: int) -> Upload:
        """Note that a file is about to arrive at ``part``; then call `add`, or `unexpect` when it broke off.

        Nothing that *name* holds leads out of its user's folder.

        Raises:
            StorageFullError: It would fill the disk, or the user's share of it.
        """
        self.check(user, size_bytes)
        folder = self._folder / _safe_folder(user) / (_safe_folder(session_id) if session_id else "all")
        path = folder.joinpath(*safe_parts(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        keep = path.suffix.lower() in KEPT_SUFFIXES
        upload = Upload(secrets.token_hex(8), user, session_id, name, path, size_bytes, keep)
        self._spool.put(upload.id, upload.note(whole=False))
        with self._wake:
            self._sending[upload.id] = upload
        return upload

    def unexpect(self, upload: Upload) -> None:
        """Forget a file that did not arrive."""
        upload.part.unlink(missing_ok=True)
        with self._wake:
            self._sending.pop(upload.id, None)
        self._spool.drop(upload.id)

    def add(self, upload: Upload) -> Upload:
        """Put a file that has arrived in line."""
        upload.part.replace(upload.path)
        upload.size_bytes = upload.path.stat().st_size
        self._spool.put(upload.id, upload.note())
        self._queue(upload)
        return upload

    def add_existing(self, user: str, name: str, path: Path) -> Upload:
        """Put a file in line that lies on this machine anyway, and stays there."""
        upload = Upload(secrets.token_hex(8), user, None, name, path, path.stat().st_size, keep=True)
        self._spool.put(upload.id, upload.note())
        self._queue(upload)
        return upload

    def _queue(self, upload: Upload) -> None:
        with self._wake:
            self._sending.pop(upload.id, None)
            mine = self._uploads.setdefault(upload.user, [])
            mine.append(upload)
            finished = [one for one in mine if one.state not in _ACTIVE]
            for old in finished[: max(0, len(finished) - LISTED)]:
                mine.remove(old)
                self._spool.drop(old.id)
            if upload.state == "waiting":
                self._waiting.append(upload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _go_on(self) -> None:
        """Take up what a process that is gone left behind, or say that it must be sent again."""
        for note in self._spool.take_over():
            try:
                upload = Upload(**{name: note[name] for name in _NOTED}, path=Path(note["path"]))
                whole = bool(note["whole"]) and upload.path.stat().st_size == upload.size_bytes
            except FileNotFoundError:
                whole = False
            except (KeyError, TypeError, OSError):  # not a note of ours
                self._spool.drop(str(note.get("id")))
                continue
            upload.part.unlink(missing_ok=True)
            chat = upload.session_id
            if chat is not None and self._assistant.history.find_session(chat, upload.user) is None:
                self._drop(upload)  # the only chat that could use it was deleted
                continue
            if not whole:
                upload.state, upload.reason, upload.kind = "refused", CUT_OFF, "cut_off"
            self._queue(upload)

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
            found.given_up = True
            found.cancel.set()
            if found.state == "waiting":
                found.state = "cancelled"
            elif found.state != "reading":
                mine.remove(found)
                if found.locked:
                    self._drop(found)
                self._spool.drop(found.id)

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
                if upload.state not in _ACTIVE:
                    self._spool.drop(upload.id)
            left = [upload for upload in mine if upload.state in _ACTIVE]
            if left:
                self._uploads[user] = left

    def forget(self, path: Path) -> None:
        """Delete the file of a document that was removed, where it is an upload."""
        if path.resolve().is_relative_to(self._folder.resolve()):
            path.unlink(missing_ok=True)

    def close(self, timeout_s: float = 20.0) -> None:
        """Stop the file being read and end the thread; the next start goes on where this one stopped."""
        with self._wake:
            self._closed = True
            for uploads in self._uploads.values():
                for upload in uploads:
                    upload.cancel.set()
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        self._spool.close()

    def _used(self, user: str) -> int:
        documents = self._assistant.documents(user=user)
        with self._wake:
            waiting = sum(upload.size_bytes for upload in self._uploads.get(user, ()) if upload.state in _ACTIVE)
            waiting += sum(upload.size_bytes for upload in self._sending.values() if upload.user == user)
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
            if upload.state == "cancelled" and not upload.given_up:  # by `close`: its turn comes at the next start
                return
            if upload.locked:
                continue
            if not upload.keep or upload.state in ("refused", "cancelled"):
                self._drop(upload)
            else:
                self._spool.drop(upload.id)

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
        noted = {note.get("path") for note in self._spool.notes()}
        for path in self._folder.rglob("*"):
            left = path.suffix.lower() not in KEPT_SUFFIXES and path.is_file() and str(path) not in noted
            if left and path.stat().st_mtime < time.time() - 86_400:
                path.unlink(missing_ok=True)

    def _drop(self, upload: Upload) -> None:
        with self._wake:
            again = any(one is not upload and one.path == upload.path and one.state in _ACTIVE
                        for one in self._uploads.get(upload.user, ()))  # fmt: skip
        if upload.path.is_relative_to(self._folder) and not again:  # the samples are read from where they are
            upload.path.unlink(missing_ok=True)
        self._spool.drop(upload.id)


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
