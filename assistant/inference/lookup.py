"""Drafts found in the prompt: an answer that quotes its evidence goes on as the evidence does.

Prompt lookup decoding (Saxena 2023): find where the last tokens stood before, and propose what followed. No second
model, no training; a wrong draft costs one slightly wider step.
"""

from __future__ import annotations


class PromptLookup:
    """Proposes continuations of a text from what it already said.

    Args:
        tokens: The text so far.
        longest: Longest run of tokens that is looked up; longer runs are surer.
        shortest: Shortest run that is worth a draft.
    """

    def __init__(self, tokens: list[int], *, longest: int = 3, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._pending: list[tuple[int, ...]] = []
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Take the next token of the text."""
        # A run is entered only when its successor is known, so that the last run never finds itself.
        position = len(self._tokens)
        for run in self._pending:
            self._after[run] = position
        self._tokens.append(token)
        end = position + 1
        self._pending = [tuple(self._tokens[end - size : end]) for size in self._sizes if size <= end]

    def draft(self, most: int) -> list[int]:
        """Propose up to *most* tokens that follow the last run where it stood last before; none when it did not."""
        if most > 0:
            for run in self._pending:
                at = self._after.get(run)
                if at is not None:
                    return self._tokens[at : at + most]
        return []
