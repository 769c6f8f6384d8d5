"""The process under test: started inside a cgroup, watched through ``/proc``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from .cgroup import MemoryCgroup

ROOT = Path(__file__).resolve().parent.parent.parent


class Server:
    """A server process in a cgroup, ready when it answers.

    Args:
        command: Arguments of Python; ``{port}`` is replaced.
        folder: For its stores and its log.
    """

    def __init__(self, command: list[str], cgroup: MemoryCgroup, folder: Path, settings: dict[str, str],
                 ready_path: str) -> None:  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        named = {f"THIMBLE_{name.upper()}": value for name, value in settings.items()}
        arguments = [part.format(port=self.port) for part in command]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **named}, stdout=log, stderr=log,
                preexec_fn=cgroup.join, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._wait(ready_path)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self.alive:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def memory(self) -> dict[str, int]:
        """RSS now, its anonymous part, and the highest RSS so far, in bytes; empty when the process is gone."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return {}
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Vm", "Rss"))}
        if "VmRSS" not in found:
            return {}
        return {"rss": found["VmRSS"], "anonymous": found["RssAnon"], "peak": found["VmHWM"]}

    def _wait(self, path: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.alive:
            try:
                if httpx.get(self.url + path, timeout=5).status_code < 500:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        text = self.log.read_text(errors="replace")[-2000:]
        state = "did not answer in time" if self.alive else f"ended with {self._process.returncode}"
        if self.alive:
            self._process.kill()
        raise SystemExit(f"the server {state}:\n{text}")
