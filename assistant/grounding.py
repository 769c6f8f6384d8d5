"""Hold each sentence of an answer against its evidence, so that what the sources don't say is marked.

A small model words things wrongly beside a right quote. Numbers and names must stand in the evidence; content words
should; the sentence as a whole should be near some quote. No second language model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .records import Mark, Quote
from .sentences import spans
from .words import STOPWORDS, stem, stems, words

if TYPE_CHECKING:
    from .embedding import Embedder

SUPPORTED = 0.5
NAMES = ("words", "numbers", "names", "cosine")
_WEIGHTS = (4.0, 1.5, 1.5, 3.0)
_BIAS = -5.5
_CITATION = re.compile(r"\s*\[\d+\]")


def check(answer: str, quotes: Sequence[Quote], embedder: Embedder) -> tuple[Mark, ...]:
    """Return a mark for each sentence of *answer* that says something.

    Args:
        answer: The reply's text.
        quotes: What the model was given.
        embedder: Compares sentences with quotes.
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
        support = _support(features(text, quotes, [float(value) for value in row]))
        best = sorted(range(len(quotes)), key=lambda n: -_fit(text, quotes[n], float(row[n])))
        marks.append(Mark(start, end, support, support >= SUPPORTED, (quotes[best[0]].number,)))
    return tuple(marks)


def features(sentence: str, quotes: Sequence[Quote], cosines: Sequence[float]) -> tuple[float, ...]:
    """Return what the check looks at, in the order of ``NAMES``; each from 0 to 1, higher is better supported."""
    evidence = " ".join(f"{quote.text} {quote.heading}" for quote in quotes)
    known = frozenset(stem(word) for word in words(evidence))
    own = stems(sentence)
    covered = sum(word in known for word in own) / len(own) if own else 1.0
    numbers = set(re.findall(r"\d+(?:[.,]\d+)*", sentence))
    told = set(re.findall(r"\d+(?:[.,]\d+)*", evidence))
    names = {stem(word) for name in re.findall(r"(?<=\w )[A-Z]\w+", sentence) for word in words(name)} - STOPWORDS
    return (
        covered,
        sum(number in told for number in numbers) / len(numbers) if numbers else 1.0,
        sum(name in known for name in names) / len(names) if names else 1.0,
        max(cosines),
    )


def _support(values: Sequence[float]) -> float:
    total = _BIAS + sum(weight * value for weight, value in zip(_WEIGHTS, values, strict=True))
    return 1.0 / (1.0 + math.exp(-total))


def _fit(sentence: str, quote: Quote, cosine: float) -> float:
    own, there = set(stems(sentence)), set(stems(quote.text))
    return cosine + (len(own & there) / len(own) if own else 0.0)
