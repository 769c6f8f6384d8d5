"""What SQLite, Chroma and the file system raise, mapped once to this project's errors."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assistant.errors import AssistantError, IndexStoreError, StorageFullError

_FULL = ("disk is full", "database or disk is full", "no space left", "quota exceeded", "file too large", "code: 13")
_LOCKED = ("locked", "busy")
_BROKEN = ("malformed", "not a database", "corrupt", "error finding id", "hnsw", "error loading", "deserializ")
_DENIED = ("readonly", "read-only", "permission denied", "unable to open")


@contextmanager
def mapped(folder: Path) -> Iterator[None]:
    """Run a block; what a library raises inside leaves as one of our errors."""
    try:
        yield
    except AssistantError:
        raise
    except (sqlite3.Error, OSError) as exc:
        raise explain(exc, folder) from exc
    except Exception as exc:
        if not type(exc).__module__.startswith("chromadb"):
            raise
        raise explain(exc, folder) from exc


def explain(exc: BaseException, folder: Path) -> AssistantError:
    """Return the error that says what happened to the store in *folder* and what to do about it."""
    said = str(exc).lower()
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said += " no space left"
    if isinstance(exc, OSError) and exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        said += " permission denied"
    if any(word in said for word in _FULL):
        return StorageFullError(
            f"The disk that holds the index ({folder}) is full. What was indexed before is unharmed: free some space "
            "or remove documents, then run the ingest again; it goes on where it stopped."
        )
    if any(word in said for word in _LOCKED):
        return IndexStoreError(
            f"The index in {folder} is being written by another process and stayed locked. Wait until that ingest is "
            "done, or end it, then try again."
        )
    if any(word in said for word in _DENIED):
        return IndexStoreError(f"The index in {folder} can't be opened or written ({exc}). Check who owns the folder.")
    if isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.OperationalError):
        said += " malformed" if not isinstance(exc, (sqlite3.IntegrityError, sqlite3.ProgrammingError)) else ""
    if any(word in said for word in _BROKEN):
        return IndexStoreError(
            f"The index in {folder} is damaged ({exc}). Repair it (`python -m assistant documents --repair`), or move "
            "the folder away and ingest the documents again; the documents themselves are untouched."
        )
    return IndexStoreError(f"The index in {folder} failed: {exc}.")
