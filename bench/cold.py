"""Cold start: from the command to the first quote and the first word, beside the plain stack.

Each run is a process of its own with an index and no session; files are in the page cache. The peer is the shortest
script that tutorials give: LangChain's ``HuggingFaceEmbeddings`` and ``Chroma``, and transformers' ``generate`` with a
streamer, with the same models, the same document and the same question.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

from assistant.settings import ROOT, Settings

from .report import Report, arguments

_QUESTION = "How long is the notice period?"
_TEXT = """# Handbook

The notice period is three months for employees and six months for managers. Notice must be given in writing.

## Holidays

Every employee has thirty days of paid holiday a year. Unused days carry over until the end of March.
"""
_MARK = "\x1e"  # between the parts of the peer's output


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, or the peer's arm in this process."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--runs", type=int, default=5, help="runs of each arm")
    parser.add_argument("--plain", type=Path, help="run the peer here, on this folder")
    options = parser.parse_args(argv)
    if options.plain:
        _plain(options.plain)
        return 0
    report = Report("cold", options.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "handbook.md").write_text(_TEXT, encoding="utf-8")
        environment = os.environ | {
            "THIMBLE_STORE_DIR": str(folder / "store"), "THIMBLE_HISTORY_DIR": str(folder / "history"),
            "HF_HUB_OFFLINE": "1",  # the peer would ask the hub about folders it has
        }  # fmt: skip
        ours = [sys.executable, "-m", "assistant"]
        subprocess.run([*ours, "ingest", str(folder / "handbook.md")], env=environment, cwd=ROOT, check=True)
        arms = {
            "thimble": ([*ours, "ask", _QUESTION], "\n\n"),  # an empty line ends the quotes
            "plain stack": ([sys.executable, "-W", "ignore", "-m", "bench.cold", "--plain", temporary], _MARK),
        }
        times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
        for command, _ in arms.values():  # once, for the page cache
            subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
        for _ in range(options.runs):
            for name, (command, end) in arms.items():
                times[name].append(_timed(command, end, environment))
    for name, runs in times.items():
        for metric, values in zip(("first quote", "first word", "prompt back"), zip(*runs, strict=True), strict=True):
            report.add("one question", name, metric, values, "s")
    report.close()
    return 0


def _timed(command: list[str], end_of_quotes: str, environment: dict[str, str]) -> tuple[float, float, float]:
    """Return the seconds to the first quote, to the first word after the quotes, and to the end of the process."""
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        seen, quote, word = b"", 0.0, 0.0
        while piece := os.read(run.stdout.fileno(), 65536):
            seen += piece
            now = time.perf_counter() - started
            quotes, found, rest = seen.decode(errors="ignore").partition(end_of_quotes)
            quote = quote or (now if quotes.strip() else 0.0)
            word = word or (now if found and rest.strip() else 0.0)
    if run.returncode or not word:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode} and printed {seen!r}")
    return quote, word, time.perf_counter() - started


def _plain(folder: Path) -> None:
    """Answer the question as a tutorial would; print the first passage found, a mark, and the words as they come."""
    from langchain_community.embeddings import HuggingFaceEmbeddings
    from langchain_community.vectorstores import Chroma
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    models = Settings().models_dir
    embeddings = HuggingFaceEmbeddings(model_name=str(models / "all-minilm-l6-v2"))
    vectors = Chroma("plain", embeddings, persist_directory=str(folder / "plain"))
    if not vectors.get()["ids"]:
        vectors.add_texts(_TEXT.split("\n\n"))
    found = "\n\n".join(document.page_content for document in vectors.similarity_search(_QUESTION))
    sys.stdout.write(found + _MARK)
    sys.stdout.flush()
    path = models / "smollm2-135m-instruct"
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    messages = [
        {"role": "system", "content": f"Answer from this context:\n{found}"},
        {"role": "user", "content": _QUESTION},
    ]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {**inputs, "max_new_tokens": 40, "do_sample": False, "streamer": streamer}
    writing = Thread(target=model.generate, kwargs=options)
    writing.start()
    for piece in streamer:
        sys.stdout.write(piece)
        sys.stdout.flush()
    writing.join()


if __name__ == "__main__":
    raise SystemExit(main())
