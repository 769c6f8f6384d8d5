"""The evaluation data, and indexes built from it: as an ingest would, passage by passage, once per work folder."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assistant.chunking import split
from assistant.embedding import Embedder, load_embedder
from assistant.index import Index
from assistant.models import resolve
from assistant.records import DocumentInfo, Segment, Turn
from assistant.settings import Settings
from assistant.worker import TorchWorker


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a corpus; it becomes one document."""

    id: str
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what is known of it.

    Attributes:
        asked: What the user said before, oldest first.
        replied: What was answered to each of those; empty where the data has none.
        relevant: Ids of passages that answer it.
        rewrite: The question rewritten by people to stand alone.
        answers: Gold answers.
    """

    id: str
    text: str
    asked: tuple[str, ...] = ()
    replied: tuple[str, ...] = ()
    relevant: frozenset[str] = frozenset()
    rewrite: str = ""
    answers: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> list[Turn]:
        """The earlier turns as retrieval takes them."""
        replies = self.replied or ("",) * len(self.asked)
        return [
            Turn(n, "bench", None, asked, reply, "done", float(n))
            for n, (asked, reply) in enumerate(zip(self.asked, replies, strict=False), 1)
        ]


@contextmanager
def packaged_embedder(threads: int = 0) -> Iterator[Embedder]:
    """Load the packaged embedder for a block."""
    worker = TorchWorker(threads)
    embedder = load_embedder(resolve("packaged", Settings().models_dir, kind="embedder"), worker)
    try:
        yield embedder
    finally:
        embedder.close()
        worker.close()


def open_index(name: str, passages: Sequence[Passage], embedder: Embedder, work: Path) -> Index:
    """Open the index of a corpus, building it first where *work* does not hold it whole yet."""
    index = Index.open(
        work / f"{name}-{embedder.fingerprint[:8]}", dimension=embedder.dimension, fingerprint=embedder.fingerprint
    )
    there = {info.id for info in index.all_documents() if info.status == "ready"}
    todo = [passage for passage in passages if passage.id not in there]
    began, done = time.monotonic(), 0
    for first in range(0, len(todo), 48):
        some = todo[first : first + 48]
        infos = [DocumentInfo(p.id, p.id, p.id, "partial", "", len(p.text), 0, 0, 0.0) for p in some]
        chunks = [
            list(split([Segment(p.text, heading=(p.title,) if p.title else ())], embedder, document_id=p.id))
            for p in some
        ]
        vectors = embedder.embed([chunk.text for own in chunks for chunk in own])
        start = 0
        for info, own in zip(infos, chunks, strict=True):
            index.begin_document(info)
            index.add_chunks(info.id, own, vectors[start : start + len(own)])
            index.finish_document(info.id, info=replace(info, status="ready"))
            start += len(own)
        done += len(some)
        sys.stderr.write(f"\rbuilding {name}: {done} of {len(todo)} passages, {time.monotonic() - began:.0f} s ")
    if todo:
        sys.stderr.write("\n")
    return index


def mtrag_passages(data: Path) -> list[Passage]:
    """Return MTRAG's corpus with its distractors."""
    files = ("mtrag/corpus.jsonl", "mtrag/distractors.jsonl")
    return [Passage(row["_id"], row["text"], row["title"]) for name in files for row in lines(data / name)]


def mtrag_human(data: Path) -> list[Question]:
    """Return the last turns of MTRAG's human conversations; the data has the user's side alone."""
    folder = data / "mtrag/human"
    relevant = qrels(folder / "qrels.tsv")
    rewrites = {row["_id"]: row["text"] for row in lines(folder / "queries_rewrite.jsonl")}
    last = {row["_id"]: row["text"] for row in lines(folder / "queries_lastturn.jsonl")}
    questions = []
    for row in lines(folder / "queries_questions.jsonl"):
        name, text = row["_id"], last[row["_id"]]
        before = row["text"].removesuffix(text).strip()
        questions.append(
            Question(name, text, tuple(before.split("\n")) if before else (), (), relevant[name], rewrites[name])
        )
    return [question for question in questions if question.relevant]


def mtrag_un(data: Path, *, answerable: bool = True) -> list[Question]:
    """Return MTRAG-UN's last turns with their conversations: those the passages answer, or those they don't."""
    folder = data / "mtrag/un"
    relevant = qrels(folder / "qrels.tsv")
    questions = []
    for row in lines(folder / ("queries_conversation.jsonl" if answerable else "unanswerable.jsonl")):
        asked = [turn["content"] for turn in row["history"] if turn["role"] == "user"]
        replied = [turn["content"] for turn in row["history"] if turn["role"] != "user"]
        own = relevant.get(row["_id"], frozenset())
        questions.append(Question(row["_id"], row["text"], tuple(asked), tuple(replied), own))
    return [question for question in questions if question.relevant or not answerable]


def xquad(data: Path) -> tuple[list[Passage], list[Question]]:
    """Return XQuAD's paragraphs and questions; ``facts["article"]`` names the article of a question's paragraph."""
    rows = list(lines(data / "xquad/corpus.jsonl"))
    passages = [Passage(row["_id"], row["text"], row["title"].replace("_", " ")) for row in rows]
    article = {row["_id"]: row["title"] for row in rows}
    relevant = qrels(data / "xquad/qrels.tsv")
    questions = []
    for row in lines(data / "xquad/queries.jsonl"):
        own = relevant[row["_id"]]
        facts = {"article": article[min(own)]}
        questions.append(Question(row["_id"], row["text"], relevant=own, answers=tuple(row["answers"]), facts=facts))
    return passages, questions


def clapnq(data: Path) -> tuple[list[Passage], list[Question], list[Question]]:
    """Return CLAPNQ's passages, its answerable questions and the others; ``relevant`` is a question's own passage."""
    passages: dict[str, Passage] = {}
    groups: list[list[Question]] = []
    for name in ("answerable", "unanswerable"):
        group = []
        for row in lines(data / f"clapnq/{name}.jsonl"):
            own = []
            for number, passage in enumerate(row["passages"]):
                key = f"{row['id']}-{number}"
                passages[key] = Passage(key, passage["text"], passage["title"])
                own.append(key)
            answers = tuple(output["answer"] for output in row["output"] if output["answer"])
            group.append(Question(str(row["id"]), row["input"], relevant=frozenset(own), answers=answers))
        groups.append(group)
    return list(passages.values()), groups[0], groups[1]


def qrels(path: Path) -> dict[str, frozenset[str]]:
    """Read which passages answer which question."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        question, passage, score = line.split("\t")
        if int(score) > 0:
            found[question].add(passage)
    return defaultdict(frozenset, {name: frozenset(own) for name, own in found.items()})


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
