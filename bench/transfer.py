"""Import of a large ``conversations.json`` as a user does it: through the command line, in a process of its own.

The file is made here: trees of messages as ChatGPT exports them, with answers tried again, questions edited, tool
calls, hidden messages, metadata, characters of many scripts, control characters, lone surrogates, and some items that
are no conversation. Peak memory is the kernel's high-water mark of the importing process, above that of the same
command on a file with one conversation.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .report import Report, arguments


def _words(text: str) -> list[str]:
    return text.split()


_WORDS = _words("""
    the a of to and in is it you that for on with as this be are or by from your can have not will which one if
    function value list table index query error server file data model token memory session history answer question
    kettle contract invoice garden recipe holiday weather train museum letter music winter budget notice period
    Grüße naïve 東京 программа ελληνικά 😀 résumé café señor
""")
_CODE = "```python\ndef solve(values):\n    return [value for value in values if value > {}]\n```"


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the file")
    parser.add_argument("--history-bytes", default="4GB", help="history_max_bytes of the importing process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, metavar="FILE", help="only make the file, and keep it")
    args = parser.parse_args()
    if args.keep is not None:
        made = write(args.keep, args.megabytes * 1_000_000, args.seed)
        sys.stdout.write(f"{made} items in {args.keep.stat().st_size / 1e6:.0f} MB\n")
        return
    report = Report("transfer", args.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, large = folder / "one.json", folder / "conversations.json"
        one.write_text(json.dumps([conversation(random.Random(0), 0)]))
        made = write(large, args.megabytes * 1_000_000, args.seed)
        base, _, _ = imported(one, folder / "history-one", args.history_bytes)
        whole = f"{large.stat().st_size / 1e6:.0f} MB, {made} items"
        _measure(report, whole, large, folder / "history", args.history_bytes, base)
        with large.open("r+b") as file:
            file.truncate(large.stat().st_size * 6 // 10)
        _measure(report, f"{whole}, cut off after 60 %", large, folder / "history-cut", args.history_bytes, base)
    report.close()


def _measure(report: Report, name: str, path: Path, store: Path, history_bytes: str, base: int) -> None:
    start = time.perf_counter()
    peak, said, updates = imported(path, store, history_bytes)
    seconds = time.perf_counter() - start
    counts = re.search(r"Imported (\d+) conversations with (\d+) turns", said)
    if counts is None:
        raise SystemExit(said)
    skipped = re.search(r"Passed over (\d+)", said)
    report.add(name, "thimble", "conversations", int(counts[1]))
    report.add(name, "thimble", "turns", int(counts[2]))
    report.add(name, "thimble", "passed over", int(skipped[1]) if skipped else 0)
    report.add(name, "thimble", "peak RSS above start", (peak - base) / 1e6, "MB")
    report.add(name, "thimble", "time", seconds, "s")
    report.add(name, "thimble", "progress shown, times", updates)
    sys.stdout.write("\n".join(said.splitlines()[:12]) + "\n")


def imported(path: Path, store: Path, history_bytes: str) -> tuple[int, str, int]:
    """Import on a terminal; return the peak RSS in bytes, what was said, and how often progress was."""
    main_end, child_end = os.openpty()
    environment = {**os.environ, "THIMBLE_HISTORY_DIR": str(store), "THIMBLE_HISTORY_MAX_BYTES": history_bytes}
    command = [sys.executable, "-m", "assistant", "sessions", "import", str(path)]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=child_end, env=environment)
        os.close(child_end)
        os.set_blocking(main_end, False)
        peak, shown = 0, b""
        while process.poll() is None:
            peak = max(peak, _high_water(process.pid))
            shown += _read(main_end)
            time.sleep(0.02)
        shown += _read(main_end)
        os.close(main_end)
        out.seek(0)
        said = out.read().decode()
    return peak, said if process.returncode == 0 else shown.decode(), shown.count(b"\r")


def _high_water(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 1 << 16)
    except OSError:  # nothing there, or the other end is closed
        return b""


def write(path: Path, size: int, seed: int) -> int:
    """Write an export of about *size* bytes, an item at a time; return how many items it has."""
    rng = random.Random(seed)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        while file.tell() < size:
            item = conversation(rng, count) if rng.random() > 0.005 else rng.choice(_odd(count))
            file.write((",\n" if count else "") + json.dumps(item, ensure_ascii=rng.random() < 0.5 or _half(item)))
            count += 1
        file.write("]")
    return count


def _odd(number: int) -> list[Any]:
    """Return items that are no conversation."""
    return [{"title": f"Empty {number}", "mapping": {}}, {"title": f"No messages {number}"}, number, None]


def _half(item: Any) -> bool:
    """Whether it holds half a surrogate pair, which only an escape can say."""
    return bool(re.search("[\ud800-\udfff]", json.dumps(item, ensure_ascii=False)))


def conversation(rng: random.Random, number: int) -> dict[str, Any]:
    """Return a random tree of messages."""
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    at = 1.6e9 + rng.random() * 1.5e8

    def add(parent: str, role: str, parts: list[Any], **more: Any) -> str:
        nonlocal at
        at += rng.random() * 300
        key = f"{rng.getrandbits(128):032x}"
        mapping[key] = {
            "id": key, "parent": parent, "children": [],
            "message": {
                "id": key, "author": {"role": role, "name": None, "metadata": {}}, "create_time": at,
                "update_time": None, "content": {"content_type": "text", "parts": parts}, "end_turn": True,
                "status": "finished_successfully", "weight": 1.0, "recipient": "all", "channel": None,
                "metadata": {"request_id": f"{rng.getrandbits(64):016x}", "message_source": None, "timestamp_":
                             "absolute", "model_slug": "m-1", "parent_id": parent, "citations": []},
                **more,
            },
        }  # fmt: skip
        mapping[parent]["children"].append(key)
        return key

    last = add("root", "system", [""], metadata={"is_visually_hidden_from_conversation": True})
    for _ in range(min(200, 1 + int(rng.expovariate(1 / 9)))):
        asked = [add(last, "user", [_text(rng, 40)])]
        if rng.random() < 0.06:  # edited
            asked.append(add(last, "user", [_text(rng, 40)]))
        answers = []
        for question in asked:
            for _ in range(1 + (rng.random() < 0.08)):  # tried again
                above = question
                if rng.random() < 0.05:
                    above = add(above, "assistant", ["search(" + _text(rng, 4) + ")"], recipient="browser")
                    above = add(above, "tool", [_text(rng, 400)])
                answers.append(add(above, "assistant", [_text(rng, 230)]))
        last = rng.choice(answers)
    return {"title": _text(rng, 5)[:60], "create_time": 1.6e9 + number, "update_time": at, "mapping": mapping,
            "moderation_results": [], "current_node": last, "conversation_id": f"{number:08x}-{rng.getrandbits(64):x}",
            "is_archived": False, "safe_urls": [], "default_model_slug": "auto"}  # fmt: skip


def _text(rng: random.Random, words: int) -> str:
    """Return some words, in length as messages are: mostly short, some very long."""
    return " ".join(_pieces(rng, 1 + int(rng.expovariate(1 / words))))


def _pieces(rng: random.Random, count: int) -> Iterator[str]:
    yield from rng.choices(_WORDS, k=count)
    chance = rng.random()
    if chance < 0.03:
        yield _CODE.format(count)
    elif chance < 0.04:
        yield "\x00\x07\x1b[31m\u202e control \x7f"
    elif chance < 0.05:
        yield "half \ud83d of a pair \udc00"


if __name__ == "__main__":
    main()
