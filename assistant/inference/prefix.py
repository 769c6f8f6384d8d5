"""Keys and values kept between turns, so that the part of a prompt that did not change is not read again.

Bounded in bytes, least recently used first to go. Knows token ids and caches, nothing of sessions' contents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .cache import BLOCK
from .reading import READ_UNIT

WORTH = READ_UNIT
"""Shortest common prefix that is worth the bookkeeping; reading goes on from a multiple of it."""


class Cache(Protocol):
    """What is kept: see ``cache.Cache``."""

    length: int
    slots: int

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    def take(self, other: Any, length: int) -> None:
        """Copy the first *length* tokens of another one of its kind."""
        ...


@dataclass(slots=True)
class _Kept:
    session_id: str | None
    tokens: list[int]
    cache: Cache


class PrefixCache:
    """Keeps caches of finished turns. All calls come from the worker thread.

    Args:
        max_bytes: Most that all of them may take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[_Kept] = []  # least recently used first

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def lease(
        self, prompt: list[int], tokens: int, session_id: str | None, new_cache: Callable[[int], Cache]
    ) -> tuple[Cache, int]:
        """Give a cache with room for *tokens* and as much of *prompt* in it as is known.

        A session's own cache, and one whose contents are mostly used again, is handed over; another session's is
        copied from and stays.

        Returns:
            The cache and how many of the prompt's tokens it holds: never all, the last one gives the logits.
        """
        best, common = None, WORTH - 1
        for kept in reversed(self._kept):
            length = min(common_length(kept.tokens, prompt), len(prompt) - 1)
            length -= length % READ_UNIT
            if length > common:
                best, common = kept, length
        if best is None:
            self._forget(session_id)
            return new_cache(tokens), 0
        if best.cache.slots >= tokens and (best.session_id == session_id or 2 * common > len(best.tokens)):
            self._kept = [kept for kept in self._kept if kept is not best]
            best.cache.length = common
            return best.cache, common
        cache = new_cache(tokens)
        cache.take(best.cache, common)
        self._forget(session_id)
        return cache, common

    def give_back(
        self, cache: Cache, tokens: list[int], session_id: str | None, new_cache: Callable[[int], Cache]
    ) -> None:
        """Keep a finished turn's cache, or as much of its head as the bound allows."""
        if len(tokens) < WORTH:
            return
        self._forget(session_id)
        if cache.nbytes > self.max_bytes:
            length = min(self.max_bytes // (cache.nbytes // cache.slots) // BLOCK * BLOCK, len(tokens))
            if length < WORTH:
                return
            head = new_cache(length)
            head.take(cache, length)
            cache, tokens = head, tokens[:length]
        while self._kept and self.nbytes + cache.nbytes > self.max_bytes:
            self._kept.pop(0)
        self._kept.append(_Kept(session_id, tokens, cache))

    def clear(self) -> int:
        """Forget everything; say how many bytes that was."""
        freed = self.nbytes
        self._kept.clear()
        return freed

    def _forget(self, session_id: str | None) -> None:
        """Drop what is kept of a session: its newer turn takes the place."""
        self._kept = [kept for kept in self._kept if kept.session_id != session_id]


def common_length(left: list[int], right: list[int]) -> int:
    """Count the tokens that two texts have in common at their beginning."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(at for at in range(limit) if left[at] != right[at])
