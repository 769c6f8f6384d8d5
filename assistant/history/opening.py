"""Opening the store: alone or beside others, sound or mended first."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from assistant.errors import HistoryError

from .bounds import Bounds
from .presence import Presence
from .repair import HistoryReport, finish_recovery, inspect, mend, recover
from .schema import FILE, Database

logger = logging.getLogger(__name__)


def open_store(folder: Path, bounds: Bounds) -> tuple[Database, Presence, HistoryReport | None]:
    """Open the database in *folder*; what a kill or other writers did to it is looked into first.

    Returns:
        The database, this process's lock on it, and what had to be mended, or None.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise HistoryError(f"{folder} can't be made ({exc.strerror}); choose another history_dir.") from exc
    path = folder / FILE
    presence = Presence(path)
    try:
        report = None
        if presence.alone:
            finish_recovery(path)
            if path.exists() and not presence.sealed():
                report = _inspected(path, presence)
            presence.break_seal()
        database = Database(path, bounds)
        if report is not None and not report.broken:
            with database.write() as db:
                mend(db)
        presence.share()
    except BaseException:
        presence.close(clean=False)
        raise
    return database, presence, report


def check_store(database: Database, presence: Presence, *, repair: bool) -> HistoryReport:
    """Inspect the open store thoroughly, and mend it when asked.

    Raises:
        HistoryError: It must be replaced, and other processes have it open.
    """
    report = inspect(database.path)
    if not report.problems or not repair:
        return report
    if not report.broken:
        with database.write() as db:
            mend(db)
        after = inspect(database.path)
        return HistoryReport(report.problems, False, not after.problems, after.sessions, after.turns,
                             report.damaged_turns)  # fmt: skip
    if not presence.take_alone():
        raise HistoryError(
            "The conversations are damaged and another Thimble has them open; close it (browser chat, scripts), then "
            "run this again."
        )
    try:
        with database.replaced():
            return recover(database.path, report.problems)
    finally:
        presence.share()


def _inspected(path: Path, presence: Presence) -> HistoryReport | None:
    """Inspect a store that was not closed well; replace it when its file is broken. None when it is sound."""
    report = inspect(path, deep=presence.has_seal())  # a kill leaves no seal, and SQLite's promises hold for a kill
    if not report.problems:
        return None
    report = recover(path, report.problems) if report.broken else replace(report, repaired=True)
    logger.warning("%s", report)
    return report
