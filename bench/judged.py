"""Questions that the documents answer and questions they don't, searched as a turn would search them.

* XQuAD: each question twice, from all paragraphs and with its own article withheld.
* CLAPNQ: each question against its own passage, which answers it or does not.
* MTRAG-UN: last turns with their conversations, against all passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant import quotes
from assistant.embedding import Embedder
from assistant.index import Index
from assistant.records import Quote, SearchResult
from assistant.retrieval import Retrieval

from . import corpora
from .corpora import Question

SETS = ("XQuAD, article withheld", "CLAPNQ", "MTRAG-UN")


@dataclass(frozen=True, slots=True)
class Judged:
    """A question, what was found for it, and whether the documents answer it."""

    question: Question
    result: SearchResult
    quotes: tuple[Quote, ...]
    answerable: bool
    group: str  # questions of one group stay together when a set is split


def judged(name: str, data: Path, embedder: Embedder, work: Path, *, every: int = 1) -> list[Judged]:
    """Search the questions of one of ``SETS``; with *every* = n only each n-th."""
    passages, cases = _cases(name, data)
    key = name.split(",")[0].split("-")[0].lower()
    with corpora.open_index(key, passages, embedder, work) as index:
        return list(_searched(cases[::every], index, embedder))


_Case = tuple[Question, list[str] | None, bool, str]


def _cases(name: str, data: Path) -> tuple[list[corpora.Passage], list[_Case]]:
    cases: list[_Case] = []
    if name.startswith("XQuAD"):
        passages, questions = corpora.xquad(data)
        for question in questions:
            article = str(question.facts["article"])
            others = [passage.id for passage in passages if passage.title != article.replace("_", " ")]
            cases.append((question, None, True, article))
            cases.append((question, others, False, article))
        # Pairs stay next to each other, so that a sample of every n-th (n odd) takes both kinds.
        return passages, cases
    if name == "CLAPNQ":
        passages, answered, unanswered = corpora.clapnq(data)
        for label, group in ((True, answered), (False, unanswered)):
            cases += [(question, sorted(question.relevant), label, question.id) for question in group]
        return passages, cases
    for label in (True, False):
        group = corpora.mtrag_un(data, answerable=label)
        cases += [(question, None, label, question.id.split("<")[0]) for question in group]
    return corpora.mtrag_passages(data), cases


def _searched(cases: Sequence[_Case], index: Index, embedder: Embedder) -> Iterator[Judged]:
    retrieval = Retrieval(index, embedder)
    for question, ids, label, group in cases:
        result = retrieval.search(question.text, turns=question.turns, document_ids=ids)
        yield Judged(question, result, quotes.select(question.text, result, embedder), label, group)
    retrieval.close()


def auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Return the chance that a positive scores above a negative, ties counting half (Mann & Whitney 1947)."""
    positive = np.array([score for score, label in zip(scores, labels, strict=True) if label])
    negative = np.array([score for score, label in zip(scores, labels, strict=True) if not label])
    if not len(positive) or not len(negative):
        raise ValueError("an AUC needs both kinds")
    above = (positive[:, None] > negative[None]).mean() + (positive[:, None] == negative[None]).mean() / 2
    return float(above)
