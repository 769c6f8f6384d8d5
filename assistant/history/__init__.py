"""Conversations on disk.

``store`` writes the sessions and turns, ``reading`` reads them, ``schema`` has the tables and connections, ``opening``
how a store is opened and checked, ``presence`` who has it open, ``writing`` the answers that still grow, ``owners``
which process writes them, ``bounds`` and ``archive`` what happens when the disk's share is used up, ``repair`` and
``carving`` what happens after damage, ``search`` the full text, ``recalling`` what recall reads, ``rows`` and ``text``
what may be stored.
"""

from .recalling import RecallIndex
from .repair import HistoryReport
from .rows import NewTurn, Session
from .search import TurnHit
from .store import FOLLOW, History

__all__ = ["FOLLOW", "History", "HistoryReport", "NewTurn", "RecallIndex", "Session", "TurnHit"]
