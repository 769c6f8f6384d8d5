"""Sessions and turns as they are stored: reads of them, each in the name of a user. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from assistant.errors import UnknownSessionError, UnknownTurnError
from assistant.records import LOCAL_USER, Turn

from .rows import Session, session_from, turn_from
from .schema import Database
from .search import TurnHit, search
from .text import checked_name, storable

_PAGE = 64  # turns fetched at once while walking a branch

_SESSIONS = "SELECT *, (SELECT depth FROM turns WHERE turns.id = head_turn_id) AS length FROM sessions"

_BRANCH = """
WITH RECURSIVE branch(id, parent_id, step) AS (
    SELECT id, parent_id, 1 FROM turns WHERE id = :start AND user = :user AND session_id = :session_id
    UNION ALL
    SELECT turns.id, turns.parent_id, branch.step + 1 FROM branch JOIN turns ON turns.id = branch.parent_id
    WHERE branch.step < :limit AND turns.user = :user AND turns.session_id = :session_id
)
SELECT turns.* FROM branch JOIN turns ON turns.id = branch.id ORDER BY branch.step
"""


class Reader:
    """What can be read. Every method that takes a *user* sees that user's sessions only."""

    _db: Database

    def session(self, session_id: str, user: str = LOCAL_USER) -> Session:
        """Return a session.

        Raises:
            UnknownSessionError: *user* has none of that id.
        """
        found = self.find_session(session_id, user)
        if found is None:
            raise unknown(session_id)
        return found

    def find_session(self, session_id: str, user: str = LOCAL_USER) -> Session | None:
        """Return a session, or None when *user* has none of that id."""
        row = self._db.one(f"{_SESSIONS} WHERE user = ? AND id = ?", key_of(session_id, user))
        return None if row is None else session_from(row)

    def sessions(self, user: str = LOCAL_USER, *, limit: int = 50, offset: int = 0) -> list[Session]:
        """Return the user's sessions, the one used last first."""
        rows = self._db.all(
            f"{_SESSIONS} WHERE user = ? ORDER BY touched DESC LIMIT ? OFFSET ?",
            (checked_name(user, "user name"), limit, offset),
        )
        return [session_from(row) for row in rows]

    def users(self) -> list[str]:
        """Return everyone who has a session. For whoever keeps the machine, not for a user."""
        return [row[0] for row in self._db.all("SELECT DISTINCT user FROM sessions ORDER BY user")]

    def turn(self, turn_id: int, session_id: str, user: str = LOCAL_USER) -> Turn:
        """Return one turn of a session.

        Raises:
            UnknownTurnError: It is not in that session of that user.
        """
        row = self._db.one("SELECT * FROM turns WHERE id = ? AND user = ? AND session_id = ?",
                           (turn_id, *key_of(session_id, user)))  # fmt: skip
        if row is None:
            raise UnknownTurnError(f"There is no turn {turn_id} in this conversation.")
        return turn_from(row)

    def turns(self, session_id: str, user: str = LOCAL_USER, *, before: int | None = None,
              limit: int = 50) -> list[Turn]:  # fmt: skip
        """Return a page of the branch shown, oldest first.

        Args:
            session_id: The session.
            user: Whose session.
            before: The page ends just before this turn; by default at the newest.
            limit: Most turns to return.
        """
        key = key_of(session_id, user)
        start = self.session(session_id, user).head_turn_id
        if before is not None:
            start = self.turn(before, session_id, user).parent_id
        return list(reversed(self._walk(start, key, limit)))

    def window(self, session_id: str, user: str = LOCAL_USER) -> Iterator[Turn]:
        """Yield the branch shown, newest turn first, reading only as far as asked."""
        key = key_of(session_id, user)
        start = self.session(session_id, user).head_turn_id
        limit = 5  # most windows end soon, and pages that are read in vain cost more than one query more
        while page := self._walk(start, key, limit):
            yield from page
            start = page[-1].parent_id
            limit = min(_PAGE, limit + len(page) // 2)

    def every_turn(self, session_id: str, user: str = LOCAL_USER) -> Iterator[Turn]:
        """Yield the turns of all branches, oldest first: parents before children."""
        key, last = key_of(session_id, user), 0
        self.session(session_id, user)
        while rows := self._db.all(
            "SELECT * FROM turns WHERE user = ? AND session_id = ? AND id > ? ORDER BY id LIMIT ?", (*key, last, _PAGE)
        ):
            yield from map(turn_from, rows)
            last = rows[-1]["id"]

    def _walk(self, start: int | None, key: tuple[str, str], limit: int) -> list[Turn]:
        if start is None or limit < 1:
            return []
        named = {"start": start, "user": key[0], "session_id": key[1], "limit": limit}
        return [turn_from(row) for row in self._db.all(_BRANCH, named)]

    def siblings(self, session_id: str, turn_id: int, user: str = LOCAL_USER) -> list[int]:
        """Return the ids of the turns that follow the same turn, itself included, oldest first."""
        key = key_of(session_id, user)
        parent = self.turn(turn_id, session_id, user).parent_id
        rows = self._db.all(
            "SELECT id FROM turns WHERE parent_id IS ? AND user = ? AND session_id = ? ORDER BY id", (parent, *key)
        )
        return [row["id"] for row in rows]

    def search(self, user: str, query: str, *, session_id: str | None = None, limit: int = 20,
               offset: int = 0) -> list[TurnHit]:  # fmt: skip
        """Return where the user's turns hold all words of *query*, best first; ``"quoted words"`` stand in a row."""
        return search(self._db, checked_name(user, "user name"), storable(query), session_id=session_id, limit=limit,
                      offset=offset)  # fmt: skip


def key_of(session_id: str, user: str) -> tuple[str, str]:
    """Return the key of a session, in the order the tables have it."""
    return checked_name(user, "user name"), checked_name(session_id)


def unknown(session_id: str) -> UnknownSessionError:
    """Return the error that says there is no such session."""
    return UnknownSessionError(f"There is no conversation {session_id[:60]!r}; `sessions` lists what there is.")
