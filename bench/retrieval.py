"""Search against its plain arms: ranking on MTRAG, MTRAG-UN and XQuAD, quotes on XQuAD, and time at 100,000 chunks.

Plain arms, from the same index in the same run: BM25 alone, dense alone, dense with all user turns joined, and both
with the gold rewrite, where the data has one. A passage ranks by its best chunk.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from assistant import quotes
from assistant.embedding import Embedder
from assistant.index import Index
from assistant.records import Chunk, DocumentInfo, Scope
from assistant.retrieval import Retrieval, match_expression

from . import corpora
from .corpora import Question
from .report import Report, arguments, require_data

_DEPTH = 60
_ANYONE = Scope()
Rank = Callable[[Question], list[str]]


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep the indexes here for the next run")
    parser.add_argument("--set", choices=("mtrag", "xquad", "speed"), action="append", help="only these parts")
    parser.add_argument("--chunks", type=int, default=100_000, help="for the speed part")
    args = parser.parse_args()
    require_data(args.data, "mtrag", "xquad")
    parts = args.set or ["mtrag", "xquad", "speed"]
    report = Report("retrieval", args.json)
    with tempfile.TemporaryDirectory() as temporary, corpora.packaged_embedder() as embedder:
        work = args.work or Path(temporary)
        if "xquad" in parts:
            _xquad(report, args.data, embedder, work)
        if "mtrag" in parts:
            _mtrag(report, args.data, embedder, work)
        if "speed" in parts:
            _speed(report, args.data, embedder, work, args.chunks)
    report.close()


def _mtrag(report: Report, data: Path, embedder: Embedder, work: Path) -> None:
    with corpora.open_index("mtrag", corpora.mtrag_passages(data), embedder, work) as index:
        for name, questions in (("MTRAG human", corpora.mtrag_human(data)), ("MTRAG-UN", corpora.mtrag_un(data))):
            _rankings(report, name, questions, index, embedder)
        first = [question for question in corpora.mtrag_human(data) + corpora.mtrag_un(data) if not question.asked]
        talks = [question for question in corpora.mtrag_un(data) if len(question.asked) >= 3]
        changed = [replace(question, asked=talks[n * 7 % len(talks)].asked[:3]) for n, question in enumerate(first)]
        _rankings(report, "MTRAG, first questions", first, index, embedder)
        _rankings(report, "MTRAG, first questions after another conversation", changed, index, embedder)


def _xquad(report: Report, data: Path, embedder: Embedder, work: Path) -> None:
    passages, questions = corpora.xquad(data)
    with corpora.open_index("xquad", passages, embedder, work) as index:
        _rankings(report, "XQuAD", questions, index, embedder)
        strange = questions[len(questions) // 2 :] + questions[: len(questions) // 2]
        changed = [replace(q, asked=(other.text,)) for q, other in zip(questions, strange, strict=True)]
        _rankings(report, "XQuAD after a question on another article", changed, index, embedder)
        _quotes(report, questions, index, embedder)


def _rankings(report: Report, name: str, questions: Sequence[Question], index: Index, embedder: Embedder) -> None:
    retrieval = Retrieval(index, embedder)

    def words(text: str) -> list[str]:
        return [chunk for chunk, _ in index.lexical(match_expression(text), _DEPTH, _ANYONE)]

    def dense(text: str) -> list[str]:
        return [chunk for chunk, _ in index.dense(embedder.embed([text])[0], _DEPTH, _ANYONE)]

    arms: dict[str, Rank] = {
        "BM25": lambda q: words(q.text),
        "dense": lambda q: dense(q.text),
        "dense, all turns joined": lambda q: dense("\n".join([*q.asked, q.text])),
        "BM25, gold rewrite": lambda q: words(q.rewrite),
        "dense, gold rewrite": lambda q: dense(q.rewrite),
    }
    if not all(question.rewrite for question in questions):
        arms = {arm: rank for arm, rank in arms.items() if "rewrite" not in arm}
    for arm, rank in arms.items():
        _measure(report, name, arm, questions, lambda q, rank=rank: _documents(index, rank(q)))
    _measure(report, name, "thimble", questions, lambda q: [
        hit.document.id for hit in retrieval.search(q.text, turns=q.turns, top_k=20).hits])  # fmt: skip
    retrieval.close()


def _documents(index: Index, chunk_ids: list[str]) -> list[str]:
    return [chunk.document_id for chunk in index.chunks(chunk_ids)]


def _measure(report: Report, name: str, arm: str, questions: Sequence[Question], rank: Rank) -> None:
    recall5, recall10, gain = [], [], []
    for question in questions:
        ranked = list(dict.fromkeys(rank(question)))
        recall5.append(recall(ranked, question.relevant, 5))
        recall10.append(recall(ranked, question.relevant, 10))
        gain.append(ndcg(ranked, question.relevant, 10))
    for metric, values in (("R@5", recall5), ("R@10", recall10), ("nDCG@10", gain)):
        report.add(name, arm, metric, statistics.fmean(values))
    report.add(name, arm, "questions", len(questions))


def recall(ranked: Sequence[str], relevant: frozenset[str], k: int) -> float:
    """Return the share of *relevant* among the first *k*."""
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def ndcg(ranked: Sequence[str], relevant: frozenset[str], k: int) -> float:
    """Return the normalised discounted cumulative gain at *k*, with one grade (Järvelin & Kekäläinen 2002)."""
    gain = sum(1 / math.log2(n + 2) for n, name in enumerate(ranked[:k]) if name in relevant)
    return gain / sum(1 / math.log2(n + 2) for n in range(min(k, len(relevant))))


def _quotes(report: Report, questions: Sequence[Question], index: Index, embedder: Embedder) -> None:
    """How often the first quotes hold the gold answer, chosen from all paragraphs; and what choosing takes."""
    retrieval = Retrieval(index, embedder)
    held: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    plain: list[float] = []
    times = []
    for question in questions:
        result = retrieval.search(question.text)
        began = time.perf_counter()
        found = quotes.select(question.text, result, embedder)
        times.append((time.perf_counter() - began) * 1000)
        for n, values in held.items():
            values.append(any(answer in quote.text for answer in question.answers for quote in found[:n]))
        nearest = index.dense(embedder.embed([question.text])[0], 1, _ANYONE)[0][0]
        plain.append(any(answer in index.chunks([nearest])[0].text for answer in question.answers))
    for n, values in held.items():
        report.add("XQuAD quotes", "thimble", f"first {n} hold the answer", statistics.fmean(values))
    report.add("XQuAD quotes", "thimble", "select", statistics.median(times), "ms")
    report.add("XQuAD quotes", "the dense arm's first chunk, whole", "first 1 hold the answer", statistics.fmean(plain))
    retrieval.close()


def _speed(report: Report, data: Path, embedder: Embedder, work: Path, count: int) -> None:
    """Time of a follow-up with all its queries, embedding included, beside a plain dense query, taken in turns.

    The texts are MTRAG's, each chunk with one word of its own so that no two are alike; vectors beyond those of real
    passages are real ones turned a little, so that the graph is as hard to walk as a real one. The earlier turns of a
    conversation were searched before, as in a chat; the arm "after a restart" knows nothing of them.
    """
    name = f"{count:,} chunks"
    index = _grown(data, embedder, work, count)
    with index:
        retrieval = Retrieval(index, embedder)
        questions = [question for question in corpora.mtrag_un(data) if len(question.asked) >= 3][:60]
        for question in questions[:5]:
            retrieval.search(question.text, turns=question.turns)
        plain, ours, cold, once = [], [], [], []
        for question in questions:
            for turn in question.turns:
                retrieval.search(turn.question)
            fresh = Retrieval(index, embedder)
            plain.append(_timed(lambda q: index.dense(embedder.embed([q.text])[0], 8, _ANYONE), question))
            ours.append(_timed(lambda q: retrieval.search(q.text, turns=q.turns), question))
            cold.append(_timed(lambda q, fresh=fresh: fresh.search(q.text, turns=q.turns), question))
            fresh.close()
            fresh = Retrieval(index, embedder)
            once.append(_timed(lambda q, fresh=fresh: fresh.search(q.text), question))
            fresh.close()
        retrieval.close()
    arms = (("dense, plain", plain), ("thimble", ours), ("thimble, after a restart", cold), ("thimble, no turns", once))
    for arm, times in arms:
        report.add(name, arm, "median", statistics.median(times), "ms")
        report.add(name, arm, "90th percentile", sorted(times)[len(times) * 9 // 10], "ms")
    report.add(name, "thimble", "times dense", statistics.median(ours) / statistics.median(plain))


def _timed(run: Callable[[Question], object], question: Question) -> float:
    began = time.perf_counter()
    run(question)
    return (time.perf_counter() - began) * 1000


def _grown(data: Path, embedder: Embedder, work: Path, count: int) -> Index:
    folder = work / f"speed-{count}-{embedder.fingerprint[:8]}"
    index = Index.open(folder, dimension=embedder.dimension, fingerprint=embedder.fingerprint)
    if index.chunk_count() >= count:
        return index
    with corpora.open_index("mtrag", corpora.mtrag_passages(data), embedder, work) as source:
        chunks = source.chunks([name for info in source.all_documents() for name in source.chunk_ids(info.id)])
        real = source.vectors_of([chunk.id for chunk in chunks])
    rng = np.random.default_rng(7)
    info = DocumentInfo("speed", "speed", "speed", "ready", "", 0, 0, 0, 0.0)
    index.begin_document(info)
    for start in range(index.chunk_count(), count, 1000):
        batch, rows = [], []
        for n in range(start, min(start + 1000, count)):
            like = chunks[n % len(chunks)]
            batch.append(Chunk(f"c{n}", info.id, n, f"{like.text} w{n}", n * 4000, n * 4000 + len(like.text)))
            turned = real[n % len(chunks)] + rng.standard_normal(index.dimension).astype(np.float32) * 0.02
            rows.append(turned / np.linalg.norm(turned))
        index.add_chunks(info.id, batch, np.array(rows, np.float32))
    return index


if __name__ == "__main__":
    main()
