"""Whether the evidence answers the question: a calibrated chance, from what the search knows anyway.

A logistic model over a few features; no second language model. Its weights are fitted by ``bench/calibrate.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .records import Quote, SearchResult
from .words import stems

NAMES = ("quote", "cosine", "covered", "margin")
_WEIGHTS = (3.0, 4.0, 4.0, 1.0)
_BIAS = -6.0


def answerable(question: str, result: SearchResult, quotes: Sequence[Quote]) -> float:
    """Return the chance, 0 to 1, that *quotes* answer *question*.

    Args:
        question: The last thing the user said.
        result: What the search found for it.
        quotes: The best sentences of that, best first.
    """
    if not quotes:
        return 0.0
    total = _BIAS + sum(
        weight * value for weight, value in zip(_WEIGHTS, features(question, result, quotes), strict=True)
    )
    return 1.0 / (1.0 + math.exp(-total))


def features(question: str, result: SearchResult, quotes: Sequence[Quote]) -> tuple[float, ...]:
    """Return what the judgement looks at, in the order of ``NAMES``."""
    terms = result.terms
    own = {term: terms.get(term, 1.0) for term in stems(question)}
    total = sum(own.values()) or 1.0
    shown = frozenset(stem for quote in quotes[:2] for stem in stems(f"{quote.text} {quote.heading}"))
    covered = sum(weight for term, weight in own.items() if term in shown) / total
    cosine = max((value for hit in result.hits for name, value in hit.parts.items() if name.startswith("cosine")),
                 default=0.0)  # fmt: skip
    scores = [hit.score for hit in result.hits]
    margin = scores[0] - scores[min(4, len(scores) - 1)] if scores else 0.0
    return quotes[0].score, cosine, covered, margin
