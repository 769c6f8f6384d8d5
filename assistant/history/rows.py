"""Rows of the database as records. Knows columns, nothing of queries."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from assistant.errors import HistoryError
from assistant.records import Turn, TurnStatus

from .text import checksum


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation.

    Attributes:
        title: From the first question until someone gives another.
        turn_count: Turns stored, those of other branches included.
        archived_count: Turns that left for want of space.
        version: Counts changes of what the session shows; see *expected_version* of `History.begin`.
        head_turn_id: Last turn of the branch shown, or None.
        length: Turns of the branch shown, counted from its first question, those that left included.
    """

    id: str
    user: str
    title: str
    created_at: float
    updated_at: float
    turn_count: int
    archived_count: int
    version: int
    head_turn_id: int | None
    length: int


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn that was held elsewhere, to be taken into the history.

    Attributes:
        key: Names it among the turns that come with it.
        parent: Key of the turn it follows, which must come before it; None for the first.
    """

    key: str
    parent: str | None
    question: str
    answer: str
    status: TurnStatus = "done"
    created_at: float = 0.0
    finished_at: float | None = None
    error: str = ""
    feedback: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def session_from(row: sqlite3.Row) -> Session:
    """Return a session of its row (and the length of its branch)."""
    return Session(row["id"], row["user"], row["title"], row["created_at"], row["updated_at"], row["turn_count"],
                   row["archived_count"], row["version"], row["head_turn_id"], row["length"] or 0)  # fmt: skip


def turn_from(row: sqlite3.Row) -> Turn:
    """Return a turn of its row.

    Raises:
        HistoryError: The row is not as it was stored.
    """
    head = (row["user"], row["session_id"], row["parent_id"], row["question"])
    if checksum(head, row["answer"], row["details"]) != row["crc"]:
        raise HistoryError(
            f"Turn {row['id']} changed on the disk since it was stored; run "
            "`python -m assistant sessions check --repair`."
        )
    return Turn(
        row["id"], row["session_id"], row["parent_id"], row["question"], row["answer"], row["status"],
        row["created_at"], row["finished_at"], row["error"], row["feedback"],
        json.loads(row["details"]) if row["details"] else {},
    )  # fmt: skip


def as_json(details: Mapping[str, Any] | None) -> str:
    """Return details as they are stored: ASCII JSON, empty for nothing."""
    return json.dumps(details, default=_plain) if details else ""


def _plain(value: object) -> object:
    """Make JSON of what a receipt may hold: dataclasses, tuples, sets, numbers of numpy."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
