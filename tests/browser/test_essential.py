"""The path every newcomer takes, in the real browser with the real models."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import ROOT, App, Starter, add_samples, ask, running, visit
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.browser


def test_a_new_user_finds_the_way(page: Page, start_app: Starter, tmp_path: Path) -> None:
    app = start_app()
    visit(page, app)
    page.get_by_role("button", name="Try the samples").click()
    question = page.get_by_role("button", name=re.compile("How long is the notice period"))
    question.click()
    first = page.locator(".turn").first
    expect(first.locator(".quote").first).to_contain_text("notice period is six weeks")
    expect(first.locator(".after .tools")).to_be_visible()
    expect(first.locator(".answer")).to_contain_text(re.compile(r"\w{3}"))  # whatever the model words on this CPU
    expect(first.locator(".books summary")).to_contain_text("tokens")

    ask(page, "And for managers?")
    expect(page.locator(".turn").last.locator(".evidence")).to_contain_text("three months to the end of a quarter")

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add documents").click()
    note = tmp_path / "Wren contract.txt"
    note.write_text("The Wren contract was signed in Bergen. Its penalty for late delivery is 410 euros a day.\n")
    chooser.value.set_files([note, ROOT / "samples" / "k2-manual.pdf"])
    expect(page.get_by_role("button", name="Preview Wren contract.txt")).to_be_visible()
    ask(page, "What is the penalty for late delivery in the Wren contract?")
    quote = page.locator(".turn").last.locator(".quote").first
    expect(quote).to_contain_text("410 euros a day")
    quote.click()
    expect(page.locator("#source mark")).to_contain_text("penalty for late delivery is 410 euros a day")

    address = page.url
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator(".turn")).to_have_count(3)
    expect(page.locator(".turn").first.locator(".bubble")).to_have_text("How long is the notice period?")
    visit(page, app)
    page.locator("#session-list a").first.click()
    expect(page.locator(".turn")).to_have_count(3)
    assert page.url == address

    with page.expect_download() as download:
        page.locator("#export").click()
    assert "410 euros a day" in Path(download.value.path()).read_text()


LONG = "Write a long story about a kettle, with many chapters."


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory, packaged_models: Path) -> Iterator[App]:
    """A chat whose model writes much, whatever the documents say: time enough to interrupt it."""
    with running(tmp_path_factory.mktemp("wordy"), packaged_models) as start:
        app = start(THIMBLE_ANSWER_THRESHOLD="0", THIMBLE_MAX_NEW_TOKENS="1500")
        add_samples(app)
        yield app


def begin_long_answer(page: Page) -> tuple[Locator, str]:
    """The turn, and the first words of its answer: whatever the model words on this CPU."""
    page.fill("#question", LONG)
    page.press("#question", "Enter")
    turn = page.locator(".turn").last
    answer = turn.locator(".answer.writing")
    expect(answer).to_contain_text(re.compile(r"\w+\W+\w+\W+\w+\W"))
    return turn, " ".join(answer.inner_text().split()[:3])


def test_stop_keeps_what_there_is(page: Page, wordy: App) -> None:
    visit(page, wordy)
    turn, first_words = begin_long_answer(page)
    page.locator("#stop").click()
    expect(turn.locator(".state")).to_contain_text("Stopped here")
    expect(turn.locator(".quote").first).to_be_visible()
    page.reload()
    turn = page.locator(".turn").last
    expect(turn.locator(".state")).to_contain_text("Stopped here")
    expect(turn.locator(".answer")).to_contain_text(first_words)


def test_reloading_stops_nothing(page: Page, wordy: App) -> None:
    visit(page, wordy)
    _, first_words = begin_long_answer(page)
    page.reload()
    expect(page.locator(".turn.live .answer")).to_contain_text(first_words)
    page.locator("#stop").click()
    expect(page.locator(".turn").last.locator(".state")).to_contain_text("Stopped here")


def test_a_killed_server_loses_no_question(page: Page, wordy: App) -> None:
    visit(page, wordy)
    _, first_words = begin_long_answer(page)
    page.wait_for_timeout(1500)  # the answer is on the disk within a second
    wordy.stop(signal.SIGKILL)
    expect(page.locator("#connection")).to_be_visible()
    wordy.start()
    expect(page.locator("#connection")).to_be_hidden()
    turn = page.locator(".turn").last
    expect(turn.locator(".bubble")).to_have_text(LONG)
    expect(turn.locator(".state")).to_contain_text("Interrupted here")
    expect(turn.locator(".answer")).to_contain_text(first_words)


def test_sessions_are_made_renamed_and_deleted(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How often should I descale the kettle?")
    item = page.locator(".session.current")
    item.hover()
    item.get_by_role("button").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("Descaling")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".session.current")).to_contain_text("Descaling")
    expect(page.locator("#title")).to_have_text("Descaling")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    item = page.locator(".session", has_text="Descaling")
    item.hover()
    item.get_by_role("button").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".session", has_text="Descaling")).to_have_count(0)


def test_what_cannot_be_read_says_why(page: Page, app: App, tmp_path: Path) -> None:
    visit(page, app)
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 and then nothing of the kind")
    page.locator("#pick-files").set_input_files(broken)
    row = page.locator("#documents .file.refused", has_text="broken.pdf").first
    expect(row).to_contain_text("not read:")
