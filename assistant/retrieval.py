"""Search: a question and the turns before it become several queries, dense and lexical, fused into one ranking.

No model is asked to rewrite a follow-up. "And for managers?" is searched as it stands and together with what was asked
before; what several of these searches find near their top wins. Knows nothing about quotes, prompts or answers.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .records import Chunk, DocumentInfo, Hit, Scope, SearchedQuery, SearchResult, Turn
from .words import content_words, stem, stems

if TYPE_CHECKING:
    from .embedding import Embedder
    from .index import Index

logger = logging.getLogger(__name__)

RANK_CONSTANT = 10
"""k of reciprocal-rank fusion, weight / (k + rank). Cormack, Clarke & Büttcher (2009) took 60 for fusing many systems
to a depth of 1,000; with a few arms and a handful of results wanted, the first ranks must count for more."""

DEPTH = 60
"""Results taken from each arm."""

_QUESTION, _BEFORE, _RECENT, _FIRST = 1.0, 0.4, 0.3, 0.4
_ALONE = 0.5
_AGREE_DEPTH = 5
"""How much earlier turns lose where the question stands alone. It does where its two arms agree: meaning and words
find the same chunks for a whole question, and for "And for managers?" they seldom do. A change of subject is a question
that stands alone. ``_ALONE`` is the share that full agreement in the first ``_AGREE_DEPTH`` takes."""
_RECENT_TURNS = 3
_LONGEST_QUERY = 1_000  # characters of earlier turns in one query
_MOST_TERMS = 24  # of one lexical query
_LONGEST_HIT = 3_000  # characters of merged neighbours
_DUPLICATE = 0.9  # share of words in common (Jaccard) from which two chunks say the same


def plan(question: str, turns: Sequence[Turn] = ()) -> tuple[SearchedQuery, ...]:
    """Decide what to search for.

    Args:
        question: The last thing the user said.
        turns: The turns before it, oldest first.

    Returns:
        Queries with their weights: the question itself, and the question after the turn before it, the last three
        and the first one. Queries that say the same are one, with the weights added.
    """
    asked = [turn.question for turn in turns]
    queries = [SearchedQuery(question, _QUESTION, "question")]
    if asked:
        queries.append(SearchedQuery(_joined(asked[-1:], question), _BEFORE, "with the turn before"))
        queries.append(SearchedQuery(_joined(asked[-_RECENT_TURNS:], question), _RECENT, "with the last turns"))
        queries.append(SearchedQuery(_joined(asked[:1], question), _FIRST, "with the first turn"))
    merged: dict[str, SearchedQuery] = {}
    for query in queries:
        known = merged.get(query.text)
        merged[query.text] = replace(known, weight=known.weight + query.weight) if known else query
    return tuple(merged.values())


def match_expression(text: str) -> str:
    """Write an FTS5 expression that finds any of the content words of *text*."""
    return " OR ".join(f'"{word}"' for word in content_words(text)[-_MOST_TERMS:])


class Retrieval:
    """Search over an index. Any thread may call."""

    def __init__(self, index: Index, embedder: Embedder) -> None:
        self._index = index
        self._embedder = embedder
        self._beside = ThreadPoolExecutor(1, "lexical")
        self._frequencies: dict[str, int] = {}  # of words, at the index's generation _counted
        self._counted, self._total = -1, 0

    def close(self) -> None:
        """End the thread that searches words beside the embedding."""
        self._beside.shutdown()

    def warm(self) -> None:
        """Load what the first search needs: the embedder and the vectors."""
        self._index.dense_many(self._embedder.embed(["warm"]), 1, Scope())

    def search(
        self,
        question: str,
        *,
        turns: Sequence[Turn] = (),
        top_k: int = 8,
        scope: Scope | None = None,
        document_ids: Sequence[str] | None = None,
    ) -> SearchResult:
        """Find the chunks that speak of what was asked.

        Args:
            question: The last thing the user said.
            turns: The turns before it, oldest first.
            top_k: At most so many hits.
            scope: Whose documents.
            document_ids: Only these documents; None is all that *scope* may see.

        Returns:
            Hits, best first, each with what every arm said of it, and the queries.

        Raises:
            IndexStoreError: The index can't be read.
        """
        scope = scope or Scope()
        queries = plan(question, turns)
        depth = max(DEPTH, 2 * top_k)
        # Words are searched while the queries are embedded: SQLite and torch both let go of the interpreter's lock.
        words = self._beside.submit(self._lexical, queries, depth, scope, document_ids)
        try:
            vectors = self._embedder.embed([query.text for query in queries])
            dense = self._index.dense_many(vectors, depth, scope, document_ids)
        finally:
            lexical = words.result()
        queries = _weighed(queries, dense, lexical)
        ranking = _fuse(queries, dense, lexical)
        return SearchResult(self._hits(ranking, top_k), queries, self._terms(queries))

    def _terms(self, queries: Sequence[SearchedQuery]) -> dict[str, float]:
        """Weigh the words of the queries: rare ones more, those that only earlier turns had less.

        The weight is BM25's inverse document frequency, ln(1 + (N - n + 0.5) / (n + 0.5)) (Robertson & Zaragoza 2009).
        """
        generation = self._index.generation
        if generation != self._counted:
            self._frequencies.clear()
            self._counted, self._total = generation, self._index.chunk_count()
        weights: dict[str, float] = {}
        for query in queries:
            for word in content_words(query.text)[-_MOST_TERMS:]:
                name = stem(word)
                if name in weights:
                    continue
                if word not in self._frequencies:
                    self._frequencies[word] = self._index.frequency(word)
                count = min(self._frequencies[word], self._total)
                weights[name] = query.weight * math.log(1 + (self._total - count + 0.5) / (count + 0.5))
        return weights

    def _lexical(self, queries: Sequence[SearchedQuery], depth: int, scope: Scope,
                 document_ids: Sequence[str] | None) -> list[list[tuple[str, float]]]:  # fmt: skip
        return [self._index.lexical(match_expression(query.text), depth, scope, document_ids) for query in queries]

    def _hits(self, ranking: Sequence[_Ranked], top_k: int) -> tuple[Hit, ...]:
        """Turn the top of a ranking into hits: neighbours merged, what says the same left out."""
        best = ranking[: 4 * top_k]
        chunks = {chunk.id: chunk for chunk in self._index.chunks([ranked.chunk_id for ranked in best])}
        documents: dict[str, DocumentInfo | None] = {}
        hits: list[Hit] = []
        seen: list[frozenset[str]] = []
        for ranked in best:
            chunk = chunks.get(ranked.chunk_id)
            if chunk is None:  # removed since, or its words came before its row was gone
                continue
            if chunk.document_id not in documents:
                documents[chunk.document_id] = self._index.get_document(chunk.document_id)
            document = documents[chunk.document_id]
            if document is None:
                continue
            near = next((n for n, hit in enumerate(hits) if _adjoin(hit.chunk, chunk)), None)
            if near is not None:
                hits[near] = replace(hits[near], chunk=_merged(hits[near].chunk, chunk))
                continue
            if len(hits) == top_k:
                break
            said = frozenset(stems(chunk.text))
            if any(_overlap(said, other) >= _DUPLICATE for other in seen):
                continue
            seen.append(said)
            hits.append(Hit(chunk, document, ranked.score, ranked.parts))
        return tuple(hits)


@dataclass(frozen=True, slots=True)
class _Ranked:
    chunk_id: str
    score: float
    parts: dict[str, float]


_Arm = Sequence[Sequence[tuple[str, float]]]


def _fuse(queries: Sequence[SearchedQuery], dense: _Arm, lexical: _Arm) -> list[_Ranked]:
    """Fuse rankings by weighted reciprocal rank (Cormack, Clarke & Büttcher 2009); 1 is first everywhere."""
    scores: dict[str, float] = defaultdict(float)
    parts: dict[str, dict[str, float]] = defaultdict(dict)
    most = 2 * sum(query.weight for query in queries) / (RANK_CONSTANT + 1)
    for query, *arms in zip(queries, dense, lexical, strict=True):
        for arm, found in zip(("cosine", "BM25"), arms, strict=True):
            for rank, (name, value) in enumerate(found, 1):
                scores[name] += query.weight / (RANK_CONSTANT + rank) / most
                parts[name][f"{arm}, {query.origin}"] = value
    order = sorted(scores, key=lambda name: (-scores[name], name))
    return [_Ranked(name, scores[name], parts[name]) for name in order]


def _weighed(queries: Sequence[SearchedQuery], dense: _Arm, lexical: _Arm) -> tuple[SearchedQuery, ...]:
    """Take weight from the queries with earlier turns as far as the question stands alone."""
    if len(queries) == 1:
        return tuple(queries)
    one, other = ({name for name, _ in arm[0][:_AGREE_DEPTH]} for arm in (dense, lexical))
    factor = 1 - _ALONE * len(one & other) / _AGREE_DEPTH
    return (queries[0], *(replace(query, weight=query.weight * factor) for query in queries[1:]))


def _joined(earlier: Sequence[str], question: str) -> str:
    return "\n".join(dict.fromkeys([*(text[:_LONGEST_QUERY] for text in earlier), question]))


def _adjoin(one: Chunk, other: Chunk) -> bool:
    """Tell whether two chunks follow each other in one place of a document."""
    if one.document_id != other.document_id or one.page != other.page or one.heading != other.heading:
        return False
    apart = max(one.start, other.start) - min(one.end, other.end)  # what lies in a gap is not known
    return apart <= 0 and max(one.end, other.end) - min(one.start, other.start) <= _LONGEST_HIT


def _merged(one: Chunk, other: Chunk) -> Chunk:
    """Return both as one run of text, under the name of the better."""
    first, last = sorted((one, other), key=lambda chunk: chunk.start)
    if last.end <= first.end:
        return one
    return replace(first, id=one.id, text=first.text + last.text[first.end - last.start :], end=last.end)


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of words in common (Jaccard)."""
    return len(one & other) / (len(one | other) or 1)
