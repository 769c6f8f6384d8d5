"""The memory plan held against what a process really occupies, over models, contexts and sizes of the index.

Each row is a process of its own: it asks a question that fills the context, then ingests a text file, and the peaks
that the kernel saw, of an ingest with the parser's process, stand beside what the plan said before anything was loaded;
what the plan keeps in reserve (headroom) is left out. ``error`` is (predicted - measured) / measured: above 0 the plan
was cautious, below it too hopeful.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import Report, arguments

if TYPE_CHECKING:
    from assistant import Assistant

MIB = 1 << 20
WORDS = "The kettle of model {0} is descaled every {1} weeks with {2} grams of citric acid, says the manual. "


def main() -> None:
    """Run every case and print predictions beside peaks."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--dtypes", nargs="+", default=["none", "auto", "bf16", "fp32"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--chunks", nargs="+", type=int, default=[0, 10_000, 50_000])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_one(**json.loads(args.one))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        stores = {chunks: _prepared(Path(scratch) / str(chunks), chunks) for chunks in args.chunks}
        report = Report("memory", args.json)
        for dtype in args.dtypes:
            for context in args.contexts if dtype != "none" else args.contexts[-1:]:
                for chunks, store in stores.items():
                    case = {"dtype": dtype, "context": context, "store": str(store)}
                    found = _in_a_process(case)
                    if found is not None:
                        _add(report, f"{found['dtype'] or 'none'}, context {context}, {chunks} chunks", found)
        report.close()


def _in_a_process(case: dict[str, Any]) -> dict[str, Any] | None:
    done = subprocess.run([sys.executable, "-m", "bench.memory", "--one", json.dumps(case)], capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        print(f"{case} failed:\n{done.stderr[-800:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _add(report: Report, name: str, found: dict[str, Any]) -> None:
    for part in ("", "ingest, "):
        predicted, measured = found[f"{part}predicted"], found[f"{part}measured"]
        report.add("plan", name, f"{part}predicted", predicted / MIB, "MiB")
        report.add("plan", name, f"{part}measured", measured / MIB, "MiB")
        report.add("plan", name, f"{part}error", 100 * (predicted - measured) / measured, "%")
    report.add("plan", name, "anonymous after", found["anonymous"] / MIB, "MiB")
    report.add("plan", name, "prompt", found["prompt"], "tokens")


def _prepared(folder: Path, chunks: int) -> Path:
    """Make stores that hold one text and as many chunks more."""
    from assistant import Assistant, Settings

    folder.mkdir()
    (folder / "text.txt").write_text("".join(WORDS.format(n, n % 9, n % 50) for n in range(200)), encoding="utf-8")
    settings = Settings(model="none", history_dir=folder / "history", store_dir=folder / "store")
    with Assistant(settings) as assistant:
        if chunks:
            _fill(assistant, chunks)
        assistant.ingest([folder / "text.txt"])
    return folder


def _one(dtype: str, context: int, store: str) -> dict[str, int | str]:
    """Ask with a prompt that fills the context, in a fresh process; return prediction and peak."""
    from assistant import Assistant, Settings
    from assistant.inference import Sampling
    from assistant.memory import PeakMeter, anonymous_rss

    new_tokens, prompt = 32, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "stores"
        shutil.copytree(store, folder)
        settings = Settings(
            model="none" if dtype == "none" else "packaged", dtype="auto" if dtype == "none" else dtype,
            context_tokens=context, max_new_tokens=new_tokens, history_dir=folder / "history",
            store_dir=folder / "store", answer_threshold=0.0, prefix_cache=False,
        )  # fmt: skip
        with Assistant(settings) as assistant, PeakMeter() as meter:
            plan = assistant.parts.plan
            assistant.ask("How often is the kettle of model 17 descaled?", session_id="a")
            model = assistant.parts.chat_model
            if model is not None:
                text = "".join(WORDS.format(n, n % 9, n % 50) for n in range(200))
                prompt = context - new_tokens - 8
                while model.count_prompt([{"role": "user", "content": text}]) > prompt:
                    text = text[: int(len(text) * 0.98)]
                prompt = model.count_prompt([{"role": "user", "content": text}])
                generation = model.start([{"role": "user", "content": text}], Sampling(max_new_tokens=new_tokens))
                for _ in generation:
                    pass
            assistant.ask("And how much acid does it take?", session_id="a")
            anonymous = anonymous_rss()
            asked = meter.peak
            added, ingested = _ingest(assistant, Path(scratch))
        for_ingest = plan.resident + plan.part("ingest") + plan.part("parser") + added * plan.chunk_bytes
        return {"dtype": plan.dtype, "predicted": plan.for_turn(prompt, new_tokens), "measured": asked,
                "ingest, predicted": for_ingest, "ingest, measured": ingested, "anonymous": anonymous,
                "prompt": prompt}  # fmt: skip


def _ingest(assistant: Assistant, folder: Path) -> tuple[int, int]:
    """Ingest a text file; return the number of its chunks, and the peak of this process and the parser's together."""
    import psutil

    from assistant.memory import PeakMeter, tree_rss

    path = folder / "long.txt"
    path.write_text("".join(WORDS.format(n * 7, n % 11, n % 60) for n in range(2_000)), encoding="utf-8")
    most, done = 0, threading.Event()

    own = psutil.Process()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            with suppress(psutil.Error):
                # A fork that has not become the parser yet shows our own pages: they would count twice.
                parsers = [child for child in own.children() if child.cmdline() != own.cmdline()]
                most = max(most, sum(tree_rss(child.pid) for child in parsers))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with PeakMeter() as meter:
        chunks = assistant.ingest([path]).chunks_embedded
    done.set()
    watcher.join()
    return chunks, meter.peak + most


def _fill(assistant: object, chunks: int) -> None:
    """Put random vectors into the index through its own write path."""
    import numpy as np

    from assistant.records import Chunk, DocumentInfo

    index = assistant.parts.index  # type: ignore[attr-defined]
    draw = np.random.default_rng(7)
    info = DocumentInfo("filler", "filler", "filler", "ready", "0", 1, 1, chunks, 0.0)
    index.begin_document(info)
    for start in range(0, chunks, 1000):
        vectors = draw.standard_normal((min(1000, chunks - start), 384)).astype("float32")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        batch = [
            Chunk(
                f"filler-{start + n}", "filler", start + n, f"row {start + n} of the filler", start + n, start + n + 1
            )
            for n in range(len(vectors))
        ]
        index.add_chunks("filler", batch, vectors)
    index.finish_document("filler", info=info)


if __name__ == "__main__":
    main()
