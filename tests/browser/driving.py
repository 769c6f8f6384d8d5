"""Driving the chat from tests: the running process, and what a person does in the page."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = os.environ.get("THIMBLE_TEST_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
WAIT_MS = 60_000  # two cores may be busy with other things; nothing is judged by time
expect.set_options(timeout=WAIT_MS)


@dataclass
class App:
    """One chat process."""

    folder: Path
    port: int
    models: Path
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> App:
        environment = {
            **os.environ, "THIMBLE_STORE_DIR": str(self.folder / "store"),
            "THIMBLE_HISTORY_DIR": str(self.folder / "history"), "THIMBLE_MODELS_DIR": str(self.models),
            "THIMBLE_USERS_FILE": str(self.folder / "users.json"), **self.env,
        }  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py", "--port", str(self.port), *self.args],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        for _ in range(600):
            if self.process.poll() is not None:
                pytest.fail(f"the chat ended at start:\n{self.log}")
            try:
                httpx.get(f"{self.url}/api/health", timeout=1)
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return self
        pytest.fail(f"the chat did not start:\n{self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)


Starter = Callable[..., App]


@contextmanager
def running(folder: Path, models: Path) -> Iterator[Starter]:
    apps: list[App] = []

    def start(*args: str, name: str = "app", **env: str) -> App:
        place = folder / name
        place.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        apps.append(App(place, port, models, args, env))
        return apps[-1].start()

    yield start
    for app in apps:
        if app.process is not None and app.process.poll() is None:
            app.stop()


def add_samples(app: App, **options: object) -> None:
    httpx.post(f"{app.url}/api/samples", **options).raise_for_status()
    wait_for_uploads(app)


def wait_for_uploads(app: App) -> list[dict[str, object]]:
    for _ in range(600):
        uploads: list[dict[str, object]] = httpx.get(f"{app.url}/api/uploads").json()["uploads"]
        if all(one["state"] not in ("waiting", "reading") for one in uploads):
            return uploads
        time.sleep(0.1)
    pytest.fail("the uploads were not read")


def visit(page: Page, app: App, path: str = "/") -> None:
    page.goto(app.url + path)
    page.wait_for_selector("body[data-ready]")


def ask(page: Page, question: str) -> None:
    """Ask, and wait until the answer is complete and read back from the disk."""
    turns = page.locator(".turn")
    count = turns.count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    expect(turns).to_have_count(count + 1)
    expect(page.locator(".turn.live")).to_have_count(0)
    expect(turns.last.locator(".after .tools")).to_be_visible()
