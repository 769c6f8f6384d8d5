"""Run one soak; see the package."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.units import format_bytes, parse_bytes
from bench.report import Report, arguments

from . import __doc__ as _doc
from .cgroup import MemoryCgroup
from .client import Client, Reply
from .questions import questions
from .server import Server

TURNS_A_SESSION = 25
UPLOAD_EVERY = 50


def main() -> int:
    """Run it and print the figures; the exit status is 1 after a kernel kill, a lost or a failed turn."""
    parser = arguments(_doc, data=False)
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="text files to ingest and ask about")
    parser.add_argument("--limit", default="1GiB", help="size of the cgroup (default: 1GiB)")
    parser.add_argument("--arm", choices=("thimble", "plain"), default="thimble")
    parser.add_argument("--model", default="packaged", help="chat model; none for quotes alone")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=16, help="longest answer; short ones make many turns")
    parser.add_argument("--clients", type=int, default=0, help="ask from this many sides at once instead")
    parser.add_argument("--minutes", type=float, default=0, help="end after this long, whatever --turns says")
    parser.add_argument("--force", action="store_true", help="load the model even where the memory plan says no")
    parser.add_argument("--store", type=Path, help="folder of an earlier run's stores, to go on without its ingest")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="write one object a turn, as it ends, for the plot")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the server and its cgroup go too
    if args.curve:
        args.curve.write_text("", encoding="utf-8")
    files = sorted(path for path in args.corpus.rglob("*") if path.is_file())
    limit = parse_bytes(args.limit)
    with tempfile.TemporaryDirectory(prefix="thimble-soak-") as scratch:
        folder = args.store or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with MemoryCgroup(f"thimble-soak-{os.getpid()}", limit) as cgroup:
            with Server(*_command(args, cgroup, folder)) as server:
                run = Soak(args, server, cgroup, files)
                run.ingest()
                if args.clients:
                    run.crowd(args.clients, (args.minutes or 10) * 60)
                else:
                    run.turns(args.turns)
            return run.report()


def _command(args: Namespace, cgroup: MemoryCgroup, folder: Path) -> tuple[Any, ...]:
    if args.arm == "plain":
        command = ["-m", "bench.soak.plain", "--port", "{port}", "--store", str(folder), "--new-tokens",
                   str(args.new_tokens)]  # fmt: skip
        return command, cgroup, folder, {}, "/api/health"
    settings = {"history_dir": folder / "history", "store_dir": folder / "store", "model": args.model,
                "max_new_tokens": args.new_tokens, "queue_size": 16, "answer_threshold": 0}  # fmt: skip
    start = ["-m", "bench.soak.forced"] if args.force else ["app.py"]
    return ([*start, "--port", "{port}", "--debug"], cgroup, folder,
            {name: str(value) for name, value in settings.items()}, "/api/health")  # fmt: skip


class Soak:
    """One run: what was asked, what came of it, and what the process occupied."""

    def __init__(self, args: Namespace, server: Server, cgroup: MemoryCgroup, files: list[Path]) -> None:
        self.args, self.server, self.cgroup, self.files = args, server, cgroup, files
        self.curve: list[dict[str, Any]] = []
        self.outcomes: Counter[str] = Counter()
        self.troubles: list[str] = []
        self.ingested = 0
        self._started = time.monotonic()

    def ingest(self) -> None:
        """Upload every file and wait until all are read."""
        client = Client(self.server.url)
        held = len(client.uploads())
        if self.args.store and (self.args.store / "ingested").exists():
            return
        for path in self.files:
            client.upload(path, path.name)
            self.ingested += path.stat().st_size
        rows = client.wait_for_uploads(7200)
        states = Counter(row["state"] for row in rows)
        self._say(f"ingested {self.ingested / 1e6:.1f} MB in {len(self.files)} files (held before: {held}): {states}")
        if self.args.store and set(states) <= {"added", "unchanged", "updated", "refused"}:
            (self.args.store / "ingested").touch()
        client.close()

    def turns(self, count: int) -> None:
        """Ask one turn after another, changing sessions, renaming, deleting and uploading between them."""
        client, asked, session = Client(self.server.url), questions(self.files), ""
        ends = time.monotonic() + (self.args.minutes or 10**6) * 60
        for number in range(1, count + 1):
            if time.monotonic() > ends:
                break
            if not self.server.alive:
                self.troubles.append(f"the process died before turn {number}")
                break
            if number % TURNS_A_SESSION == 1:
                session = ""
                self._change_sessions(client, number)
            reply = client.ask(next(asked), session)
            session = reply.session_id
            self._note(number, reply)
            if number % UPLOAD_EVERY == 0:
                self._upload(client, number)
            if number % 50 == 0 or number == 1:
                self._say(f"turn {number}: {self._state()}")
        client.close()

    def crowd(self, clients: int, seconds: float) -> None:
        """Ask from *clients* threads until the time is over; each question must be answered or told busy."""
        until, lock = time.monotonic() + seconds, threading.Lock()

        def one(number: int, asked: Iterator[str]) -> None:
            while time.monotonic() < until and self.server.alive:
                client = Client(self.server.url)
                reply = client.ask(next(asked))
                client.close()
                with lock:
                    self._note(len(self.curve) + 1, reply)
                if reply.outcome == "busy":
                    time.sleep(2)

        threads = [
            threading.Thread(target=one, args=(number, questions(self.files, number))) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(10)
            self._say(self._state())
        for thread in threads:
            thread.join()

    def report(self) -> int:
        """Print the figures; return 1 when anything was killed, lost or failed."""
        arm = "thimble" if self.args.arm == "thimble" else "plain stack"
        what = f"{self.args.clients} clients" if self.args.clients else f"{len(self.curve)} turns"
        report = Report("soak", self.args.json)
        name = f"cgroup {self.args.limit}, model {self.args.model}, {what}, {self.ingested / 1e6:.0f} MB ingested"
        report.add(name, arm, "kernel kills", self.cgroup.kills)
        for outcome in ("done", "busy", "failed"):
            report.add(name, arm, outcome, self.outcomes[outcome])
        rows = [row for row in self.curve if "rss" in row]
        if rows:
            report.add(name, arm, "RSS at the end", rows[-1]["rss"] / 2**20, "MiB")
            report.add(name, arm, "anonymous at the end", rows[-1]["anonymous"] / 2**20, "MiB")
            report.add(name, arm, "peak RSS", max(row["peak"] for row in rows) / 2**20, "MiB")
            report.add(name, arm, "first turn's anonymous", rows[0]["anonymous"] / 2**20, "MiB")
            report.add(name, arm, "seconds a turn", [row["seconds"] for row in rows], "s")
        if len(rows) > 100:
            at = [sum(row["rss"] for row in rows[start : start + 10]) / 10 for start in (95, len(rows) - 10)]
            report.add(name, arm, f"RSS of turn {len(rows)} over turn 100", at[1] / at[0])
        report.close()
        for trouble in self.troubles[:20]:
            self._say(trouble)
        return 1 if self.cgroup.kills or self.outcomes["failed"] or self.troubles else 0

    def _note(self, number: int, reply: Reply) -> None:
        self.outcomes[reply.outcome] += 1
        if reply.outcome == "failed":
            self.troubles.append(f"turn {number} failed: {reply.text[:200]}")
        self.curve.append({"turn": number, "outcome": reply.outcome, "seconds": round(reply.seconds, 3),
                           "characters": len(reply.text), **self.server.memory()})  # fmt: skip
        if self.args.curve:
            with self.args.curve.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.curve[-1]) + "\n")

    def _change_sessions(self, client: Client, number: int) -> None:
        listed = client.sessions()
        if listed:
            client.open_session(listed[0]["id"])
            client.rename(listed[0]["id"], f"Renamed before turn {number}")
        if len(listed) > 3:
            client.delete(listed[-1]["id"])

    def _upload(self, client: Client, number: int) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(f"The note of turn {number} says that gate {number} opens at dawn.\n" * 20)
            file.flush()
            client.upload(Path(file.name), f"note-{number}.txt")
        for row in client.wait_for_uploads(300):
            if row["state"] not in ("added", "updated", "unchanged"):
                self.troubles.append(f"upload {row['name']} came to {row['state']}: {row.get('reason')}")

    def _state(self) -> str:
        memory, stat = self.server.memory(), self.cgroup.stat()
        return ", ".join([
            f"RSS {format_bytes(memory.get('rss', 0))}", f"anonymous {format_bytes(memory.get('anonymous', 0))}",
            f"peak {format_bytes(memory.get('peak', 0))}", f"cgroup anonymous {format_bytes(stat['anonymous'])}",
            f"cache {format_bytes(stat['cache'])}", f"limit hit {self.cgroup.hits} times",
            f"major faults {stat['major_faults']}", f"kills {self.cgroup.kills}", str(dict(self.outcomes)),
        ])  # fmt: skip

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.0f} s  {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
