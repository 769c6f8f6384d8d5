"""Fit the weights of the judgement (and print them for ``assistant/judgement.py``), with cross-validated figures.

Logistic regression by Newton's method with an L2 penalty on standardised features; each set and each label weighs the
same, so that the result is no picture of one set's mix. Questions of one article or conversation stay in one fold.
Run it again after a change to search or quotes: ``python -m bench.calibrate --data DIR --work DIR``.
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import numpy as np

from assistant import judgement

from . import corpora
from .judged import SETS, auc, judged
from .report import Report, arguments, require_data

_FOLDS = 5
_PENALTY = 3.0
_WEIGHT = 200.0  # of each set, in questions


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep the indexes here for the next run")
    args = parser.parse_args()
    require_data(args.data, "mtrag", "xquad", "clapnq")
    report = Report("calibrate", args.json)
    rows, labels, sets, folds = [], [], [], []
    with tempfile.TemporaryDirectory() as temporary, corpora.packaged_embedder() as embedder:
        for number, name in enumerate(SETS):
            for row in judged(name, args.data, embedder, args.work or Path(temporary)):
                if row.quotes:
                    rows.append(judgement.features(row.question.text, row.result, row.quotes))
                    labels.append(row.answerable)
                    sets.append(number)
                    folds.append(zlib.crc32(row.group.encode()) % _FOLDS)
    x, y, of = np.array(rows), np.array(labels, float), np.array(sets)
    weights = np.zeros(len(y))
    for number in range(len(SETS)):
        for label in (0.0, 1.0):
            mask = (of == number) & (y == label)
            weights[mask] = _WEIGHT / 2 / mask.sum()
    scores = np.zeros(len(y))
    for fold in range(_FOLDS):
        held = np.array(folds) == fold
        scores[held] = x[held] @ (fitted := fit(x[~held], y[~held], weights[~held]))[:-1] + fitted[-1]
    for number, name in enumerate(SETS):
        mask = of == number
        report.add(name, "thimble, cross-validated", "AUC", auc(list(y[mask] > 0), list(scores[mask])))
        report.add(name, "thimble, cross-validated", "right at 0.5", float(((scores > 0) == (y > 0))[mask].mean()))
    report.close()
    *found, bias = (round(float(value), 2) for value in fit(x, y, weights))
    print(f"\nNAMES = {judgement.NAMES}\n_WEIGHTS = {tuple(found)}\n_BIAS = {bias}")


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights and, last, the bias of a logistic model, for features as they are (not standardised)."""
    mean, spread = x.mean(0), x.std(0) + 1e-9
    design = np.hstack([(x - mean) / spread, np.ones((len(x), 1))])
    penalty = np.diag([_PENALTY] * x.shape[1] + [1e-6])
    found = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-design @ found))
        slope = design.T @ (weights * (chance - y)) + penalty @ found
        curve = (design * (weights * chance * (1 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(curve, slope)
        found -= step
        if np.abs(step).max() < 1e-7:
            break
    plain = found[:-1] / spread
    return np.append(plain, found[-1] - plain @ mean)


if __name__ == "__main__":
    main()
