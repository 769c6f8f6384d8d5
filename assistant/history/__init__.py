"""Conversations on disk.

``store`` has the sessions and turns, ``schema`` the tables, ``writing`` the answers that still grow, ``owners`` which
process writes them, ``text`` what may be stored.
"""

from .store import FOLLOW, History, Session

__all__ = ["FOLLOW", "History", "Session"]
