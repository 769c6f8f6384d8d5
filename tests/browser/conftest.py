"""Fixtures of the browser tests: the running chat and Debian's Chromium to look at it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import ARGS, CHROMIUM, WAIT_MS, App, Starter, add_samples, running
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if not Path(CHROMIUM).is_file():
        reason = "no Chromium here (make browser installs it where it can)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def start_app(tmp_path: Path, packaged_models: Path) -> Iterator[Starter]:
    """Starts chats of this test's own: ``start_app("--public")``."""
    with running(tmp_path, packaged_models) as start:
        yield start


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, packaged_models: Path) -> Iterator[App]:
    """One chat with the sample documents, shared by the tests that need nothing else."""
    with running(tmp_path_factory.mktemp("chat"), packaged_models) as start:
        app = start()
        add_samples(app)
        yield app


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser of this test's own, that notes every request which would leave this machine."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB", accept_downloads=True)
    context.set_default_timeout(WAIT_MS)
    left: list[str] = []
    context.on("request", lambda request: None if _is_local(request.url) else left.append(request.url))
    yield context
    context.close()
    assert left == [], "requests left this machine"


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None
    )
    yield page
    assert errors == [], "the page had errors"


def _is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))
