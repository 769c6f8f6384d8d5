"""How fast a turn is read and written, beside llama.cpp and transformers, and what small weights cost in quality.

Every arm is a process of its own over the same weights, so that its RSS is its own; the arms take turns within one
run, with 2 threads each, and the figures are medians with their spread. Reading and writing are timed apart; a whole
turn is the time to read the prompt and to write 100 tokens at the measured rate, since greedy answers differ in length.
On a machine that does other work, compare CPU times, with ``--threads 1``: threads that spin while they wait count too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Nothing of ours up here that needs a package: the peer's environment has none of them.
from bench.report import Report, arguments, require_data

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = (ROOT / "prompts" / "system.md").read_text(encoding="utf-8").strip()
MODEL = "smollm2-135m-instruct"
TURN_TOKENS = 100
Messages = list[dict[str, str]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = arguments(__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder of the prepared models")
    parser.add_argument("--gguf", type=Path, default=ROOT / "build" / "bench" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--peer-python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=40, help="questions of the answer and lookup figures")
    parser.add_argument("--quality-arms", nargs="+", default=["thimble bf16", "thimble int8", "thimble"])
    parser.add_argument("--only", choices=("speed", "quality"), default=None)
    parser.add_argument("--arm", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.arm:
        serve(args.arm, args)
        return
    require_data(args.data, "xquad/corpus.jsonl", "xquad/queries.jsonl", "xquad/qrels.tsv")
    report = Report("inference", args.json)
    if args.only != "quality":
        speed(args, report)
    if args.only != "speed":
        quality(args, report)
    report.close()


def speed(args: argparse.Namespace, report: Report) -> None:
    """Time reading, writing, whole turns and follow-ups."""
    from assistant.inference.local import has_bfloat16

    names = ["thimble", "thimble torch", f"thimble {'bf16' if has_bfloat16() else 'fp32'}", "transformers"]
    if args.peer_python.exists() and args.gguf.exists():
        names += ["llama.cpp Q4_1", "llama.cpp Q4_0", "llama.cpp Q8_0"]
    else:
        print("llama.cpp is not measured: make bench-inference builds it")
    arms = {name: Arm(name, args) for name in names}
    try:
        for arm_process in arms.values():  # none is timed while another still loads
            arm_process.ask("ready")
        prompts = long_prompts(args.data, args.runs)
        for tokens, name in ((1500, "turn of 1,500 tokens"), (100, "turn of 100 tokens")):
            timed: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
            for number, messages in enumerate(cut(prompts, tokens, args.models)):
                for arm in rotated(list(arms), number):
                    if arm != "transformers" or number == 0:  # ten times as slow as the others
                        timed[arm].append(arms[arm].ask("turn", messages=messages, new=TURN_TOKENS))
            for arm, runs in timed.items():
                add_turns(report, name, arm, runs)
            reference = timed["transformers"][0]["text"]
            for arm, runs in timed.items():
                same = common(runs[0]["text"], reference) / max(1, len(reference))
                report.add(name, arm, "as transformers", 100 * same, "% of text")
        arms.pop("transformers").close()
        follow_ups(args, report, arms, prompts)
        lookups(args, report, arms)
    finally:
        for arm_process in arms.values():
            arm_process.close()


def add_turns(report: Report, name: str, arm: str, runs: list[dict[str, Any]]) -> None:
    """Add one arm's turns to the report."""
    report.add(name, arm, "read", [run["prompt"] / run["read_s"] for run in runs], "tok/s")
    report.add(name, arm, "write", [run["new"] / run["write_s"] for run in runs], "tok/s")
    turns = [run["read_s"] + TURN_TOKENS * run["write_s"] / run["new"] for run in runs]
    report.add(name, arm, "whole turn", turns, "s")
    cpu = [run["read_cpu"] + TURN_TOKENS * run["write_cpu"] / run["new"] for run in runs]
    report.add(name, arm, "CPU time of it", cpu, "s")
    report.add(name, arm, "peak RSS", max(run["rss"] for run in runs) / 2**20, "MiB")


def follow_ups(args: argparse.Namespace, report: Report, arms: dict[str, Arm], prompts: list[Messages]) -> None:
    """Time the first token of a second question: the head and the first turn are the same, the quotes are new."""
    timed: dict[str, list[float]] = {arm: [] for arm in arms}
    kept: dict[str, list[float]] = {arm: [] for arm in arms}
    spent: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(args.runs):
        first = cut([prompts[number]], 600, args.models)[0]
        second = cut([prompts[(number + 1) % len(prompts)]], 800, args.models)[0][-1]
        for arm in rotated(list(arms), number):
            said = arms[arm].ask("turn", messages=first, new=20, session="s", keep=True)["text"]
            messages = [*first, {"role": "assistant", "content": said}, second]
            again = arms[arm].ask("turn", messages=messages, new=2, session="s", keep=True)
            timed[arm].append(again["read_s"])
            kept[arm].append(again["cached"])
            spent[arm].append(again["read_cpu"])
    for arm, values in timed.items():
        report.add("follow-up in a session", arm, "first token", values, "s")
        report.add("follow-up in a session", arm, "CPU time of it", spent[arm], "s")
        report.add("follow-up in a session", arm, "prompt kept", kept[arm], "tokens")


def lookups(args: argparse.Namespace, report: Report, arms: dict[str, Arm]) -> None:
    """Time writing on real questions with their paragraphs, with drafts from the prompt and without.

    Once as llama.cpp writes, and once as the chain does, which lifts the tokens of the prompt (``prompt_bias``).
    """
    from assistant.settings import Settings

    bias = Settings().prompt_bias
    totals: dict[str, list[tuple[int, float, float]]] = {}
    counted = {label: Counter[str]() for label in ("thimble", "thimble, prompt_bias")}
    peers = [arm for arm in arms if not arm.startswith("thimble ")]
    for question, _, paragraphs in questions(args.data, args.questions):
        messages = evidence(paragraphs, question)
        for arm in peers:
            if arm != "thimble":
                run = arms[arm].ask("turn", messages=messages, new=64)
                totals.setdefault(arm, []).append((run["new"] - 1, run["write_s"], run["write_cpu"]))
                continue
            for label, lift in (("thimble", 0.0), ("thimble, prompt_bias", bias)):
                slow = arms[arm].ask("turn", messages=messages, new=64, lookup=False, bias=lift)
                fast = arms[arm].ask("turn", messages=messages, new=64, bias=lift)
                for name, run in ((f"{label}, no lookup", slow), (label, fast)):
                    totals.setdefault(name, []).append((run["new"] - 1, run["write_s"], run["write_cpu"]))
                counted[label].update({key: fast[key] for key in ("accepted", "drafted", "steps")})
                counted[label]["different"] += fast["text"] != slow["text"]
    name = f"answers to {args.questions} questions of XQuAD"
    for arm, runs in totals.items():
        new, seconds, cpu = (sum(column) for column in zip(*runs, strict=True))
        report.add(name, arm, "write", new / seconds, "tok/s")
        report.add(name, arm, "CPU time a token", 1000 * cpu / new, "ms")
    for arm, count in counted.items():
        report.add(name, arm, "drafts right", 100 * count["accepted"] / max(1, count["drafted"]), "%")
        report.add(name, arm, "tokens a step", 1 + count["accepted"] / max(1, count["steps"]))
        report.add(name, arm, "answers changed by lookup", count["different"])


def quality(args: argparse.Namespace, report: Report) -> None:
    """Measure perplexity and answers with each kind of weights, each question's beside the first arm's."""
    paragraphs = [row["text"] for row in lines(args.data / "xquad" / "corpus.jsonl")][::4]
    asked = questions(args.data, args.questions)
    right: dict[str, list[bool]] = {}
    for arm in args.quality_arms:
        process = Arm(arm, args)
        try:
            value = process.ask("perplexity", texts=paragraphs)
            report.add("quality", arm, "perplexity", value["perplexity"])
            held = right.setdefault(arm, [])
            for question, golds, context in asked:
                said = process.ask("turn", messages=evidence(context, question), new=48)["text"].lower()
                held.append(any(gold.lower() in said for gold in golds))
            report.add("quality", arm, "answers holding the gold span", 100 * sum(held) / len(asked), "%")
            pairs = Counter(zip(right[args.quality_arms[0]], held, strict=True))
            report.add("quality", arm, "only here", pairs[False, True], "answers")
            report.add("quality", arm, "only in the first arm", pairs[True, False], "answers")
        finally:
            process.close()


class Arm:
    """One contender, in a process of its own; asked by lines of JSON."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        python = args.peer_python if name.startswith("llama") else Path(sys.executable)
        command = [str(python), "-m", "bench.inference", "--arm", name, "--data", str(args.data)]
        command += ["--gguf", str(args.gguf), "--threads", str(args.threads)]
        self.name = name
        folder = args.models
        environment = dict(os.environ)
        if name == "thimble torch":  # the same weights without our kernels, which want them in an order of their own
            environment["ASSISTANT_KERNELS"] = "off"
            folder = beside(args.models)
        command += ["--models", str(folder)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, task: str, **values: Any) -> dict[str, Any]:
        """Have it do something; wait for what it says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task} | values) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def beside(models: Path) -> Path:
    """Link the models into a folder of their own, for small weights in another order."""
    folder = ROOT / "build" / "bench" / "models" / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    for path in (models / MODEL).iterdir():
        if not path.name.startswith("model.int") and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder.parent


def serve(name: str, args: argparse.Namespace) -> None:
    """Be one contender: answer lines of JSON until there are none."""
    if name.startswith("llama"):
        contender = llama_cpp(name.split()[1], args.gguf, args.threads)
    elif name == "transformers":
        contender = transformers_generate(args.models / MODEL, args.threads)
    else:
        dtype = name.removeprefix("thimble").strip()
        contender = thimble("auto" if dtype in ("", "torch") else dtype, args.models, args.threads)
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        answer = contender(task, request) if task != "ready" else {}
        out.write(json.dumps(answer | {"rss": peak_rss()}) + "\n")
        out.flush()


Contender = Callable[[str, dict[str, Any]], dict[str, Any]]


def thimble(dtype: str, models: Path, threads: int) -> Contender:
    """Run our own model, in a process set up as the assistant sets up its own."""
    from assistant import memory

    memory.set_up_process()
    from assistant.inference import Sampling
    from assistant.inference.local import LocalChatModel
    from assistant.worker import TorchWorker

    worker = TorchWorker(threads)
    model = LocalChatModel(models / MODEL, worker, dtype=dtype, prefix_cache_bytes=64 << 20)
    memory.trim()

    def do(task: str, request: dict[str, Any]) -> dict[str, Any]:
        if task == "perplexity":
            return {"perplexity": worker.run(perplexity, model, request["texts"])}
        if not request.get("keep"):
            model.release_caches()
        sampling = Sampling(max_new_tokens=request["new"], speculation=request.get("lookup", True),
                            prompt_bias=request.get("bias", 0.0))  # fmt: skip
        generation = model.start(request["messages"], sampling, session_id=request.get("session"))
        began = time.process_time()
        text = next(generation, "")
        first = time.process_time()
        text += "".join(generation)
        cpu = {"read_cpu": first - began, "write_cpu": time.process_time() - first}
        stats = generation.stats
        return {
            "text": text, "prompt": stats.prompt_tokens, "cached": stats.cached_tokens, "new": stats.new_tokens,
            "read_s": stats.prefill_s, "write_s": stats.decode_s, "accepted": stats.accepted,
            "drafted": stats.drafted, "steps": stats.steps,
        } | cpu  # fmt: skip

    return do


def perplexity(model: Any, texts: list[str]) -> float:
    """Compute the perplexity of texts by decoding steps, the way answers are written."""
    import torch

    engine = model._load()
    total, count = 0.0, 0
    for text in texts:
        tokens = model._text.encode(text)
        cache = engine.new_cache(len(tokens))
        at = 0
        while at < len(tokens) - 1:
            part = tokens[at : at + min(engine.step_room(cache), len(tokens) - 1 - at)]
            logits = engine.step(part, cache).float()
            targets = torch.tensor(tokens[at + 1 : at + 1 + len(part)])
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            at += len(part)
            count += len(part)
    return math.exp(total / count)


def transformers_generate(folder: Path, threads: int) -> Contender:
    """Run ``generate`` at its defaults."""
    import torch
    from transformers import AutoModelForCausalLM

    from assistant.inference.chat_text import ChatText
    from assistant.inference.local import has_bfloat16

    torch.set_num_threads(threads)
    text = ChatText(folder)
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    class Clock:
        def __init__(self) -> None:
            self.times: list[float] = []
            self.cpu: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())

        def end(self) -> None:
            pass

    def do(task: str, request: dict[str, Any]) -> dict[str, Any]:
        prompt, clock = text.prompt(request["messages"]), Clock()
        began, began_cpu = time.perf_counter(), time.process_time()
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request["new"], do_sample=False, streamer=clock
        )
        said = out[0, len(prompt) :].tolist()
        return {
            "text": text.decode(said), "prompt": len(prompt), "cached": 0, "new": max(1, len(said)),
            "read_s": clock.times[1] - began, "write_s": clock.times[-1] - clock.times[1],
            "read_cpu": clock.cpu[1] - began_cpu, "write_cpu": clock.cpu[-1] - clock.cpu[1],
        }  # fmt: skip

    return do


def llama_cpp(kind: str, gguf: Path, threads: int) -> Contender:
    """Run llama.cpp on the packaged GGUF, or on one requantized from it."""
    import llama_cpp as lib

    path = gguf if kind == "Q4_1" else gguf.with_name(gguf.name.replace("Q4_1", kind))
    if not path.exists():
        params = lib.llama_model_quantize_default_params()
        params.ftype = {"Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0}[kind]
        params.allow_requantize = True
        if lib.llama_model_quantize(str(gguf).encode(), str(path).encode(), params):
            raise SystemExit(f"llama.cpp can't make {path.name}.")
    model = lib.Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)

    def do(task: str, request: dict[str, Any]) -> dict[str, Any]:
        prompt = model.tokenize(render(request["messages"]).encode(), add_bos=False, special=True)
        if not request.get("keep"):
            model.reset()
        kept = 0
        for ours, theirs in zip(prompt[:-1], model._input_ids.tolist(), strict=False):
            if ours != theirs:
                break
            kept += 1
        said: list[int] = []
        began = time.perf_counter()
        first = began
        began_cpu = first_cpu = time.process_time()
        for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
            if not said:
                first, first_cpu = time.perf_counter(), time.process_time()
            if token == model.token_eos():
                break
            said.append(token)
            if len(said) == request["new"]:
                break
        return {
            "text": model.detokenize(said).decode(errors="replace"), "prompt": len(prompt), "cached": kept,
            "new": max(1, len(said)), "read_s": first - began, "write_s": time.perf_counter() - first,
            "read_cpu": first_cpu - began_cpu, "write_cpu": time.process_time() - first_cpu,
        }  # fmt: skip

    return do


def render(messages: Messages) -> str:
    """Write SmolLM2's chat template (ChatML) by hand: the peer's environment has none of our packages."""
    parts = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(parts) + "<|im_start|>assistant\n"


def long_prompts(data: Path, count: int) -> list[Messages]:
    """Make prompts of far over 1,500 tokens: paragraphs as quotes, and a request that takes long to answer."""
    texts = [row["text"] for row in lines(data / "xquad" / "corpus.jsonl")]
    return [
        evidence([texts[(number * 14 + at) % len(texts)] for at in range(14)], "Tell in detail what the quotes say.")
        for number in range(count)
    ]


def evidence(paragraphs: Sequence[str], question: str) -> Messages:
    """Make the chain's kind of prompt."""
    quotes = "\n".join(f"[{number}] {text}" for number, text in enumerate(paragraphs, 1))
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Quotes from the documents:\n{quotes}\n\nQuestion: {question}"},
    ]


def cut(prompts: list[Messages], tokens: int, models: Path) -> list[Messages]:
    """Shorten prompts to *tokens*, taking words from the end of the quotes."""
    from assistant.inference.chat_text import ChatText

    text = ChatText(models / MODEL)
    shortened = []
    for system, user in prompts:
        quotes, _, question = user["content"].rpartition("\n\nQuestion: ")
        words = quotes.split(" ")
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            content = f"{' '.join(words[:middle])}\n\nQuestion: {question}"
            fits = len(text.prompt([system, {"role": "user", "content": content}])) <= tokens  # type: ignore[list-item]
            low, high = (middle, high) if fits else (low, middle - 1)
        shortened.append([system, {"role": "user", "content": f"{' '.join(words[:low])}\n\nQuestion: {question}"}])
    return shortened


def questions(data: Path, count: int) -> list[tuple[str, list[str], list[str]]]:
    """Pick questions evenly, each with its gold spans and its paragraph."""
    folder = data / "xquad"
    texts = {row["_id"]: row["text"] for row in lines(folder / "corpus.jsonl")}
    with (folder / "qrels.tsv").open(encoding="utf-8") as file:
        next(file)
        gold = dict(line.split("\t")[:2] for line in file)
    rows = [row for row in lines(folder / "queries.jsonl") if row["_id"] in gold]
    picked = rows[:: max(1, len(rows) // count)][:count]
    return [(row["text"], spans(row["answers"]), [texts[gold[row["_id"]]]]) for row in picked]


def spans(answers: Any) -> list[str]:
    """Read gold spans, which come as texts or as objects with one."""
    found = answers["text"] if isinstance(answers, dict) else answers
    return [answer["text"] if isinstance(answer, dict) else answer for answer in found]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON Lines."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def rotated(names: list[str], by: int) -> list[str]:
    """Let each arm begin once: whoever comes first finds the caches cold."""
    by %= len(names)
    return names[by:] + names[:by]


def common(left: str, right: str) -> int:
    """Count the characters two texts have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def peak_rss() -> int:
    """Return the most RSS this process ever had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
