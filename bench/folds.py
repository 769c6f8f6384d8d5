"""The constants of the fusion, cross-validated: what they come to on questions that did not choose them.

Questions of one article or conversation stay in one fold. For each fold the constants are chosen on the other folds,
one after another from those in the code until none moves (the best mean over the sets of nDCG@10 and R@10), then the
fold is ranked with them. Every ranking is the search's own: only what the stores and the embedder said is remembered.
"""

from __future__ import annotations

import statistics
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from assistant import retrieval, wording
from assistant.retrieval import Retrieval

from . import corpora
from .corpora import Question
from .report import Report, arguments, require_data
from .retrieval import ndcg, recall

_VALUES: dict[str, tuple[float, ...]] = {
    "RANK_CONSTANT": (2, 3, 5, 8, 15, 60),
    "BM25": (0.8, 1.0, 1.15, 1.3, 1.6),
    "_BEFORE": (0.6, 0.8, 1.0),
    "_ALONE": (0.6, 0.8, 1.0),
    "_WORDING": (0.3, 0.6, 0.9),
}
_Constants = tuple[float, ...]  # in the order of _VALUES
_IN_CODE: _Constants = (retrieval.RANK_CONSTANT, retrieval._ARM_WEIGHTS["BM25"], retrieval._BEFORE, retrieval._ALONE,
                        retrieval._WORDING)  # fmt: skip


class _Remembered:
    """Answers a second call of a method with what the first one gave."""

    def __init__(self, real: Any) -> None:
        self._real, self._known = real, {}  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return found if not callable(found) else lambda *args, **named: self._call(name, found, args, named)

    def _call(self, name: str, found: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = (name, *(arg.tobytes() if isinstance(arg, np.ndarray) else str(arg) for arg in args))
        if key not in self._known:
            self._known[key] = found(*args, **named)
        return self._known[key]


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep the indexes here for the next run")
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    require_data(args.data, "mtrag", "xquad")
    report = Report("folds", args.json)
    with tempfile.TemporaryDirectory() as temporary, corpora.packaged_embedder() as plain, ExitStack() as stack:
        work, embedder = args.work or Path(temporary), _Remembered(plain)
        stack.enter_context(patch.object(wording, "_sequence", cache(wording._sequence)))
        passages, questions = corpora.xquad(args.data)
        strange = questions[len(questions) // 2 :] + questions[: len(questions) // 2]
        after = [replace(q, asked=(other.text,)) for q, other in zip(questions, strange, strict=True)]
        xquad = stack.enter_context(corpora.open_index("xquad", passages, plain, work))
        mtrag = stack.enter_context(corpora.open_index("mtrag", corpora.mtrag_passages(args.data), plain, work))
        sets = {
            "MTRAG human": (corpora.mtrag_human(args.data), mtrag),
            "MTRAG-UN": (corpora.mtrag_un(args.data), mtrag),
            "XQuAD": (questions, xquad),
            "XQuAD after a question on another article": (after[::2], xquad),
        }
        searches = {name: (group, Retrieval(_Remembered(index), embedder)) for name, (group, index) in sets.items()}

        @cache
        def figures(name: str, constants: _Constants) -> np.ndarray:
            return _figures(*searches[name], constants)  # a question a row: R@5, R@10, nDCG@10

        fold_of = {name: np.array([_fold(q, args.folds) for q in group]) for name, (group, _) in searches.items()}
        chosen: dict[int, _Constants] = {}
        for fold in range(args.folds):

            def worth(constants: _Constants, fold: int = fold) -> float:
                return statistics.fmean(figures(name, constants)[of != fold, 1:].mean() for name, of in fold_of.items())

            chosen[fold] = _chosen(worth)
            for constant, value in zip(_VALUES, chosen[fold], strict=True):
                report.add("chosen", f"without fold {fold + 1}", constant, value)
        for name, (_, search) in searches.items():
            rows = [figures(name, constants)[fold_of[name] == fold] for fold, constants in chosen.items()]
            for arm, table in (("as in the code", figures(name, _IN_CODE)), ("held out", np.concatenate(rows))):
                for metric, value in zip(("R@5", "R@10", "nDCG@10"), table.mean(0), strict=True):
                    report.add(name, arm, metric, float(value))
            search.close()
    report.close()


def _chosen(worth: Callable[[_Constants], float]) -> _Constants:
    """Climb from the constants in the code, one of them at a time."""
    best, before = _IN_CODE, None
    while best != before:
        before = best
        for n, values in enumerate(_VALUES.values()):
            best = max([best, *((*best[:n], value, *best[n + 1 :]) for value in values)], key=worth)
    return best


def _figures(questions: Sequence[Question], search: Retrieval, constants: _Constants) -> np.ndarray:
    k, bm25, before, alone, said = constants
    rows = []
    with patch.multiple(retrieval, RANK_CONSTANT=k, _BEFORE=before, _ALONE=alone, _WORDING=said,
                        _ARM_WEIGHTS={"cosine": 1.0, "BM25": bm25}):  # fmt: skip
        for q in questions:
            found = [hit.document.id for hit in search.search(q.text, turns=q.turns, top_k=12).hits]
            ranked = list(dict.fromkeys(found))
            rows.append((recall(ranked, q.relevant, 5), recall(ranked, q.relevant, 10), ndcg(ranked, q.relevant, 10)))
    return np.array(rows)


def _fold(question: Question, folds: int) -> int:
    return zlib.crc32(str(question.facts.get("article", question.id.split("<")[0])).encode()) % folds


if __name__ == "__main__":
    main()
