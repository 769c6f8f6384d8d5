"""The sentences that answer, word for word, with their places: shown before the first token, and the model's evidence.

Words first, vectors second: all sentences of the hits are scored by the words they share with the question, and only
the best of these are embedded. That takes milliseconds, and on questions with known answers the words alone do most
of the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .records import Hit, Quote, SearchResult
from .sentences import spans
from .words import stems

if TYPE_CHECKING:
    from .embedding import Embedder

EMBEDDED = 16
"""Sentences that are embedded; a batch or two."""

_COVERAGE, _AROUND, _RANK = 0.5, 0.3, 0.5
"""Weights beside the sentence's cosine (1): the share of the question's words, by rarity, in the sentence and in its
chunk; and the chunk's score in the fused ranking."""

_BEST = 1 + _COVERAGE + _AROUND + _RANK
_HOLLOW = 0.6  # what a heading or a question keeps of its score; it passes the score on to what follows
_PASSED_ON = 0.95
_LONGEST = 600  # characters; what has no sentence ends for longer is cut at a space
_SAME = 0.8  # share of words in common (Jaccard) from which two sentences say the same


def select(
    question: str,
    result: SearchResult,
    embedder: Embedder,
    *,
    max_quotes: int = 4,
    budget_tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> tuple[Quote, ...]:
    """Choose the sentences that answer best.

    Args:
        question: The last thing the user said.
        result: What the search found for it.
        embedder: Compares sentences with the queries.
        max_quotes: At most so many.
        budget_tokens: All quotes together take no more; one that does not fit makes room for the next. None: no limit.
        count: The token counter for *budget_tokens*.

    Returns:
        Quotes, best first, numbered from 1. ``score`` is from 0 to 1.
    """
    found = [candidate for hit in result.hits for candidate in _sentences(hit, result.terms)]
    if not found:
        return ()
    found.sort(key=lambda candidate: -candidate.by_words)
    found = found[: max(EMBEDDED, 2 * max_quotes)]
    for candidate, cosine in zip(found, _cosines(question, result, found, embedder), strict=True):
        candidate.score = max(0.0, cosine) + candidate.by_words
    _pass_on(found)
    found.sort(key=lambda candidate: -candidate.score)
    quotes: list[Quote] = []
    said: list[frozenset[str]] = []
    left = budget_tokens
    for candidate in found:
        if len(quotes) == max_quotes:
            break
        if any(_overlap(candidate.stems, other) >= _SAME for other in said):
            continue
        if left is not None and count is not None:
            cost = count(candidate.text)
            if cost > left:
                continue
            left -= cost
        said.append(candidate.stems)
        quotes.append(candidate.quote(len(quotes) + 1))
    return tuple(quotes)


@dataclass(eq=False, slots=True)
class _Candidate:
    hit: Hit
    start: int  # in the chunk's text
    end: int
    order: int  # place among the sentences of its hit
    stems: frozenset[str]
    by_words: float
    score: float = 0.0

    @property
    def text(self) -> str:
        return self.hit.chunk.text[self.start : self.end]

    @property
    def hollow(self) -> bool:
        """Whether it asks or announces rather than says: a question, or a heading."""
        text = self.text
        if text.endswith("?") or text.startswith("#") or text == self.hit.chunk.heading.rpartition(" > ")[2]:
            return True
        return len(text.split()) < 5 and not re.search(r"\d|[.!:|=–—-]", text)

    def quote(self, number: int) -> Quote:
        chunk = self.hit.chunk
        row, line = chunk.place_at(self.start)
        return Quote(
            number=number, text=self.text, name=self.hit.document.name, score=min(1.0, self.score / _BEST),
            document_id=chunk.document_id, chunk_id=chunk.id, start=chunk.start + self.start,
            end=chunk.start + self.end, page=chunk.page, line=line, row=row, heading=chunk.heading, context=chunk.text,
        )  # fmt: skip


def _sentences(hit: Hit, terms: Mapping[str, float]) -> Iterator[_Candidate]:
    text = hit.chunk.text
    around = coverage(frozenset(stems(text)) | frozenset(stems(hit.chunk.heading)), terms)
    for order, (start, end) in enumerate(piece for span in spans(text) for piece in _pieces(text, *span)):
        words = frozenset(stems(text[start:end]))
        score = _COVERAGE * coverage(words, terms) + _AROUND * around + _RANK * min(1.0, hit.score)
        yield _Candidate(hit, start, end, order, words, score)


def coverage(words: frozenset[str], terms: Mapping[str, float]) -> float:
    """Return the share of *terms*, by weight, that is among *words*."""
    total = sum(terms.values())
    return sum(weight for term, weight in terms.items() if term in words) / total if total else 0.0


def _cosines(question: str, result: SearchResult, found: Sequence[_Candidate], embedder: Embedder) -> list[float]:
    """Return how near each sentence is to the queries: the mean over them by weight."""
    queries = {query.text: query.weight for query in result.queries} or {question: 1.0}
    vectors = embedder.embed([*queries, *(candidate.text for candidate in found)])
    total = sum(queries.values())
    asked = sum(vectors[n] * (weight / total) for n, weight in enumerate(queries.values()))
    return [float(cosine) for cosine in vectors[len(queries) :] @ asked]


def _pass_on(found: Sequence[_Candidate]) -> None:
    """Let a heading or a question that fits well speak for the sentence after it."""
    places = {(candidate.hit.chunk.id, candidate.order): candidate for candidate in found}
    for candidate in sorted(found, key=lambda candidate: candidate.order):
        if not candidate.hollow:
            continue
        following = places.get((candidate.hit.chunk.id, candidate.order + 1))
        if following is not None:
            following.score = max(following.score, _PASSED_ON * candidate.score)
        candidate.score *= _HOLLOW


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a span that is too long to quote at spaces."""
    while end - start > _LONGEST:
        cut = max(text.rfind(" ", start, start + _LONGEST), text.rfind("\n", start, start + _LONGEST))
        cut = cut if cut > start + _LONGEST // 2 else start + _LONGEST
        yield start, cut
        start = cut + (cut < end and text[cut].isspace())
    if start < end:
        yield start, end


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)
