"""Search: a question and the turns before it become several queries, dense and lexical, fused into one ranking.

No model is asked to rewrite a follow-up. "And for managers?" is searched as it stands and together with what was asked
before; what several of these searches find near their top wins. Knows nothing about quotes, prompts or answers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from .records import Chunk, DocumentInfo, Hit, Scope, SearchedQuery, SearchResult, Turn
from .wording import Wording
from .words import content_words, stem

if TYPE_CHECKING:
    import numpy as np

    from .embedding import Embedder
    from .index import Index

logger = logging.getLogger(__name__)

RANK_CONSTANT = 5
"""k of reciprocal-rank fusion, weight / (k + rank). Cormack, Clarke & Büttcher (2009) took 60 for fusing many systems
to a depth of 1,000; with a few arms and a handful of results wanted, the first ranks must count for more."""

_ARM_WEIGHTS = {"cosine": 1.0, "BM25": 1.15}
"""The small embedders that fit a small machine are the weaker arm, if not by much."""

DEPTH = 60
"""Results taken from each arm."""

_BEFORE = 0.8
"""Weight of the query with earlier turns; the question alone has 1."""

_ALONE = 0.8
_AGREE_DEPTH = 5
"""How much earlier turns lose where the question stands alone. It does where its two arms agree: meaning and words
find the same chunks for a whole question, and for "And for managers?" they seldom do. A change of subject is a question
that stands alone. ``_ALONE`` is the share that full agreement in the first ``_AGREE_DEPTH`` takes."""
_RECENT_TURNS = 3
_EARLIER = 0.4  # what a word that only earlier turns had weighs in a quote
_QUESTIONS = 128  # questions whose vector is kept, 1.5 kB each
_REMEMBERED = 5_000  # words whose frequency is kept
_LONGEST_QUERY = 1_000  # characters of earlier turns in one query
_MOST_TERMS = 24  # words of one query that are looked at, the last ones
_RAREST = 6
"""Words of a query that are searched, the rarest: the time BM25 takes goes with how often its words occur, and frequent
ones hardly move the ranking."""

_CANDIDATES = 2_000  # chunks that are ranked, at least; Catalog.frequency counts no further

_WORDING = 0.6
_LOOKED_AT = 24
"""What the wording of a chunk weighs beside its place in the fused ranking (1), and how many of the best are read for
it, at least: a quarter of a millisecond for three. Ranks say that a chunk is the best of its arm, not by how much."""

_LONGEST_HIT = 3_000  # characters of merged neighbours
_DUPLICATE = 0.9  # share of words in common (Jaccard) from which two chunks say the same


def plan(question: str, turns: Sequence[Turn] = ()) -> tuple[SearchedQuery, ...]:
    """Decide what to search for.

    Args:
        question: The last thing the user said.
        turns: The turns before it, oldest first.

    Returns:
        The question itself and, with turns before it, the question after the first of them and the last three.
    """
    queries = [SearchedQuery(question, 1.0)]
    if turns:
        asked = [turn.question[:_LONGEST_QUERY] for turn in (turns[0], *turns[-_RECENT_TURNS:])]
        text = "\n".join(dict.fromkeys([*asked, question]))
        queries.append(SearchedQuery(text, _BEFORE, "with the turns before"))
    return tuple(queries)


def match_expression(text: str, frequency: Callable[[str], int] | None = None) -> str:
    """Write an FTS5 expression that finds any of the content words of *text*.

    With *frequency*, of the rarest, and only chunks that have one of the first few of these, as many as it takes to
    have ``_CANDIDATES`` chunks: finding a chunk costs a thirtieth of ranking it, and one that has none of the rare
    words is hardly ever among the best. The others still count in the ranking. (In the spirit of MaxScore, Turtle &
    Flood 1995, with frequencies in place of upper bounds.)
    """
    words = content_words(text)[-_MOST_TERMS:]
    if frequency is None:
        return _any_of(words)
    words = sorted(words, key=frequency)[:_RAREST]
    found = list(accumulate(map(frequency, words)))
    enough = next((n for n, count in enumerate(found, 1) if count >= _CANDIDATES and n > 1), len(words))
    if enough == len(words):
        return _any_of(words)
    return f"({_any_of(words[:enough])}) AND ({_any_of(words)})"


def _any_of(words: Sequence[str]) -> str:
    return " OR ".join(f'"{word}"' for word in words)


class Retrieval:
    """Search over an index. Any thread may call."""

    def __init__(self, index: Index, embedder: Embedder) -> None:
        self._index = index
        self._embedder = embedder
        self._beside = ThreadPoolExecutor(1, "lexical")
        self._lock = threading.Lock()
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()  # vectors of the latest questions
        self._frequencies: dict[str, int] = {}  # of words, at the index's generation _counted
        self._counted, self._total = -1, 0

    def close(self) -> None:
        """End the thread that searches words beside the embedding."""
        self._beside.shutdown()

    def warm(self) -> None:
        """Load what the first search needs: the embedder and the vectors."""
        self._embedder.load()
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
        # Words are searched while the question is embedded: SQLite and torch both let go of the interpreter's lock.
        words = self._beside.submit(self._words, queries, depth, scope, document_ids)
        try:
            dense = self._index.dense_many(self._meant(question, turns), depth, scope, document_ids)
        finally:
            lexical, terms = words.result()
        factor = _leaning(dense[0], lexical[0])
        queries = (queries[0], *(replace(query, weight=query.weight * factor) for query in queries[1:]))
        found = {(arm, query.origin): ranking for arm, rankings in (("cosine", dense), ("BM25", lexical))
                 for query, ranking in zip(queries, rankings, strict=True)}  # fmt: skip
        weights = {query.origin: query.weight for query in queries}
        hits = self._hits(_fuse(found, weights), top_k, Wording(question, terms))
        return SearchResult(hits, queries, terms)

    def _meant(self, question: str, turns: Sequence[Turn]) -> np.ndarray:
        """Return a vector for each query of ``plan``, shape (1 or 2, dimension).

        The second is the mean of the question's vector (half) and those of the first turn and the one before (a
        quarter each). It ranks about as well as the vector of all their text, and the earlier ones are known already:
        they were questions themselves.
        """
        import numpy as np

        texts = [question, *(turn.question[:_LONGEST_QUERY] for turn in ((turns[0], turns[-1]) if turns else ()))]
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known.update(zip(missing, self._embedder.embed(missing, beside=True), strict=True))
        with self._lock:
            for text in texts:
                self._known[text] = known[text]
                self._known.move_to_end(text)
            while len(self._known) > _QUESTIONS:
                self._known.popitem(last=False)
        own = known[question]
        if not turns:
            return np.stack([own])
        both = 2 * own + known[texts[1]] + known[texts[2]]
        return np.stack([own, both / max(float(np.linalg.norm(both)), 1e-9)])

    def _words(self, queries: Sequence[SearchedQuery], depth: int, scope: Scope, document_ids: Sequence[str] | None
               ) -> tuple[list[_Found], dict[str, float]]:  # fmt: skip
        terms = self._terms(queries)
        expressions = [match_expression(query.text, self._frequencies.__getitem__) for query in queries]
        return [self._index.lexical(match, depth, scope, document_ids) for match in expressions], terms

    def _terms(self, queries: Sequence[SearchedQuery]) -> dict[str, float]:
        """Weigh the words of the queries: rare ones more, those that only earlier turns had less.

        The weight is BM25's inverse document frequency, ln(1 + (N - n + 0.5) / (n + 0.5)) (Robertson & Zaragoza 2009).
        """
        generation = self._index.generation
        if generation != self._counted or len(self._frequencies) > _REMEMBERED:
            self._frequencies.clear()
            self._counted, self._total = generation, self._index.chunk_count()
        weights: dict[str, float] = {}
        for query in queries:
            for word in content_words(query.text)[-_MOST_TERMS:]:
                if word not in self._frequencies:
                    self._frequencies[word] = self._index.frequency(word)
                count = min(self._frequencies[word], self._total)
                idf = math.log(1 + (self._total - count + 0.5) / (count + 0.5))
                weights.setdefault(stem(word), (1.0 if query is queries[0] else _EARLIER) * idf)
        return weights

    def _hits(self, ranking: Sequence[_Ranked], top_k: int, wording: Wording) -> tuple[Hit, ...]:
        """Turn the top of a ranking into hits: by their wording too, neighbours merged, what says the same left out."""
        best = ranking[: max(_LOOKED_AT, 2 * top_k + 4)]
        chunks = {chunk.id: chunk for chunk in self._index.chunks([ranked.chunk_id for ranked in best])}
        # What has no row was removed since, or its words came before its row was gone.
        there = [ranked for ranked in best if ranked.chunk_id in chunks]
        best = sorted((_reread(ranked, chunks[ranked.chunk_id], wording) for ranked in there),
                      key=lambda ranked: (-ranked.score, ranked.chunk_id))  # fmt: skip
        documents: dict[str, DocumentInfo | None] = {}
        hits: list[Hit] = []
        seen: list[frozenset[str]] = []
        for ranked in best:
            chunk = chunks[ranked.chunk_id]
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
            said = frozenset(chunk.text.lower().split())
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


_Found = Sequence[tuple[str, float]]


def _fuse(found: Mapping[tuple[str, str], _Found], weights: Mapping[str, float]) -> list[_Ranked]:
    """Fuse rankings by weighted reciprocal rank (Cormack, Clarke & Büttcher 2009); a score of 1 is first everywhere."""
    scores: dict[str, float] = defaultdict(float)
    parts: dict[str, dict[str, float]] = defaultdict(dict)
    most = sum(_ARM_WEIGHTS[arm] * weights[origin] for arm, origin in found) / (RANK_CONSTANT + 1)
    for (arm, origin), ranking in found.items():
        for rank, (name, value) in enumerate(ranking, 1):
            scores[name] += _ARM_WEIGHTS[arm] * weights[origin] / (RANK_CONSTANT + rank) / most
            parts[name][f"{arm}, {origin}"] = value
    order = sorted(scores, key=lambda name: (-scores[name], name))
    return [_Ranked(name, scores[name], parts[name]) for name in order]


def _reread(ranked: _Ranked, chunk: Chunk, wording: Wording) -> _Ranked:
    """Return a chunk's place in the ranking with its wording weighed in; 1 is still the most there can be."""
    fit = wording.fit(chunk.text, chunk.heading)
    score = (ranked.score + _WORDING * fit) / (1 + _WORDING)
    return replace(ranked, score=score, parts={**ranked.parts, "wording": fit})


def _leaning(dense: _Found, lexical: _Found) -> float:
    """Return what earlier turns keep of their weight, from what both arms found for the question alone."""
    one, other = ({name for name, _ in found[:_AGREE_DEPTH]} for found in (dense, lexical))
    return 1 - _ALONE * len(one & other) / _AGREE_DEPTH


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
