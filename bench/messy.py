"""Real, messy documents: how each file ends, and how much of its text is found.

Every file below ``messy/`` goes through the parser child as an ingest would send it. The text of the files that come
with a reference (docling's Markdown, or its JSON where that alone is there) is compared with it word by word.

With ``--ingest`` the files go all the way instead, in one call: parser, chunker, embedder, Chroma and SQLite. Each must
end in the index with chunks that both stores hold, or refused there with its reason, and a second call must find
nothing to do. ``--files N`` takes every so many-th file, for a quick look.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from html import unescape
from pathlib import Path
from typing import Any

from assistant.chunking import extracted
from assistant.errors import DocumentError
from assistant.index import Index
from assistant.ingest import Ingestor
from assistant.loaders import Parser
from assistant.models import resolve
from assistant.records import IngestProgress
from assistant.settings import Settings
from assistant.worker import TorchWorker

from .report import Report, arguments, require_data

_WORD = re.compile(r"\w+")
_TARGETS = ("txt", "wiki", "tei")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="name the N files with the lowest recall")
    parser.add_argument("--refused", action="store_true", help="list the files refused, with their reasons")
    parser.add_argument("--ingest", action="store_true", help="bring every file into a real index instead")
    parser.add_argument("--files", type=int, default=0, help="with --ingest: about so many of the files; 0 is all")
    options = parser.parse_args(argv)
    require_data(options.data, "messy")
    root = (options.data / "messy").resolve()
    report = Report("messy", options.json)
    if options.ingest:
        ingested(root, report, options.files, list_refused=options.refused)
        report.close()
        return 0
    outcomes(root, report, list_refused=options.refused)
    recall(root, report, options.worst)
    report.close()
    return 0


def outcomes(root: Path, report: Report, *, list_refused: bool) -> None:
    """Send every file through the parser: it must give text, or one reason; whatever else happens counts against us."""
    counts: Counter[str] = Counter()
    slowest, characters, bytes_read = 0.0, 0, 0
    began = time.perf_counter()
    with Parser(timeout_s=60) as parser:
        for path in sorted(root.rglob("*")):
            if not path.is_file():
                continue
            started = time.perf_counter()
            bytes_read += path.stat().st_size
            try:
                length = sum(len(segment.text) for segment in parser.load(path, name=str(path.relative_to(root))))
                outcome = "indexed" if length else "neither"
                characters += length
            except DocumentError as error:
                outcome = "refused" if error.reason and "Traceback" not in str(error) else "neither"
                counts[type(error).__name__] += 1
                if list_refused:
                    sys.stdout.write(f"{path.relative_to(root)}: {type(error).__name__}: {error.reason}\n")
            except Exception as error:  # noqa: BLE001 - counted: this is what must not happen
                outcome = "crashed"
                sys.stdout.write(f"{path.relative_to(root)}: {type(error).__name__}: {error}\n")
            counts[outcome] += 1
            seconds = time.perf_counter() - started
            slowest = max(slowest, seconds)
            counts["over 60 s"] += seconds > 60
    total = time.perf_counter() - began
    for name in ("indexed", "refused", "neither", "crashed", "over 60 s"):
        report.add("outcomes", "thimble", name, counts[name], "files")
    report.add("outcomes", "thimble", "slowest", slowest, "s")
    report.add("outcomes", "thimble", "all", total, "s")
    for name in sorted(counts):
        if name.endswith("Error"):
            report.add("refused", "thimble", name, counts[name], "files")


def ingested(root: Path, report: Report, most: int, *, list_refused: bool) -> None:
    """Bring the files into an index as a user would; how each ended is read from the index, not from the report."""
    from assistant.embedding import load_embedder

    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    files = files[:: max(1, len(files) // most)] if most else files
    worker = TorchWorker(2)
    embedder = load_embedder(resolve("packaged", Settings().models_dir, kind="embedder"), worker)
    slowest, last = (0.0, ""), time.perf_counter()

    def seen(progress: IngestProgress) -> None:
        nonlocal slowest, last
        now = time.perf_counter()
        slowest, last = max(slowest, (now - last, progress.file)), now

    counts: Counter[str] = Counter()
    began = last
    with (
        tempfile.TemporaryDirectory() as name,
        Index.open(Path(name), dimension=embedder.dimension, fingerprint=embedder.fingerprint) as index,
    ):
        ingestor = Ingestor(index, embedder)
        done = ingestor.ingest(files, on_progress=seen)
        total = time.perf_counter() - began
        known = {document.source: document for document in index.all_documents()}
        for path in files:
            document = known.get(str(path))
            if document is not None and document.status == "ready" and document.chunk_count:
                counts["indexed"] += 1
            elif document is not None and document.status == "refused" and _clear(document.reason):
                counts["refused"] += 1
                counts[str(document.metadata["error"])] += 1
                if list_refused:
                    sys.stdout.write(f"{path.relative_to(root)}: {document.reason}\n")
            else:
                counts["neither"] += 1
                sys.stdout.write(f"neither: {path.relative_to(root)}: {document}\n")
        health, chunks = index.check(), index.chunk_count()
        again = ingestor.ingest(files)
    embedder.close()
    worker.close()
    report.add("ingest", "thimble", "files", len(files))
    for name in ("indexed", "refused", "neither"):
        report.add("ingest", "thimble", name, counts[name], "files")
    report.add("ingest", "thimble", "chunks", chunks)
    report.add("ingest", "thimble", "longest without a word", slowest[0], "s")
    report.add("ingest", "thimble", "all", total, "s")
    report.add("ingest", "thimble", "problems of the index", len(health.problems))
    report.add("ingest", "thimble", "embedded", done.chunks_embedded)
    report.add("ingest", "again", "embedded", again.chunks_embedded)
    report.add("ingest", "again", "all", again.seconds, "s")
    for name in sorted(counts):
        if name.endswith("Error"):
            report.add("refused", "thimble", name, counts[name], "files")
    sys.stdout.write(f"longest without a word: {slowest[1]}\n")


def _clear(reason: str) -> bool:
    """Tell whether a reason is one line that names no insides of ours."""
    return bool(reason) and "\n" not in reason and "Traceback" not in reason


def recall(root: Path, report: Report, worst: int) -> None:
    """Compare with the reference Markdown: share of its words (with their number) that our text has."""
    scores: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    with Parser(timeout_s=60) as parser:
        for source, reference in sorted(pairs(root)):
            try:
                ours = words("".join(extracted(parser.load(source))))
            except DocumentError:
                ours = Counter()
            theirs = words(reference_text(reference))
            if theirs:
                found = sum((ours & theirs).values()) / theirs.total()
                scores[source.suffix[1:].lower()].append((found, theirs.total(), str(source.relative_to(root))))
    for kind, files in sorted(scores.items()):
        total = sum(count for _, count, _ in files)
        report.add("recall of words", kind, "over all words", sum(score * count for score, count, _ in files) / total)
        report.add("recall of words", kind, "mean of files", sum(score for score, _, _ in files) / len(files))
        report.add("recall of words", kind, "lowest", min(score for score, _, _ in files))
        report.add("recall of words", kind, "files", len(files))
    for score, count, name in sorted(item for files in scores.values() for item in files)[:worst]:
        sys.stdout.write(f"{score:.3f} of {count} words: {name}\n")


def pairs(root: Path) -> set[tuple[Path, Path]]:
    """Return the sources with their reference, where both are there."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in root.rglob("*"):
        if path.is_file() and "groundtruth" not in path.parts:
            by_name[path.name].append(path)
    found = set()
    references = sorted(root.rglob("groundtruth/*.md"))
    written = {path.with_suffix("") for path in references}
    references += [path for path in sorted(root.rglob("groundtruth/*.json")) if path.with_suffix("") not in written]
    for reference in references:
        kind = reference.parent.parent
        for name in (reference.stem, f"{reference.stem}.{kind.name}", *(f"{reference.stem}.{end}" for end in _TARGETS)):
            for source in by_name.get(name, []):
                if kind in source.parents and source.is_file():
                    found.add((source, reference))
    return found


def reference_text(path: Path) -> str:
    """Return the text of a reference: Markdown as people read it, or the texts and table cells of docling's JSON."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return plain(text)
    document = json.loads(text)
    if not isinstance(document, dict) or "texts" not in document:
        return ""
    parts = [item.get("text", "") for item in document["texts"] if not _in_table(item, document)]
    for table in document.get("tables", []):
        if not table.get("annotations"):
            parts += [cell.get("text", "") for cell in table["data"]["table_cells"]]
    return "\n".join(parts)


def _in_table(item: dict[str, Any], document: dict[str, Any]) -> bool:
    """Tell whether a text of docling's JSON is part of a table, whose cells hold it too."""
    while (place := item.get("parent", {}).get("$ref", "")).startswith("#/groups/"):
        item = document["groups"][int(place.rpartition("/")[2])]
    return bool(place.startswith("#/tables/"))


def plain(markdown: str) -> str:
    """Return a reference without what is markup: placeholders of images, escapes, targets of links, entities."""
    text = re.sub(r"<!--.*?-->", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"(!?\[[^\]]*\])\([^)]*\)", r"\1", text)
    text = unescape(re.sub(r"\\([_*#\[\]()`~|<>-])", r"\1", text))
    return re.sub(r"</?[a-z]+[^>]*>", " ", text)


def words(text: str) -> Counter[str]:
    """Count the words of a text, without case."""
    return Counter(_WORD.findall(text.replace("_", " ").lower()))


if __name__ == "__main__":
    sys.exit(main())
