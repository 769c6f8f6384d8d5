"""Conversations at scale: a session of 100,000 turns against one of 10, and imports; beside LangChain's JSON file.

Opening, reading the window and storing a turn are timed in both sessions in turns, in the same run. The peer is the
message history that keeps one JSON file a session (``langchain_community`` FileChatMessageHistory), which reads and
writes the whole file for each message.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from assistant.history import History, NewTurn
from assistant.memory import PeakMeter
from assistant.transfer import import_file

from .report import Report, arguments

LARGE, SMALL = 100_000, 10
ANSWER = "An answer of an everyday length, which is some two hundred characters. " * 3


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--conversations", type=int, default=10_000, help="of the import")
    parser.add_argument("--measure-import", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_import:
        measure_import(*args.measure_import)
        return
    report = Report("history", args.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes(report, folder, args.runs)
        imports(report, folder, args.conversations)
    report.close()


def sizes(report: Report, folder: Path, runs: int) -> None:
    """Time the same steps in both sessions, in turns."""
    stores = {count: folder / str(count) for count in (SMALL, LARGE)}
    for count, store in stores.items():
        with _open(store) as history:
            history.add("s", (_turn(number) for number in range(count)))
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(runs):
        for count, store in stores.items():

            def timed(metric: str, work: Callable[[], object], count: int = count) -> None:
                start = time.perf_counter()
                work()
                times.setdefault((count, metric), []).append((time.perf_counter() - start) * 1000)

            opened: list[History] = []
            timed(
                "open", lambda store=store, opened=opened: opened.append(History.open(store, max_bytes=2_000_000_000))
            )
            history = opened[0]
            timed("page", lambda history=history: history.turns("s", limit=10))
            timed("window", lambda history=history: list(islice(history.window("s"), 10)))
            begun = history.begin("s", "How long is the notice period, and from when does it run?")
            timed("append", lambda history=history, begun=begun: history.append(begun.id, ANSWER))
            history.finish(begun.id)
            timed("turn", lambda history=history: _store_turn(history))
            history.close()
    for (count, metric), values in times.items():
        report.add("a session of 10 and of 100,000 turns", f"thimble, {count} turns", metric, values, "ms")
    for metric in dict.fromkeys(metric for _, metric in times):
        ratio = report_median(times[LARGE, metric]) / report_median(times[SMALL, metric])
        report.add("100,000 turns against 10", "thimble", metric, ratio, "x")
    _peer(report, folder)


def _open(store: Path) -> History:
    return History.open(store, max_bytes=2_000_000_000, flush_s=0.0)  # every append goes to the disk


def _peer(report: Report, folder: Path) -> None:
    """Time one message more in LangChain's file, at 10 and 10,000 turns (100,000 would take minutes to fill)."""
    try:
        from langchain_community.chat_message_histories import FileChatMessageHistory
    except ImportError:
        return
    for count in (SMALL, 10_000):
        path = folder / f"peer-{count}.json"
        message = {"type": "human", "data": {"content": ANSWER, "type": "human"}}
        path.write_text(json.dumps([message] * (2 * count)))
        peer = FileChatMessageHistory(str(path))
        values = []
        for _ in range(5):
            start = time.perf_counter()
            peer.add_user_message("How long is the notice period?")
            peer.add_ai_message(ANSWER)
            values.append((time.perf_counter() - start) * 1000)
        name = f"LangChain's JSON file, {count} turns"
        report.add("a session of 10 and of 100,000 turns", name, "turn", values, "ms")


def imports(report: Report, folder: Path, conversations: int) -> None:
    """Import a ChatGPT export in a process of its own and read its peak RSS."""
    path = folder / "conversations.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number in range(conversations):
            file.write(("," if number else "") + json.dumps(_chatgpt(number)))
        file.write("]")
    done = subprocess.run(
        [sys.executable, "-m", "bench.history", "--measure-import", str(folder / "imported"), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken, peak, seconds = json.loads(done.stdout)
    name = f"import of {conversations} ChatGPT conversations, {path.stat().st_size / 1e6:.0f} MB"
    report.add(name, "thimble", "taken", taken)
    report.add(name, "thimble", "peak RSS above start", peak / 1e6, "MB")
    report.add(name, "thimble", "time", seconds, "s")


def measure_import(store: Path, path: Path) -> None:
    """Import, and print what was taken, the peak of RSS above the start, and the seconds."""
    with History.open(store) as history:
        start = time.perf_counter()
        with PeakMeter() as meter:
            taken = import_file(history, path).conversations
        print(json.dumps([taken, meter.peak - meter.before, time.perf_counter() - start]))


def _store_turn(history: History) -> None:
    turn = history.begin("s", "How long is the notice period?")
    history.finish(turn.id, answer=ANSWER)


def _turn(number: int) -> NewTurn:
    return NewTurn(str(number), str(number - 1) if number else None, f"Question {number}, and what of it?", ANSWER)


def _chatgpt(number: int) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for place in range(12):
        role = "user" if place % 2 == 0 else "assistant"
        text = f"Conversation {number}, message {place}. " + "Some words that people write. " * (5 + 30 * (place % 2))
        mapping[f"n{place}"] = {
            "id": f"n{place}", "parent": f"n{place - 1}" if place else None,
            "children": [f"n{place + 1}"] if place < 11 else [],
            "message": {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]},
                        "create_time": 1.7e9 + place},
        }  # fmt: skip
    return {"title": f"Talk {number}", "conversation_id": f"c-{number}", "create_time": 1.7e9, "mapping": mapping,
            "current_node": "n11"}  # fmt: skip


def report_median(values: list[float]) -> float:
    """Return the median."""
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
