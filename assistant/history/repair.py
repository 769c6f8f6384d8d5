"""Is the store sound, and what to do when it is not.

A damaged file is never written to: it is set aside under another name, and its rows are read into a new one. Each turn
carries a checksum, so that a row read back is known to be what was stored.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from assistant.errors import HistoryError
from assistant.records import LOCAL_USER, TurnStatus

from .bounds import rebuild_search
from .carving import Row, rows
from .schema import connect, is_damage, mapped, prepare, refuse_newer
from .text import checksum, title_from

CHANGED = "Part of this turn changed on the disk after it was stored; what could be read was kept."
_SUFFIXES = ("", "-wal", "-shm")
_TURN_COLUMNS = ("id", "user", "session_id", "parent_id", "depth", "status", "owner", "indexed", "created_at",
                 "finished_at", "feedback", "crc", "question", "answer", "error", "details")  # fmt: skip
_SESSION_COLUMNS = ("user", "id", "title", "titled", "created_at", "updated_at", "touched", "turn_count",
                    "archived_count", "version", "head_turn_id")  # fmt: skip
_STATUSES = frozenset(get_args(TurnStatus))


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """What a check found and did.

    Attributes:
        problems: What was wrong, in words for people; empty when all is well.
        broken: Whether the file itself is damaged, so that it must be replaced.
        repaired: Whether the problems are mended now.
        sessions: How many there are.
        turns: How many there are.
        damaged_turns: Turns of which part changed on the disk.
        lost_turns: Turns known to have been there that could not be read.
        set_aside: Where the damaged file is now.
    """

    problems: tuple[str, ...] = ()
    broken: bool = False
    repaired: bool = False
    sessions: int = 0
    turns: int = 0
    damaged_turns: int = 0
    lost_turns: int = 0
    set_aside: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether the store is sound now."""
        return not self.problems or self.repaired

    def __str__(self) -> str:
        """Say it in a few sentences."""
        held = f"{self.sessions} conversations with {self.turns} turns"
        if not self.problems:
            return f"The conversations are sound: {held}."
        found = "; ".join(self.problems)
        if not self.repaired:
            return f"The conversations are damaged: {found}. Run `python -m assistant sessions check --repair`."
        text = f"The conversations were damaged ({found}) and are mended: {held}"
        if self.damaged_turns:
            text += f", {self.damaged_turns} of them damaged and marked so"
        if self.broken:
            text += f", {self.lost_turns or 'no'} turns known to be lost"
        return text + (f". The damaged file is kept as {self.set_aside.name}." if self.set_aside else ".")


def inspect(path: Path, *, deep: bool = True) -> HistoryReport:
    """Look for damage; change nothing.

    Args:
        path: The database.
        deep: Compare the full-text index with the turns word by word; otherwise only look whether it is sound itself.
    """
    try:
        db = connect(path)
    except sqlite3.DatabaseError as exc:
        if is_damage(exc):
            return HistoryReport((f"the file can't be opened: {exc}",), broken=True)
        with mapped(path):
            raise
    try:
        return _inspect(db, deep=deep)
    except sqlite3.DatabaseError as exc:
        if is_damage(exc) or (isinstance(exc, sqlite3.OperationalError) and "no such" in str(exc)):
            return HistoryReport((f"the file can't be read: {exc}",), broken=True)
        with mapped(path):
            raise
    finally:
        db.close()


def _inspect(db: sqlite3.Connection, *, deep: bool) -> HistoryReport:
    broken = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
    if broken:
        return HistoryReport((" ".join(broken[0].split())[:150],), broken=True)
    refuse_newer(db)
    if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return HistoryReport()  # a new file
    problems = []
    changed = _changed(db)
    if changed:
        problems.append(f"{len(changed)} turns changed on the disk")
    for sql, text in _CONSISTENT.items():
        (count,) = db.execute(sql).fetchone()
        if count:
            problems.append(f"{count} {text}")
    try:
        db.execute("INSERT INTO turns_text(turns_text, rank) VALUES ('integrity-check', ?)", (int(deep),))
    except sqlite3.DatabaseError as exc:
        if not is_damage(exc):
            raise
        problems.append("the full-text index does not match the turns")
    sessions, turns = _counts(db)
    return HistoryReport(tuple(problems), sessions=sessions, turns=turns, damaged_turns=len(changed))


_CONSISTENT = {
    "SELECT count(*) FROM (SELECT DISTINCT user, session_id FROM turns EXCEPT SELECT user, id FROM sessions)":
        "conversations have turns but no entry in the list",
    "SELECT count(*) FROM sessions s WHERE turn_count !="
    " (SELECT count(*) FROM turns WHERE turns.user = s.user AND session_id = s.id)":
        "conversations count their turns wrongly",
    "SELECT count(*) FROM sessions s WHERE head_turn_id IS NOT NULL AND NOT EXISTS"
    " (SELECT 1 FROM turns WHERE turns.id = head_turn_id AND turns.user = s.user AND session_id = s.id)":
        "conversations end at a turn that is not there",
    "SELECT count(*) FROM turns WHERE parent_id >= id":
        "turns follow a later turn",
    "SELECT count(*) FROM turns t JOIN turns p ON p.id = t.parent_id"
    " WHERE t.user != p.user OR t.session_id != p.session_id":
        "turns follow a turn of another conversation",
    "SELECT count(*) FROM turns WHERE indexed != (status != 'running')":
        "turns are missing in the full-text index, or there too early",
}  # fmt: skip


def mend(db: sqlite3.Connection) -> None:
    """Repair, inside a transaction, what is wrong while the file itself is sound."""
    for row in _changed(db):
        details = row["details"] if _is_json(row["details"]) else ""
        db.execute("UPDATE turns SET error = ?, details = ? WHERE id = ?", (CHANGED, details, row["id"]))
    db.execute("UPDATE turns SET parent_id = NULL WHERE parent_id >= id")
    for (turn_id,) in db.execute(
        "SELECT t.id FROM turns t JOIN turns p ON p.id = t.parent_id"
        " WHERE t.user != p.user OR t.session_id != p.session_id"
    ).fetchall():
        db.execute("UPDATE turns SET parent_id = NULL WHERE id = ?", (turn_id,))
    _complete_sessions(db)
    db.execute("UPDATE turns SET indexed = (status != 'running') WHERE indexed != (status != 'running')")
    _sign(db)
    rebuild_search(db)


def recover(path: Path, problems: tuple[str, ...]) -> HistoryReport:
    """Set a damaged file aside and put a new one in its place, with every turn that can be read.

    Whatever happens meanwhile, the damaged file stays whole, and a half-made new one is not taken for the store.
    """
    work = path.with_name("recovering")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        copy, fresh = work / path.name, work / "new.sqlite3"
        for suffix in _SUFFIXES[:2]:
            if path.with_name(path.name + suffix).exists():
                shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
        report = replace(_salvage(copy, fresh), problems=problems)
        ready = path.with_name("history.recovered.sqlite3")
        fresh.replace(ready)
    except OSError as exc:
        raise HistoryError(
            f"{path.name} is damaged ({'; '.join(problems)}) and could not be recovered now ({exc.strerror}); it was "
            "left as it is. Free some disk space, then start again."
        ) from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    aside = _aside(path)
    for suffix in _SUFFIXES:
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(aside.with_name(aside.name + suffix))
    finish_recovery(path)
    return replace(report, set_aside=aside)


def finish_recovery(path: Path) -> None:
    """Put a recovered file in its place, also when the process died just before that."""
    ready = path.with_name("history.recovered.sqlite3")
    if ready.exists() and not path.exists():
        ready.rename(path)


def _aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        name = path.with_name(f"history.damaged-{stamp}-{number}.sqlite3")
        if not name.exists():
            return name
    raise HistoryError(f"There is no free name for the damaged {path.name}; clear {path.parent}.")


def _salvage(copy: Path, fresh: Path) -> HistoryReport:
    """Read all rows of *copy* into a new database *fresh*."""
    db = connect(fresh)
    try:
        db.execute("PRAGMA synchronous = OFF")  # synced as a whole at the end
        db.execute("BEGIN IMMEDIATE")
        prepare(db)
        best: dict[int, tuple[bool, int]] = {}
        known: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows(copy):
            turn = _as_turn(row)
            if turn is not None:
                _keep_turn(db, turn, best, whole=row.whole)
                continue
            session = _as_session(row)
            if session is not None:
                known[session["user"], session["id"]] = session
        for session in known.values():
            db.execute(
                "INSERT OR IGNORE INTO sessions(user, id, title, titled, created_at, updated_at, touched,"
                " archived_count, version, head_turn_id) VALUES (:user, :id, :title, :titled, :created_at, :updated_at,"
                " (SELECT coalesce(max(touched), 0) + 1 FROM sessions), :archived_count, :version, :head_turn_id)",
                session,
            )
        _join_broken_branches(db)
        _sign(db)
        _complete_sessions(db)
        lost = 0
        for (user, session_id), session in known.items():
            (found,) = db.execute(
                "SELECT count(*) FROM turns WHERE user = ? AND session_id = ?", (user, session_id)
            ).fetchone()
            lost += max(0, session["turn_count"] - found)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sessions, turns = _counts(db)
    finally:
        db.close()
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    damaged = sum(not good for good, _ in best.values())
    return HistoryReport((), True, True, sessions, turns, damaged, lost)


def _keep_turn(db: sqlite3.Connection, turn: dict[str, Any], best: dict[int, tuple[bool, int]], *, whole: bool) -> None:
    """Store a turn that was read, unless a better copy of it was read before."""
    if turn["parent_id"] is not None and not 0 < turn["parent_id"] < turn["id"]:
        turn["parent_id"] = None
    head = (turn["user"], turn["session_id"], turn["parent_id"], turn["question"])
    good = whole and checksum(head, turn["answer"], turn["details"]) == turn["crc"]
    rank = (good, len(turn["answer"]) + len(turn["details"]))
    if turn["id"] in best and best[turn["id"]] >= rank:
        return
    best[turn["id"]] = rank
    if not good:
        turn["error"], turn["details"] = CHANGED, ""
        turn["crc"] = checksum(head, turn["answer"], "")
    if turn["status"] == "running":
        turn["status"] = "interrupted"
    turn["owner"], turn["indexed"] = "", 1
    db.execute("DELETE FROM turns WHERE id = ?", (turn["id"],))
    names = ", ".join(_TURN_COLUMNS)
    db.execute(f"INSERT INTO turns({names}) VALUES ({', '.join(':' + name for name in _TURN_COLUMNS)})", turn)


def _as_turn(row: Row) -> dict[str, Any] | None:
    """Return a row as a turn, or None when it is something else."""
    values: list[Any] = list(row.values)
    if not row.whole:  # its end is lost; what there is may still be a question
        values += [None] * (len(_TURN_COLUMNS) - len(values))
    if len(values) != len(_TURN_COLUMNS) or row.rowid < 1:
        return None
    turn = dict(zip(_TURN_COLUMNS, values, strict=True))
    texts = ("user", "session_id", "question")
    if not all(isinstance(turn[name], str) for name in texts) or turn["status"] not in _STATUSES:
        return None
    turn["id"] = row.rowid
    for name in ("owner", "answer", "error", "details"):
        turn[name] = turn[name] if isinstance(turn[name], str) else ""
    for name, kind, default in (("depth", int, 1), ("feedback", int, 0), ("crc", int, -1),
                                ("created_at", (int, float), 0.0)):  # fmt: skip
        turn[name] = turn[name] if isinstance(turn[name], kind) else default
    for name, kind in (("parent_id", int), ("finished_at", (int, float))):
        turn[name] = turn[name] if isinstance(turn[name], kind) else None
    return turn


def _as_session(row: Row) -> dict[str, Any] | None:
    if not row.whole or len(row.values) != len(_SESSION_COLUMNS):
        return None
    session = dict(zip(_SESSION_COLUMNS, row.values, strict=True))
    numbers = ("titled", "touched", "turn_count", "archived_count", "version")
    if not all(isinstance(session[name], str) for name in ("user", "id", "title")) or not all(
        isinstance(session[name], int) for name in numbers
    ):
        return None
    for name in ("created_at", "updated_at"):
        session[name] = session[name] if isinstance(session[name], (int, float)) else 0.0
    return session


def _complete_sessions(db: sqlite3.Connection) -> None:
    """Give every turn its session, and every session its count and its head."""
    missing = db.execute(
        "SELECT user, session_id, min(id) AS first, min(created_at) AS created, max(created_at) AS updated FROM turns t"
        " WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.user = t.user AND s.id = t.session_id)"
        " GROUP BY user, session_id ORDER BY max(id)"
    ).fetchall()
    for row in missing:
        (question,) = db.execute("SELECT question FROM turns WHERE id = ?", (row["first"],)).fetchone()
        db.execute(
            "INSERT INTO sessions(user, id, title, created_at, updated_at, touched)"
            " VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(touched), 0) + 1 FROM sessions))",
            (row["user"] or LOCAL_USER, row["session_id"], title_from(question), row["created"], row["updated"]),
        )
    db.execute(
        "UPDATE sessions SET turn_count = (SELECT count(*) FROM turns WHERE turns.user = sessions.user"
        " AND session_id = sessions.id)"
    )
    db.execute(
        "UPDATE sessions SET version = version + 1, head_turn_id = (SELECT max(id) FROM turns WHERE"
        " turns.user = sessions.user AND session_id = sessions.id) WHERE head_turn_id IS NULL AND turn_count > 0"
        " AND version = 0 OR head_turn_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM turns WHERE id = head_turn_id"
        " AND turns.user = sessions.user AND session_id = sessions.id)"
    )


def _join_broken_branches(db: sqlite3.Connection) -> None:
    """Let a turn whose parent is lost follow the nearest turn before that, so that a branch stays one."""
    db.execute(
        "UPDATE turns SET parent_id = (SELECT max(older.id) FROM turns older WHERE older.user = turns.user"
        " AND older.session_id = turns.session_id AND older.id < turns.parent_id)"
        " WHERE parent_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM turns p WHERE p.id = turns.parent_id"
        " AND p.user = turns.user AND p.session_id = turns.session_id)"
    )


def _sign(db: sqlite3.Connection) -> None:
    """Make checksums right again after something they cover was mended."""
    for row in _changed(db):
        head = (row["user"], row["session_id"], row["parent_id"], row["question"])
        crc = checksum(head, row["answer"], row["details"])
        db.execute("UPDATE turns SET crc = ? WHERE id = ?", (crc, row["id"]))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except ValueError:
        return False


def _changed(db: sqlite3.Connection) -> list[sqlite3.Row]:
    """Return the turns whose checksum is wrong."""
    return [
        row
        for row in _each(db, "SELECT * FROM turns WHERE id > ? ORDER BY id LIMIT 500")
        if checksum((row["user"], row["session_id"], row["parent_id"], row["question"]), row["answer"], row["details"])
        != row["crc"]
    ]


def _each(db: sqlite3.Connection, sql: str) -> Iterator[sqlite3.Row]:
    last = 0
    while found := db.execute(sql, (last,)).fetchall():
        yield from found
        last = found[-1]["id"]


def _counts(db: sqlite3.Connection) -> tuple[int, int]:
    (sessions,) = db.execute("SELECT count(*) FROM sessions").fetchone()
    (turns,) = db.execute("SELECT count(*) FROM turns").fetchone()
    return sessions, turns
