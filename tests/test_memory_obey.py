"""What the assistant gives up to stay inside its budget, for real: each in a process of its own, on the real models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assistant import memory
from assistant.settings import ROOT
from assistant.units import format_bytes

AT_START = """
import json, sys
from pathlib import Path
from assistant import Assistant, AssistantError, Settings, memory
folder, models, MIB = Path(sys.argv[1]), Path(sys.argv[2]), 1 << 20
bf16, int8 = memory.read_needs(models / "smollm2-135m-instruct", "smollm2", ("bf16", "int8"))
def need(model, context):
    wanted = [model] if model else []
    return memory.choose(memory.Budget(1 << 40, "setting"), wanted, context_tokens=context, browser=False).needed
budgets = {"refused": need(None, 0) - MIB, "no model": need(None, 0) + MIB, "shorter": need(int8, 4096) - MIB,
           "int8": need(bf16, 4096) - MIB}
out = {}
for name, budget in budgets.items():
    settings = Settings(store_dir=folder / "store", history_dir=folder / "history", models_dir=models, dtype="bf16",
                        context_tokens=4096, max_new_tokens=4, memory_budget=str(budget), answer_threshold=0.0)
    try:
        with Assistant(settings) as assistant:
            if not assistant.documents():
                assistant.ingest([Path("samples/handbook.md")])
            answer = assistant.ask("How long is the notice period?", session_id=name)
            model = assistant.parts.chat_model
            out[name] = {"dtype": assistant.parts.plan.dtype, "runs": model.dtype if model else "",
                         "context": model.context_tokens if model else 0, "said": answer.memory.actions,
                         "text": answer.text, "over": answer.memory.peak - budget}
    except AssistantError as error:
        out[name] = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(out))
"""

BEFORE_TURNS = """
import json, mmap, sys
from pathlib import Path
from assistant import Assistant, AssistantError, Settings, memory
folder, models, MIB = Path(sys.argv[1]), Path(sys.argv[2]), 1 << 20
budget = 760 * MIB
settings = Settings(store_dir=folder / "store", history_dir=folder / "history", models_dir=models, max_new_tokens=12,
                    memory_budget=str(budget), answer_threshold=0.0)
question, rows, ballast = "How many days of paid holiday are there?", [], []
def hold(size):
    ballast.append(mmap.mmap(-1, size))
    ballast[-1][::4096] = b"x" * len(ballast[-1][::4096])
with Assistant(settings) as assistant:
    assistant.ingest([Path("samples/handbook.md")])
    assistant.ask(question, session_id="s")
    rows.append({"kept": assistant.parts.chat_model._prefix.nbytes})
    full = assistant.parts.plan.turn_growth(1640, 12) // MIB
    for spare in (full + 30, *range(full - 2, 18, -4), 6):
        memory.release()
        hold(max(1, budget - spare * MIB - memory.rss()))
        try:
            answer = assistant.ask(question, session_id="s")
            rows.append({"did": answer.memory.actions, "over": answer.memory.peak - budget})
        except AssistantError as error:
            rows.append({"error": type(error).__name__, "message": str(error)})
    for block in ballast:
        block.close()
    last = assistant.history.turns("s")[-1]
    rows.append({"question": last.question, "status": last.status, "turns": assistant.history.session("s").turn_count})
    answer = assistant.ask(question, session_id="s")
    rows.append({"status": answer.status, "did": answer.memory.actions})
print(json.dumps(rows))
"""

ONE_OF_EACH = """
import gc, json, sys, threading, weakref
from pathlib import Path
import chromadb
from assistant import Assistant, Settings, memory
from assistant.embedding.bert import BertForward
from assistant.index import Index
from assistant.inference.decoder import Decoder
from assistant.inference.native.decoder import KernelDecoder
from assistant.inference.local import LocalChatModel
folder, models = Path(sys.argv[1]), Path(sys.argv[2])
kinds = {"chat models": (LocalChatModel,), "decoders": (Decoder, KernelDecoder), "embedders": (BertForward,),
         "indexes": (Index,), "collections": (chromadb.Collection,)}
made = []  # not gc.get_objects(): it holds tuples that other threads are still making, which then fail
def noted(kind):
    begin = kind.__init__
    def note(self, *args, **named):
        made.append(weakref.ref(self))
        begin(self, *args, **named)
    kind.__init__ = note
for group in kinds.values():
    for kind in group:
        noted(kind)
def counts():
    found = [type(one) for one in (ref() for ref in list(made)) if one is not None]
    names = {name: sum(one in kind for one in found) for name, kind in kinds.items()}
    maps = {line.split(maxsplit=5)[5] for line in open("/proc/self/maps") if ".safetensors" in line}
    names["weights"] = len(maps)
    lines = [line.split() for line in open("/proc/self/maps") if ".int4." in line or ".int8." in line]
    names["weight maps"] = len(lines)
    names["workers"] = sum(thread.name == "torch-worker" for thread in threading.enumerate())
    return names
settings = Settings(store_dir=folder / "store", history_dir=folder / "history", models_dir=models, max_new_tokens=3,
                    answer_threshold=0.0, idle_unload_s=0, queue_size=64)
most, outcomes = {}, []
def watch(over):
    while not over.wait(0.2):
        for name, count in counts().items():
            most[name] = max(count, most.get(name, 0))
def user(assistant, number):
    name = f"user{number}"
    try:
        if number % 3 == 0:
            note = folder / f"note{number}.txt"
            note.write_text(f"Gate {number} opens at dawn. " * 40)
            assistant.ingest([note], user=name)
        for session in ("a", "b"):
            outcomes.append(assistant.ask(f"When does gate {number} open?", session_id=session, user=name).status)
        assistant.search("gate", user=name)
        assistant.history.delete("a", name)
    except Exception as error:
        outcomes.append(repr(error))
def crowd(assistant, users):
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(over,))
    threads = [threading.Thread(target=user, args=(assistant, number)) for number in users]
    for thread in (*threads, watcher): thread.start()
    for thread in threads: thread.join()
    over.set()
    watcher.join()  # what it counts it also holds
with Assistant(settings) as assistant:
    crowd(assistant, range(4))
    loaded = counts()
    assistant.parts.unload()
    unloaded = counts()
    crowd(assistant, range(5, 7))
    again = counts()
gc.collect()
print(json.dumps({"most": most, "loaded": loaded, "unloaded": unloaded, "again": again, "outcomes": outcomes,
                  "closed": counts()}))
"""


def _run(code: str, folder: Path, models: Path) -> Any:
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(models)], cwd=ROOT, capture_output=True,
                          text=True, timeout=240, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_at_start_int8_then_a_shorter_context_then_no_model_then_a_refusal(
    tmp_path: Path, packaged_models: Path
) -> None:
    found = _run(AT_START, tmp_path, packaged_models)
    assert (found["int8"]["dtype"], found["int8"]["runs"], found["int8"]["context"]) == ("int8", "int8", 4096)
    assert "int8 weights instead of bf16" in found["int8"]["said"][0]
    shorter = found["shorter"]
    assert shorter["runs"] in ("int8", "int4")
    assert "int8 weights" in shorter["said"][0] or "int4 weights" in shorter["said"][0]
    assert (found["no model"]["runs"], found["no model"]["context"]) == ("", 0)
    assert found["no model"]["said"][0].startswith("No chat model")
    assert "six weeks" in found["no model"]["text"]
    assert found["refused"]["error"] == "MemoryBudgetError"
    for part in ("interpreter and libraries", "embedder", "index", "headroom", "Set memory_budget to"):
        assert part in found["refused"]["message"]
    assert all(row.get("over", 0) <= 0 for row in found.values()), found


def test_before_a_turn_release_shrink_in_order_then_refuse_and_lose_nothing(
    tmp_path: Path, packaged_models: Path
) -> None:
    first, *rows, stored, after = _run(BEFORE_TURNS, tmp_path, packaged_models)
    assert first["kept"] > 0, "no prompt was kept, so there was nothing to give back first"
    said = [" ".join(row["did"]) for row in rows if "did" in row]
    assert said[0] == ""
    steps = ["gave back", "recalled turns", "less evidence", "shorter window", "no window"]
    seen = [next(number for number, step in reversed(list(enumerate(steps, 1))) if step in text)
            for text in said if text]  # fmt: skip
    assert seen == sorted(seen), said
    assert len(set(seen)) >= 3, said
    assert rows[-1]["error"] == "MemoryBudgetError"
    assert "Nothing was lost" in rows[-1]["message"]
    assert all(row.get("over", 0) <= 0 for row in rows), rows
    assert (stored["question"], stored["status"]) == ("How many days of paid holiday are there?", "failed")
    assert stored["turns"] == 1 + len(rows)
    assert (after["status"], after["did"]) == ("done", [])


def test_one_model_one_embedder_one_index_whatever_the_users_do(tmp_path: Path, packaged_models: Path) -> None:
    found = _run(ONE_OF_EACH, tmp_path, packaged_models)
    assert found["outcomes"] == ["done"] * 12
    one = {"chat models": 1, "decoders": 1, "embedders": 1, "indexes": 1, "collections": 1, "workers": 1}
    for when in ("most", "loaded", "again"):
        assert {name: found[when][name] for name in one} == one, when
    assert found["again"]["weight maps"] == found["loaded"]["weight maps"] == found["most"]["weight maps"]
    assert (found["unloaded"]["decoders"], found["unloaded"]["embedders"], found["unloaded"]["weights"]) == (0, 0, 0)
    assert all(found["closed"][name] == 0 for name in ("decoders", "embedders", "weights", "workers"))


def _environ(folder: Path, models: Path, **settings: str) -> dict[str, str]:
    folders = {"MODELS_DIR": str(models), "STORE_DIR": str(folder / "store"), "HISTORY_DIR": str(folder / "history")}
    return os.environ | {f"THIMBLE_{name}": value for name, value in (folders | settings).items()}


def test_the_books_are_in_the_log_the_terminal_and_the_json(tmp_path: Path, packaged_models: Path) -> None:
    (bf16,) = memory.read_needs(packaged_models / "smollm2-135m-instruct", "smollm2", ("bf16",))
    budget = memory.choose(memory.Budget(1 << 40, "setting"), [bf16], browser=False).needed - (1 << 20)
    environ = _environ(tmp_path, packaged_models, MAX_NEW_TOKENS="4", DTYPE="bf16", MEMORY_BUDGET=str(budget))

    def run(*words: str, given: str = "") -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-m", "assistant", *words], cwd=ROOT, env=environ, input=given,
                              text=True, capture_output=True, timeout=120, check=True)  # fmt: skip
        return done.stdout, done.stderr

    _, log = run("ingest", "samples/handbook.md", "--verbose")
    for event in ("start", "loading embedder", "loading index", "a batch of an ingest", "an ingest"):
        assert f"RSS after {event}:" in log
    out, log = run("ask", "How long is the notice period?", "--json", "--verbose")
    receipt = json.loads(out)["memory"]
    assert receipt["peak"] >= receipt["after"] > 0
    assert receipt["left"] == budget - receipt["after"] == receipt["budget"] - receipt["after"]
    assert "int8 weights instead of bf16" in receipt["actions"][0]
    left = f"left of {format_bytes(budget)}; To fit:"
    for words in ("RSS after loading chat_model:", "RSS after turn 1:", "turn 1: RAM before", left):
        assert words in log
    _, told = run("chat", "--trace-memory", given="How long is the notice period?\nAnd for managers?\n")
    assert "note: To fit: int8 weights" in told
    first, second = told.split("  (quotes")[1:]
    for turn in (first, second):
        assert "RAM" in turn
        assert "memory: To fit: int8 weights" in turn
        assert re.search(r"grew: \S+\.py:\d+: \+\d", turn) or "grew: <" in turn


@pytest.mark.parametrize("command", [["-m", "assistant", "ask", "Why?"], ["-m", "assistant", "chat"], ["app.py"]])
def test_a_budget_below_the_interpreter_is_refused_with_the_sum(
    command: list[str], tmp_path: Path, packaged_models: Path
) -> None:
    environ = _environ(tmp_path, packaged_models, MEMORY_BUDGET="40 MB")
    port = ["--port", "17861"] if command == ["app.py"] else []
    done = subprocess.run([sys.executable, *command, *port], cwd=ROOT, env=environ, input="Why?\n", text=True,
                          capture_output=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 1, done
    assert "The memory budget of 38 MiB (memory_budget) is too small" in done.stderr
    assert "interpreter and libraries" in done.stderr
    assert "Traceback" not in done.stderr
