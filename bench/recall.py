"""Recall of old turns on LoCoMo: does the evidence for a question come back among the first five, or ten, messages?

Each conversation becomes one session: its messages, two to a turn, in their order, with who speaks before the text and
the caption of a shared photo after it. Nothing is in the window, so everything must be recalled. A question's score is
the share of its evidence that was found; questions without evidence are left out. Peers, from the same run: BM25
(FTS5) over messages, over each message joined to the one before, the embedder alone, and both fused by rank.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assistant.embedding import load_embedder
from assistant.history import History, NewTurn
from assistant.models import resolve
from assistant.recall import MIN_SCORE, Recall
from assistant.settings import ROOT
from assistant.worker import TorchWorker

from .report import Report, arguments, require_data

BEST = 10


@dataclass
class Talk:
    """One conversation: ids and texts of its messages, and (question, evidence ids, category)."""

    name: str
    ids: list[str]
    texts: list[str]
    questions: list[tuple[str, set[str], int]]


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder of the prepared models")
    args = parser.parse_args()
    require_data(args.data, "locomo/locomo.json")
    report = Report("recall", args.json)
    talks = list(read(args.data / "locomo" / "locomo.json"))
    worker = TorchWorker(2)
    embedder = load_embedder(resolve("packaged", args.models, kind="embedder"), worker)
    try:
        arms = peers(talks, embedder)
        arms["thimble"] = ours(talks, embedder, report)
        for turns in (400, 100_000):
            sized(turns, embedder, report)
    finally:
        embedder.close()
        worker.close()
    for arm, rankings in arms.items():
        for depth in (5, BEST):
            report.add("LoCoMo evidence", arm, f"R@{depth}", score(talks, rankings, depth))
    for category, name in enumerate(("multi-hop", "temporal", "open-domain", "single-hop", "adversarial"), 1):
        for arm, rankings in arms.items():
            report.add("LoCoMo evidence, R@5 by kind", arm, name, score(talks, rankings, 5, category))
    report.close()


def read(path: Path) -> Iterator[Talk]:
    """Yield the conversations of the file."""
    for item in json.loads(path.read_text(encoding="utf-8")):
        said: dict[str, Any] = item["conversation"]
        parts = sorted((name for name in said if re.fullmatch(r"session_\d+", name)), key=lambda name: int(name[8:]))
        messages = [message for name in parts for message in said[name]]
        texts = []
        for message in messages:
            photo = f" [photo: {message['blip_caption']}]" if message.get("blip_caption") else ""
            texts.append(f"{message['speaker']}: {message['text']}{photo}")
        ids = [message["dia_id"] for message in messages]
        questions = []
        for asked in item["qa"]:
            evidence = set(re.findall(r"D\d+:\d+", str(asked["evidence"]))) & set(ids)
            if evidence:
                questions.append((asked["question"], evidence, asked["category"]))
        yield Talk(item["sample_id"], ids, texts, questions)


def ours(talks: Sequence[Talk], embedder: Any, report: Report) -> list[list[list[int]]]:
    """Rank with `Recall` over a real history."""
    rankings, times = [], []
    quoted = 0
    with tempfile.TemporaryDirectory() as folder, History.open(Path(folder)) as history:
        recall = Recall(history, embedder)
        for talk in talks:
            texts = [*talk.texts, ""] if len(talk.texts) % 2 else talk.texts
            history.add(talk.name, (
                NewTurn(str(place), str(place - 2) if place else None, texts[place], texts[place + 1])
                for place in range(0, len(texts), 2)
            ))  # fmt: skip
            recall.index(session_id=talk.name)
            first = next(history.every_turn(talk.name)).id
            found = []
            for question, _, _ in talk.questions:
                start = time.perf_counter()
                hits = recall.rank(question, session_id=talk.name, limit=BEST)
                times.append((time.perf_counter() - start) * 1000)
                found.append([2 * (hit.turn.id - first) + hit.part for hit in hits])
                quoted += bool(hits) and hits[0].score >= MIN_SCORE
            rankings.append(found)
    report.add("a search", "thimble", "time", times, "ms")
    report.add("a search", "thimble", "questions with a quote", quoted / len(times))
    return rankings


def sized(turns: int, embedder: Any, report: Report) -> None:
    """Time a search in a session of *turns* turns: the first, which reads the order of turns, and one after each turn.

    The vectors stored here are random: time is measured, not what is found.
    """
    answer = "An answer of an everyday length, which is some two hundred characters. " * 3
    packed = np.zeros((turns, 2), np.dtype([("scale", "<f4"), ("values", "i1", (embedder.dimension,))]))
    packed["scale"] = 0.01
    packed["values"] = np.random.default_rng(1).integers(-99, 99, packed["values"].shape)
    with (
        tempfile.TemporaryDirectory() as folder,
        History.open(Path(folder), max_bytes=2_000_000_000) as history,
    ):
        history.add("s", (
            NewTurn(str(place), str(place - 1) if place else None, f"And what of topic {place % 977}?", answer)
            for place in range(turns)
        ))  # fmt: skip
        (first,) = (turn.id for turn in history.turns("s", limit=turns)[:1])
        history.recall_index.keep_vectors(
            "local", ((first + place, vectors.tobytes()) for place, vectors in enumerate(packed)), embedder.fingerprint
        )
        recall, times, cpu = Recall(history, embedder), [], []
        for number in range(6):
            start, cpu_start = time.perf_counter(), time.process_time()
            recall.rank(f"Who spoke about topic {number}?", session_id="s")
            times.append((time.perf_counter() - start) * 1000)
            cpu.append((time.process_time() - cpu_start) * 1000)
            history.finish(history.begin("s", "And on?").id, answer=answer)
    name = "a search in a long session"
    report.add(name, f"thimble, {turns} turns", "the first", times[0], "ms")
    report.add(name, f"thimble, {turns} turns", "after a turn", times[1:], "ms")
    report.add(name, f"thimble, {turns} turns", "CPU after a turn", cpu[1:], "ms")


def peers(talks: Sequence[Talk], embedder: Any) -> dict[str, list[list[list[int]]]]:
    """Rank with BM25, the embedder, and both."""
    arms: dict[str, list[list[list[int]]]] = {}
    for talk in talks:
        joined = [" ".join(talk.texts[max(0, place - 1) : place + 1]) for place in range(len(talk.texts))]
        vectors = embedder.embed(talk.texts)
        asked = embedder.embed([question for question, _, _ in talk.questions])
        dense = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :100].tolist()
        alone, paired = _bm25(talk.texts), _bm25(joined)
        found: dict[str, list[list[int]]] = {"BM25": [], "BM25, joined to the one before": [], "MiniLM": dense}
        found["BM25 and MiniLM by rank"] = []
        for place, (question, _, _) in enumerate(talk.questions):
            found["BM25"].append(alone(question))
            found["BM25, joined to the one before"].append(paired(question))
            found["BM25 and MiniLM by rank"].append(_fused(alone(question), dense[place]))
        for arm, rankings in found.items():
            arms.setdefault(arm, []).append(rankings)
    return arms


def _bm25(texts: Sequence[str]) -> Callable[[str], list[int]]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter unicode61')")
    db.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", enumerate(texts))

    def search(question: str) -> list[int]:
        match = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", question))
        return [row[0] for row in db.execute("SELECT rowid FROM texts(?) ORDER BY rank LIMIT 100", (match,))]

    return search


def _fused(*rankings: Sequence[int]) -> list[int]:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (60 + rank)
    return sorted(scores, key=lambda place: -scores[place])


def score(talks: Sequence[Talk], rankings: Sequence[Sequence[Sequence[int]]], depth: int, category: int = 0) -> float:
    """Return the mean share of evidence among the first *depth* messages, over questions of a category (0: all)."""
    shares = []
    for talk, found in zip(talks, rankings, strict=True):
        for (_, evidence, kind), places in zip(talk.questions, found, strict=True):
            if category in (0, kind):
                best = {talk.ids[place] for place in places[:depth]}
                shares.append(len(evidence & best) / len(evidence))
    return sum(shares) / len(shares) if shares else 0.0


if __name__ == "__main__":
    main()
