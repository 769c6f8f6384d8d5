"""The principal directions of the packaged embedder's vectors, along which the index keeps them short in RAM.

Reads the passages of MTRAG and, with ``--text``, text files and web pages of other kinds (for the file in the
repository: the Debian documentation of Python, PostgreSQL and the kernel), embeds their chunks, and finds the
directions that keep most of their inner products: the first eigenvectors of the second moments about 0 (Eckart & Young
1936).

First how good that is, on text that was not fitted: directions are found from one half of the documents, and the other
half is searched. ``short`` is the share of the true first results among the candidates of an exhaustive search of short
vectors; ``index`` what a real Chroma index gives after rescoring, beside one of full vectors, which misses some too.
XQuAD and CLAPNQ are never fitted. Then, with ``--write``, all of it is fitted and the file written.
"""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from assistant.chunking import split
from assistant.embedding import Embedder
from assistant.index import short
from assistant.index.vectors import VectorStore
from assistant.records import Segment

from . import corpora
from .corpora import Passage
from .report import Report, arguments, require_data

_DEPTHS = (10, 60)
_PAGE = 20_000  # characters read of one text: many kinds of text, not much of one


def main() -> None:
    """Measure, and write the directions."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep the vectors here for the next run")
    parser.add_argument("--text", type=Path, nargs="*", default=[], metavar="DIR", help="more text to fit")
    parser.add_argument("--files", type=int, default=40, help="of each folder, spread over it")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[96, 128, 160], help="lengths to compare")
    parser.add_argument("--write", type=int, metavar="N", help="write the first N directions into the package")
    args = parser.parse_args()
    require_data(args.data, "mtrag", "xquad", "clapnq")
    report = Report("project", args.json)
    with tempfile.TemporaryDirectory() as temporary, corpora.packaged_embedder() as embedder:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        fitted = [_vectors(work / "mtrag.npz", corpora.mtrag_passages(args.data), embedder)]
        fitted += [_vectors(work / f"{n}.npz", list(_texts(folder, args.files)), embedder)
                   for n, folder in enumerate(args.text)]  # fmt: skip
        one, other = ([vectors[documents % 2 == half] for vectors, documents in fitted] for half in (0, 1))
        xquad, questions = corpora.xquad(args.data)
        clapnq, answerable, _ = corpora.clapnq(args.data)
        unfitted = _vectors(work / "unfitted.npz", [*xquad, *clapnq], embedder)[0]
        sets = {
            "MTRAG": (other[0], [*corpora.mtrag_human(args.data), *corpora.mtrag_un(args.data)]),
            "XQuAD and CLAPNQ among all of it": (np.concatenate([unfitted, *other]), [*questions[::4], *answerable]),
        }
        found = _directions(one)
        for name, (corpus, asked) in sets.items():
            texts = embedder.embed([question.text for question in asked])
            _compare(report, f"{name}, {len(corpus):,} chunks", corpus, texts, found, args.dimensions)
        if args.write:
            short.FOLDER.mkdir(exist_ok=True)
            kept = _directions([vectors for vectors, _ in fitted])[:, : args.write]
            np.save(short.FOLDER / f"{embedder.fingerprint}.npy", kept.astype("<f2"))
    report.close()


def _directions(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the eigenvectors of the second moments, the largest first; each part counts the same."""
    moments = sum(part.T.astype(np.float64) @ part / len(part) for part in parts)
    return np.asarray(np.linalg.eigh(moments)[1][:, ::-1], np.float32)


def _compare(report: Report, name: str, corpus: np.ndarray, questions: np.ndarray, directions: np.ndarray,
             lengths: Sequence[int]) -> None:  # fmt: skip
    true = np.argsort(-(questions @ corpus.T), axis=1)
    held = short.unpack(short.pack(corpus))
    arms: dict[str, np.ndarray | None] = {"full": None, **{f"{n} directions": directions[:, :n] for n in lengths}}
    for arm, kept in arms.items():
        if kept is not None:
            ours = corpus @ kept
            order = np.argsort(-(questions @ kept @ (ours / np.linalg.norm(ours, axis=1, keepdims=True)).T), axis=1)
            for k in _DEPTHS:
                report.add(name, arm, f"short, {k}", _recall(true, order[:, : short.candidates(k)], k))
        with tempfile.TemporaryDirectory() as folder:
            store = VectorStore(Path(folder), kept)
            store.upsert([str(n) for n in range(len(corpus))], corpus, [{"document_id": "d"}] * len(corpus))
            for k in _DEPTHS:
                wanted = k if kept is None else short.candidates(k)
                best = []
                for question in questions:
                    rows = np.array([int(row) for row, _ in store.query(question[None], wanted)[0]])
                    best.append(rows[np.argsort(-(held[rows] @ question), kind="stable")[:k]])
                report.add(name, arm, f"index, {k}", _recall(true, best, k))
            store.close()


def _recall(true: np.ndarray, found: Sequence[np.ndarray] | np.ndarray, k: int) -> float:
    """Return the share of the true first *k* among what was found."""
    return float(np.mean([len(np.intersect1d(one[:k], other)) / k for one, other in zip(true, found, strict=True)]))


def _vectors(path: Path, passages: Sequence[Passage], embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of all chunks, and the number of each one's document."""
    if not path.is_file():
        own = [
            (n, chunk.text)
            for n, p in enumerate(passages)
            for chunk in split([Segment(p.text, heading=(p.title,) if p.title else ())], embedder, document_id=p.id)
        ]
        np.savez(path, vectors=embedder.embed([text for _, text in own]), documents=np.array([n for n, _ in own]))
    with np.load(path) as stored:
        return stored["vectors"], stored["documents"]


def _texts(folder: Path, files: int) -> Iterator[Passage]:
    """Yield text files and pages under *folder*, spread over it; markup is cut out roughly."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".txt", ".rst")
                   and 4_000 < path.stat().st_size < 1_000_000)  # fmt: skip
    for path in paths[:: max(1, len(paths) // files)][:files]:
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".html":
            text = re.sub(r"(?is)<(script|style|head|nav)\b.*?</\1>", " ", text)
            text = html.unescape(re.sub(r"<[^>]+>", " ", text))
        yield Passage(path.name, re.sub(r"[ \t]+", " ", text)[:_PAGE])


if __name__ == "__main__":
    main()
