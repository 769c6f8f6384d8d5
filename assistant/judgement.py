"""Whether the evidence answers the question: a calibrated chance, from what the search knows anyway.

A logistic model over a few features; no second language model. Its weights are fitted by ``bench/calibrate.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .records import Quote, SearchResult
from .words import stems

NAMES = ("quote", "cosine", "covered", "number")
_WEIGHTS = (7.4, 4.64, 0.74, 0.79)
_BIAS = -7.51
_COUNTS = re.compile(
    r"\b(when|how (?:many|much|long|old|far|often|tall|big|large|high|fast|deep|wide)"
    r"|(?:what|which) (?:year|date|time|percentage|number|age))\b", re.IGNORECASE
)  # fmt: skip
_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand"
    r"|million|billion|half|once|twice|daily|weekly|monthly|yearly)\b", re.IGNORECASE
)  # fmt: skip


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
    """Return what the judgement looks at, in the order of ``NAMES``, each from 0 to 1.

    They are: the best quote's score; the highest cosine between a chunk and one of the queries; the share of the
    question's words, by rarity, in the chunk around the best quote; and, where a number or date is asked for, whether
    one of the first two quotes has any.
    """
    own = {stem: result.terms.get(stem, 1.0) for stem in stems(question)}
    total = sum(own.values())
    around = frozenset(stems(f"{quotes[0].context} {quotes[0].heading}"))
    covered = sum(weight for stem, weight in own.items() if stem in around) / total if total else 0.0
    cosine = max(
        (value for hit in result.hits for part, value in hit.parts.items() if part.startswith("cosine")), default=0.0
    )
    number = not _COUNTS.search(question) or any(_NUMBER.search(quote.text) for quote in quotes[:2])
    return quotes[0].score, cosine, covered, float(number)
