"""Conversations on disk.

``store`` has the sessions and turns, ``schema`` the tables, ``writing`` the answers that still grow, ``owners`` which
process writes them, ``text`` what may be stored, ``recalling`` what recall reads.
"""

from .recalling import RecallIndex
from .rows import NewTurn, Session
from .store import FOLLOW, History

__all__ = ["FOLLOW", "History", "NewTurn", "RecallIndex", "Session"]
