"""Ingest: how fast documents get in beside the plain stack, and what a large text costs in memory.

Rate: the same files and the same passages. The peer is ``Chroma.from_documents`` with ``HuggingFaceEmbeddings`` at
their defaults, handed our passages ready made, so that its clock runs over embedding and writing alone; ours runs over
reading, cutting, embedding and writing. Each run is a process of its own, and the arms take turns.

Memory: a text of ``--text-mb`` is read and cut with the real parser and tokenizer, and one of ``--index-mb`` goes all
the way into an index that is open and holds a document. Embedding is the same work for each batch, whatever the size of
the file, and would take hours for 300 MB: in the second measure only the first batches are embedded, and their vectors,
moved a little, stand for the rest. RSS is that of the process and its parser together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from assistant.memory import set_up_process
from assistant.settings import Settings

from .report import Report, arguments, require_data

if TYPE_CHECKING:
    import numpy as np

    from assistant.embedding import Embedder
    from assistant.records import IngestProgress

_PER_FILE = 4  # passages
_MB = 1_000_000
_CHUNK_KB = 2.3  # of RAM a chunk takes in the index


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, or one arm of it in this process."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=120, help="files to ingest for the rate")
    parser.add_argument("--runs", type=int, default=3, help="runs of each arm")
    parser.add_argument("--text-mb", type=int, default=300, help="text to read and cut; 0 skips it")
    parser.add_argument("--index-mb", type=int, default=30, help="text to bring into an index; 0 skips it")
    parser.add_argument("--one-line", action="store_true", help="write these texts without a line break")
    parser.add_argument("--arm", choices=tuple(_ARMS), help="run one arm here, on --folder")
    parser.add_argument("--folder", type=Path, help="what an arm works on")
    options = parser.parse_args(argv)
    if options.arm:
        if options.arm != "from_documents":
            set_up_process()  # as our entry points do
        sys.stdout.write(json.dumps(_ARMS[options.arm](options.folder)) + "\n")
        return 0
    require_data(options.data, "mtrag/corpus.jsonl", "mtrag/distractors.jsonl")
    passages = list(_passages(options.data))
    report = Report("ingest", options.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.files and options.runs:
            rate(folder, passages, options, report)
        for arm, size in (("read and cut", options.text_mb), ("into the index", options.index_mb)):
            if size:
                memory(folder, passages, options.data, arm, size, report, one_line=options.one_line)
    report.close()
    return 0


def rate(folder: Path, passages: list[str], options: Any, report: Report) -> None:
    """Let both arms ingest the same files, in turns."""
    documents = folder / "documents"
    documents.mkdir()
    size = 0
    for number in range(options.files):
        text = "\n\n".join(passages[number * _PER_FILE : (number + 1) * _PER_FILE])
        (documents / f"{number:04d}.txt").write_text(text, encoding="utf-8")
        size += len(text.encode())
    _run("cut", folder, options.data)  # writes the passages that the peer gets
    found: dict[str, list[dict[str, float]]] = {"thimble": [], "from_documents": []}
    for _ in range(options.runs):
        for arm, runs in found.items():
            runs.append(_run(arm, folder, options.data))
    for arm, runs in found.items():
        report.add(f"{options.files} files", arm, "chunks", [run["chunks"] for run in runs])
        report.add(f"{options.files} files", arm, "chunks a second", [run["chunks"] / run["seconds"] for run in runs])
        report.add(f"{options.files} files", arm, "text", [size / run["seconds"] / 1000 for run in runs], "kB/s")
        report.add(f"{options.files} files", arm, "peak RSS above start", [run["peak_mb"] for run in runs], "MB")
    pairs = zip(found["thimble"], found["from_documents"], strict=True)
    report.add(f"{options.files} files", "thimble", "times the peer", [p["seconds"] / t["seconds"] for t, p in pairs])


def memory(folder: Path, passages: list[str], data: Path, arm: str, size_mb: int, report: Report, *,
           one_line: bool = False) -> None:  # fmt: skip
    """Measure what one large text adds to RSS."""
    path = folder / "large.txt"
    with path.open("w", encoding="utf-8") as stream:
        written = copy = 0
        while written < size_mb * _MB:
            copy += 1
            for number, text in enumerate(passages):
                text = f"Passage {copy}.{number}. {text}"
                written += stream.write(" ".join(text.split()) + " " if one_line else text + "\n\n")
                if written >= size_mb * _MB:
                    break
    run = _run(arm, path, data)
    name = f"one {'line' if one_line else 'text'}, {arm}"
    report.add(name, f"{size_mb} MB", "chunks", run["chunks"])
    report.add(name, f"{size_mb} MB", "seconds", run["seconds"], "s")
    report.add(name, f"{size_mb} MB", "peak RSS above start", run["peak_mb"], "MB")
    if arm == "into the index":
        report.add(
            name, f"{size_mb} MB", "less 2.3 kB a chunk", run["peak_mb"] - run["chunks"] * _CHUNK_KB / 1000, "MB"
        )
        report.add(name, f"{size_mb} MB", "embedded by the model", run["embedded"], "chunks")
    path.unlink()


# Arms: each in a process of its own


def _cut(folder: Path) -> dict[str, float]:
    """Write the passages that our ingest would make of the files."""
    from assistant.chunking import split
    from assistant.loaders import Parser, find

    with _embedder() as embedder, Parser() as parser, (folder / "chunks.jsonl").open("w", encoding="utf-8") as stream:
        for file in find([folder / "documents"]):
            for chunk in split(parser.load(file.path), embedder):
                stream.write(json.dumps({"text": chunk.text, "source": file.shown}) + "\n")
    return {}


def _thimble(folder: Path) -> dict[str, float]:
    """Ingest the files as a user would."""
    from assistant.index import Index
    from assistant.ingest import Ingestor

    with _embedder() as embedder, tempfile.TemporaryDirectory() as store:
        embedder.embed(["warm"])
        with Index.open(Path(store), dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
            with _Peak() as peak:
                began = time.perf_counter()
                done = Ingestor(index, embedder).ingest([folder / "documents"])
                seconds = time.perf_counter() - began
            assert index.chunk_count() == done.chunks_embedded
    return {"chunks": done.chunks_embedded, "seconds": seconds, "peak_mb": peak.above_mb}


def _peer(folder: Path) -> dict[str, float]:
    """Let LangChain's usual pair embed and write the same passages."""
    import warnings

    warnings.simplefilter("ignore")
    from langchain_community.embeddings import HuggingFaceEmbeddings
    from langchain_community.vectorstores import Chroma
    from langchain_core.documents import Document

    embeddings = HuggingFaceEmbeddings(model_name=str(Settings().models_dir / "all-minilm-l6-v2"))
    embeddings.embed_query("warm")
    documents = []
    for line in (folder / "chunks.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        documents.append(Document(page_content=row["text"], metadata={"source": row["source"]}))
    with tempfile.TemporaryDirectory() as store, _Peak() as peak:
        began = time.perf_counter()
        Chroma.from_documents(documents, embeddings, persist_directory=store)
        seconds = time.perf_counter() - began
    return {"chunks": len(documents), "seconds": seconds, "peak_mb": peak.above_mb}


def _read_and_cut(path: Path) -> dict[str, float]:
    """Read and cut one text, keeping nothing."""
    from assistant.chunking import split
    from assistant.loaders import Parser

    with _embedder() as embedder, Parser() as parser, _Peak() as peak:
        began = time.perf_counter()
        count = sum(1 for _ in split(parser.load(path), embedder, document_id="large"))
        seconds = time.perf_counter() - began
    return {"chunks": count, "seconds": seconds, "peak_mb": peak.above_mb}


def _into_the_index(path: Path) -> dict[str, float]:
    """Ingest one text; vectors after the first batches are those again, moved a little."""
    import numpy as np

    from assistant.index import Index
    from assistant.ingest import Ingestor

    with _embedder() as embedder, tempfile.TemporaryDirectory() as store:
        real, known = embedder.embed, list[np.ndarray]()
        random = np.random.default_rng(0)

        def embed(texts: list[str], **options: Any) -> np.ndarray:
            if len(known) < 3:
                known.append(real(texts, **options))
                return known[-1]
            moved = random.normal(0, 0.02, (len(texts), embedder.dimension)).astype(np.float32)
            vectors: np.ndarray = known[random.integers(3)][: len(texts)] + moved
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            return vectors

        first = path.with_name("first.txt")
        first.write_text("A document that was there before.")
        with Index.open(Path(store), dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index:
            Ingestor(index, embedder).ingest([first])
            embedder.embed = embed  # type: ignore[method-assign, assignment]
            with _Peak() as peak:
                began = time.perf_counter()
                done = Ingestor(index, embedder).ingest([path], on_progress=_Told(peak))
                seconds = time.perf_counter() - began
    return {"chunks": done.chunks_embedded, "seconds": seconds, "peak_mb": peak.above_mb,
            "embedded": sum(map(len, known))}  # fmt: skip


class _Told:
    """Says on standard error, once for so many chunks, how far a long run is and what it took so far."""

    every = 10_000

    def __init__(self, peak: _Peak) -> None:
        self._peak, self._next = peak, self.every

    def __call__(self, progress: IngestProgress) -> None:
        if progress.chunks_done >= self._next:
            self._next += self.every
            above = self._peak.above_mb
            less = above - progress.chunks_done * _CHUNK_KB / 1000
            print(f"{progress.chunks_done} chunks of {progress.bytes_done / _MB:.0f} MB: peak {above:.0f} MB above "
                  f"start, {less:.0f} MB less the index's own", file=sys.stderr, flush=True)  # fmt: skip


_ARMS = {
    "cut": _cut, "thimble": _thimble, "from_documents": _peer, "read and cut": _read_and_cut,
    "into the index": _into_the_index,
}  # fmt: skip


@contextmanager
def _embedder() -> Iterator[Embedder]:
    from assistant.embedding import load_embedder
    from assistant.models import resolve
    from assistant.worker import TorchWorker

    worker = TorchWorker(psutil.cpu_count(logical=False) or 1)
    embedder = load_embedder(resolve("packaged", Settings().models_dir, kind="embedder"), worker)
    try:
        yield embedder
    finally:
        embedder.close()
        worker.close()


class _Peak:
    """Samples the RSS of this process and its children, above what it was at the start."""

    above_mb = 0.0

    def __enter__(self) -> _Peak:
        self._process = psutil.Process()
        self._start = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.above_mb = max(self.above_mb, (self._now() - self._start) / _MB)

    def _now(self) -> int:
        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return int(total)


def _run(arm: str, folder: Path, data: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.ingest", "--data", str(data), "--arm", arm, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _passages(data: Path) -> Iterator[str]:
    for name in ("corpus", "distractors"):
        with (data / "mtrag" / f"{name}.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)["text"]


if __name__ == "__main__":
    sys.exit(main())
