"""How a text words a question: which of its words it has, how near to each other, and which pairs of them side by side.

Searches for words and for meaning see a chunk as a bag: one that has the question's words here and there weighs as much
as one that says them in one breath. This looks at the few best chunks once more, in their order of words. Knows no
index and no ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .words import STOPWORDS, stem, words

_NEAR = 20
"""Words, function words aside, that count as one breath: a long sentence."""


class Wording:
    """A question, as texts are held against it.

    Args:
        question: The last thing the user said; its words side by side are the pairs that are looked for.
        terms: Stems with their weights: those of the question, and of the turns before it.
    """

    def __init__(self, question: str, terms: Mapping[str, float]) -> None:
        self._terms = terms
        self._total = sum(terms.values())
        self._pairs = {
            (one, other): terms[one] + terms[other]
            for one, other in pairwise(_sequence(question))
            if one in terms and other in terms
        }
        self._tied = sum(self._pairs.values())

    def fit(self, text: str, heading: str = "") -> float:
        """Return how well *text* words the question, 0 to 1.

        It is the mean of three shares, each by the weights of the words: of the words in the text or the heading above
        it; of the words in its best stretch of ``_NEAR``; and of the pairs. (In the spirit of the sequential dependence
        model, Metzler & Croft 2005, which mixes the same three, with shares in place of language models.)
        """
        if not self._total:
            return 0.0
        held = [(n, word) for n, word in enumerate(_sequence(text)) if word in self._terms]
        own = {word for _, word in held}.union(word for word in _sequence(heading) if word in self._terms)
        shares = [sum(self._terms[word] for word in own) / self._total, self._nearest(held) / self._total]
        if self._tied:
            side_by_side = {(word, after) for (n, word), (m, after) in pairwise(held) if m == n + 1}
            shares.append(sum(self._pairs.get(pair, 0.0) for pair in side_by_side) / self._tied)
        return sum(shares) / len(shares)

    def _nearest(self, held: Sequence[tuple[int, str]]) -> float:
        """Return the most that the words within one stretch weigh, each counted once."""
        best = weight = 0.0
        first, inside = 0, Counter[str]()
        for n, word in held:
            weight += 0.0 if inside[word] else self._terms[word]
            inside[word] += 1
            while held[first][0] <= n - _NEAR:
                gone = held[first][1]
                inside[gone] -= 1
                weight -= 0.0 if inside[gone] else self._terms[gone]
                first += 1
            best = max(best, weight)
        return best


def _sequence(text: str) -> list[str]:
    """Return the stems of a text in their order, function words left out."""
    return [stem(word) for word in words(text) if word not in STOPWORDS]
