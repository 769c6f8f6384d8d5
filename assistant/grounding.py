"""Hold each sentence of an answer against its evidence, so that what the sources don't say is marked.

A small model words things wrongly beside a right quote. Numbers and names must stand in the evidence; content words
should; the sentence as a whole should be near some quote. No second language model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from .records import Mark, Quote
from .sentences import spans
from .words import STOPWORDS, stem, stems, words

if TYPE_CHECKING:
    from .embedding import Embedder

SUPPORTED = 0.5
NAMES = ("together", "cosine", "numbers", "names")
_WEIGHTS = (2.73, 3.25, 1.0, 1.0)
_BIAS = -5.0
"""The first two weights are fitted (logistic, each label weighing the same) on 256 replies of the packaged model to
XQuAD questions, right where they hold the gold answer. What a number or name that no quote has costs is set, not
fitted: a reply can hold the answer and a wrong year beside it, and that year must be marked all the same. So is the
bias: a mark on a sentence that is right costs more trust than one that is missing."""

_ABOUT_ITSELF = frozenset(stems(
    "according answer ask based document evidence information mention passage provided question quote source state text"
))  # fmt: skip
"""Words by which a reply speaks of itself ("The answer to the question is: 1999"): they claim nothing."""

_CITATION = re.compile(r"\s*\[\d+\]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[\w,;] )[A-Z]\w+")


def check(answer: str, quotes: Sequence[Quote], embedder: Embedder, *, question: str = "") -> tuple[Mark, ...]:
    """Return a mark for each sentence of *answer* that says something.

    Args:
        answer: The reply's text.
        quotes: What the model was given.
        embedder: Compares sentences with quotes.
        question: What was asked. A reply repeats much of it, and that proves nothing: what counts is what it adds.
    """
    sentences = [(start, end) for start, end in spans(answer) if stems(_CITATION.sub("", answer[start:end]))]
    if not sentences:
        return ()
    if not quotes:
        return tuple(Mark(start, end, 0.0, False) for start, end in sentences)
    said = [_CITATION.sub("", answer[start:end]) for start, end in sentences]
    vectors = embedder.embed([*said, *(quote.text for quote in quotes)])
    cosines = vectors[: len(said)] @ vectors[len(said) :].T
    marks = []
    for (start, end), text, row in zip(sentences, said, cosines, strict=True):
        support = _support(features(text, quotes, [float(value) for value in row], question))
        best = max(range(len(quotes)), key=lambda n: _fit(text, quotes[n], float(row[n])))
        marks.append(Mark(start, end, support, support >= SUPPORTED, (quotes[best].number,)))
    return tuple(marks)


def features(sentence: str, quotes: Sequence[Quote], cosines: Sequence[float], question: str) -> tuple[float, ...]:
    """Return what the check looks at, in the order of ``NAMES``; each from 0 to 1, higher is better supported.

    They are: the best share, over quotes, of the words it adds to the question times that of the question's words, so
    that one quote must tie them together; the cosine with the nearest quote; and whether every number, and every name,
    that it adds is in the evidence.
    """
    each = [_known(f"{quote.text} {quote.heading}") for quote in quotes]
    known = frozenset().union(*each)
    own, asked = stems(sentence), frozenset(stems(question))
    added = [word for word in own if word not in _known(question) and word not in _ABOUT_ITSELF]
    numbers = set(_NUMBER.findall(sentence)) - set(_NUMBER.findall(question))
    told = {number for quote in quotes for number in _NUMBER.findall(f"{quote.text} {quote.heading}")}
    names = [stem(word) for name in _NAME.findall(sentence) for word in words(name) if word not in STOPWORDS]
    return (
        max(_share(added, one) * (_share(asked, one) if asked else 1.0) for one in each),
        max(cosines),
        float(numbers <= told),
        float(known.issuperset(name for name in names if name in added)),
    )


def _known(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words(text))


def _share(some: Collection[str], known: frozenset[str]) -> float:
    """Return the share of *some* that is in *known*; of nothing, none."""
    return sum(word in known for word in some) / len(some) if some else 0.0


def _support(values: Sequence[float]) -> float:
    total = _BIAS + sum(weight * value for weight, value in zip(_WEIGHTS, values, strict=True))
    return 1.0 / (1.0 + math.exp(-total))


def _fit(sentence: str, quote: Quote, cosine: float) -> float:
    own, there = set(stems(sentence)), set(stems(quote.text))
    return cosine + (len(own & there) / len(own) if own else 0.0)
