"""Answers: knowing when not to, and XQuAD end to end with the packaged chat model.

The judgement is held against two plain ones from the same searches: the best cosine and the best BM25. A turn's reply
"holds" the answer when one of the gold spans stands in it, letter case and spaces aside; a reply that declines holds
none. Grounding is the AUC of a reply's best supported sentence (and of the mean of all) against whether the reply
holds the answer.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from assistant import Assistant, Settings, judgement
from assistant.records import Answer, SearchResult

from . import corpora
from .corpora import Question
from .judged import SETS, auc, judged
from .report import Report, arguments, require_data


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep the indexes here for the next run")
    parser.add_argument("--part", choices=("judgement", "xquad"), action="append", help="only these parts")
    parser.add_argument("--questions", type=int, default=100, help="XQuAD questions to answer, evenly spread")
    parser.add_argument("--model", default="packaged")
    args = parser.parse_args()
    require_data(args.data, "mtrag", "xquad", "clapnq")
    parts = args.part or ["judgement", "xquad"]
    report = Report("answers", args.json)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        if "judgement" in parts:
            _judgement(report, args.data, work)
        if "xquad" in parts:
            _xquad(report, args.data, work, args.questions, args.model)
    report.close()


def _judgement(report: Report, data: Path, work: Path) -> None:
    with corpora.packaged_embedder() as embedder:
        for name in SETS:
            rows = judged(name, data, embedder, work)
            labels = [row.answerable for row in rows]
            chances = [judgement.answerable(row.question.text, row.result, row.quotes) for row in rows]
            report.add(name, "best cosine", "AUC", auc(labels, [_best(row.result, "cosine") for row in rows]))
            report.add(name, "best BM25", "AUC", auc(labels, [_best(row.result, "BM25") for row in rows]))
            report.add(name, "thimble", "AUC", auc(labels, chances))
            right = [(chance >= 0.5) == label for chance, label in zip(chances, labels, strict=True)]
            report.add(name, "thimble", "right at 0.5", statistics.fmean(right))
            kept = [chance >= 0.5 for chance, label in zip(chances, labels, strict=True) if label]
            report.add(name, "thimble", "answerable ones answered", statistics.fmean(kept))
            report.add(name, "thimble", "questions", len(rows))


def _best(result: SearchResult, arm: str) -> float:
    return max((value for hit in result.hits for part, value in hit.parts.items() if part.startswith(arm)), default=0.0)


@dataclass(frozen=True, slots=True)
class Replied:
    """One question of XQuAD, answered."""

    question: Question
    answer: Answer
    declined: bool

    @property
    def holds(self) -> bool:
        """Whether the reply itself holds a gold answer."""
        return not self.declined and held(self.answer.text, self.question)

    def quoted(self, count: int) -> bool:
        """Whether one of the first *count* quotes holds a gold answer."""
        return any(held(quote.text, self.question) for quote in self.answer.quotes[:count])


def replies(data: Path, work: Path, count: int, model: str) -> list[Replied]:
    """Ask *count* of XQuAD's questions, evenly spread, each in a session of its own, over all paragraphs."""
    passages, questions = corpora.xquad(data)
    with corpora.packaged_embedder() as embedder:
        store = corpora.open_index("xquad", passages, embedder, work)
        store.close()
    step = max(1, len(questions) // count)
    found = []
    with tempfile.TemporaryDirectory() as history:
        settings = Settings(store_dir=store.folder, history_dir=Path(history), model=model)
        with Assistant(settings) as assistant:
            for question in questions[::step][:count]:
                answer = assistant.ask(question.text)
                found.append(Replied(question, answer, answer.answerable < settings.answer_threshold))
    return found


def _xquad(report: Report, data: Path, work: Path, count: int, model: str) -> None:
    rows = replies(data, work, count, model)
    name = "XQuAD end to end"
    report.add(name, "thimble", "reply holds the answer", statistics.fmean(row.holds for row in rows))
    report.add(name, "thimble", "or the first two quotes do",
               statistics.fmean(row.holds or row.quoted(2) for row in rows))  # fmt: skip
    report.add(name, "thimble", "declined", statistics.fmean(row.declined for row in rows))
    report.add(name, "thimble", "a turn takes", [row.answer.time.total_s for row in rows], "s")
    report.add(name, "thimble", "questions", len(rows))
    report.add(
        name, "first two quotes alone", "reply holds the answer", statistics.fmean(row.quoted(2) for row in rows)
    )
    marked = [row for row in rows if row.answer.marks and not row.declined]
    if len({row.holds for row in marked}) == 2:
        right = [row.holds for row in marked]
        for how, pick in (("best", max), ("mean", statistics.fmean)):
            supports = [float(pick([mark.support for mark in row.answer.marks])) for row in marked]
            report.add(name, "thimble", f"grounding AUC, {how} sentence", auc(right, supports))


def held(text: str, question: Question) -> bool:
    """Tell whether one of the gold answers stands in *text*, letter case and spaces aside."""
    plain = " ".join(text.lower().split())
    return any(" ".join(answer.lower().split()) in plain for answer in question.answers)


if __name__ == "__main__":
    main()
