"""Who has the store open, and whether it was closed well. Knows files and locks, not what is in them.

Every process that has the store open holds a shared lock on ``history.lock``; the kernel drops it when the process
dies. Whoever is alone may inspect and mend. The last to close writes a *seal* with the file's size and time; a store
that is opened without a matching seal (after a kill, or when something else wrote to the file) is inspected first.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO

from assistant.errors import HistoryError

try:
    import fcntl
except ImportError:  # Windows: no lock, so every opener thinks it is alone; inspecting does no harm
    fcntl = None  # type: ignore[assignment]

_WAIT_S = 60.0


class Presence:
    """This process's lock on the store, and the seal."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._seal = database.with_name("history.seal")
        try:
            self._file: IO[bytes] = database.with_name("history.lock").open("ab")
        except OSError as exc:
            raise HistoryError(f"{database.parent} can't be written ({exc.strerror}); check its rights.") from exc
        self.alone = self.take_alone() or not self._share()

    def take_alone(self) -> bool:
        """Try to become the only one; return whether that worked. Give it back with `share`."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(self) -> None:
        """Let others in."""
        if fcntl is not None:
            self._share()

    def sealed(self) -> bool:
        """Return whether the file is as the last process left it when it closed well."""
        try:
            return bool(json.loads(self._seal.read_text()) == self._state())
        except (OSError, ValueError):
            return False

    def has_seal(self) -> bool:
        """Return whether the file was closed well, whatever happened to it since."""
        return self._seal.exists()

    def break_seal(self) -> None:
        """From now on the file may change at any moment."""
        self._seal.unlink(missing_ok=True)

    def close(self, *, clean: bool) -> None:
        """Leave; the last to leave seals the file when all went well."""
        try:
            if self.take_alone() and clean and not self._database.with_name(self._database.name + "-wal").exists():
                self._seal.write_text(json.dumps(self._state()))
        except OSError:
            self._seal.unlink(missing_ok=True)  # a full disk, say; the next start inspects
        finally:
            self._file.close()

    def _share(self) -> bool:
        """Wait until nobody is alone in there (mending takes seconds); return whether the lock was had."""
        until = time.monotonic() + _WAIT_S
        while fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if time.monotonic() > until:
                    raise HistoryError("Another process has been mending the conversations for a minute.") from exc
                time.sleep(0.05)
            except OSError:  # a file system without locks
                return False
            else:
                return True
        return False

    def _state(self) -> list[int]:
        stat = self._database.stat()
        return [stat.st_size, stat.st_mtime_ns]
