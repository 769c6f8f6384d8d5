"""What makes it pleasant: branches, search, keyboard, phone, German, contrast, speed with many turns."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx
import psutil
import pytest
from driving import ROOT, App, Starter, add_samples, ask, visit
from locked import encrypted_pdf
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser_full

AXE = ROOT / "build" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
TURNS = 50
INPUT_DELAY_MS = 50


def test_retry_edit_branches_undo_and_thumbs(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How long is the trial period?")
    turn = page.locator(".turn").last
    turn.get_by_role("button", name="Good answer").click()
    expect(turn.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    turn.get_by_role("button", name="Answer again").click()
    expect(page.locator(".turn.live")).to_have_count(0)
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".branches")).to_contain_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".branches")).to_contain_text("1/2")
    expect(page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")

    page.locator(".asked").hover()
    page.get_by_role("button", name="Edit the question").click()
    page.locator(".asked textarea").fill("How many days of holiday are there?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .bubble")).to_have_text("How many days of holiday are there?")
    expect(page.locator(".turn .quote").first).to_contain_text("28 days")
    expect(page.locator(".branches")).to_contain_text("3/3")

    page.get_by_role("button", name="Take the last question back").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#question")).to_have_value("How many days of holiday are there?")


def test_search_finds_old_words_and_marks_them(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "Where does Ines Okafor sit?")
    page.keyboard.press("Escape")
    page.locator("#title").click()
    page.keyboard.press("/")
    expect(page.locator("#session-search")).to_be_focused()
    page.keyboard.type("okafor")
    hit = page.locator(".session mark").first
    expect(hit).to_have_text("Okafor")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .bubble").last).to_contain_text("Okafor")


def test_export_and_import_bring_a_chat_back(page: Page, app: App, tmp_path: Path) -> None:
    visit(page, app)
    ask(page, "What does a night in a hotel cost at most?")
    session = page.url.split("s=")[1]
    exported = httpx.get(f"{app.url}/api/sessions/{session}/export", params={"format": "jsonl"})
    assert exported.headers["content-disposition"].startswith("attachment")
    httpx.delete(f"{app.url}/api/sessions/{session}").raise_for_status()
    file = tmp_path / "chat.jsonl"
    file.write_bytes(exported.content)
    visit(page, app)
    page.locator("#pick-import").set_input_files(file)
    expect(page.get_by_role("dialog")).to_contain_text("Imported chats: 1 · questions: 1")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.locator(".session", has_text="What does a night").locator("a").click()
    expect(page.locator(".turn .bubble")).to_have_text("What does a night in a hotel cost at most?")


def test_a_stale_tab_overwrites_nothing(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How long is the trial period?")
    other = page.context.new_page()
    visit(other, app, page.url.removeprefix(app.url))
    ask(other, "How many days of holiday are there?")
    page.fill("#question", "What about sick leave?")
    page.press("#question", "Enter")
    expect(page.locator(".toast")).to_contain_text("went on in another tab")
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator("#question")).to_have_value("What about sick leave?")
    page.press("#question", "Enter")
    expect(page.locator(".turn")).to_have_count(3)


def test_a_pdf_page_is_shown_with_its_quote(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How often should I descale the kettle?")
    quote = page.locator(".quote", has_text="k2-manual.pdf").first
    quote.click()
    expect(page.locator("#source mark")).to_be_visible()
    image = page.locator("#source .page-image")
    image.scroll_into_view_if_needed()
    expect(image).to_be_visible()
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") > 500


def test_the_keyboard_does_everything(page: Page, app: App) -> None:
    visit(page, app)
    page.keyboard.press("Tab")
    page.locator(".brand").focus()
    page.keyboard.press("Alt+n")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("How long")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("is the notice period?")
    expect(page.locator("#question")).to_have_value("How long\nis the notice period?")
    page.keyboard.press("Enter")
    expect(page.locator(".after .tools")).to_be_visible()
    page.locator(".quote").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#source mark")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Alt+p")
    expect(page.locator("#panel")).to_be_hidden()


def test_it_speaks_german(chromium: Browser, app: App) -> None:
    context = chromium.new_context(locale="de-DE")
    page = context.new_page()
    page.set_default_timeout(60_000)
    visit(page, app)
    assert page.locator("html").get_attribute("lang") == "de"
    expect(page.get_by_role("button", name="Neuer Chat")).to_be_visible()
    page.get_by_role("button", name="Sprache").click()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    context.close()


def test_a_phone_shows_one_column_and_nothing_sticks_out(chromium: Browser, app: App) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740}, locale="en-GB", has_touch=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    visit(page, app)
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.locator("#panel")).to_be_hidden()
    ask(page, "How long is the notice period?")
    page.locator(".quote").first.click()
    expect(page.locator("#source mark")).to_be_visible()
    page.locator("#close-panel").click()
    expect(page.locator("#panel")).to_be_hidden()
    page.locator("#open-sidebar").click()
    expect(page.locator("#sidebar")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#sidebar")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 360])
def test_axe_finds_nothing_serious(chromium: Browser, app: App, scheme: str, width: int) -> None:
    if not AXE.is_file():
        reason = "axe-core is not here (make test-browser fetches it with npm)"
        (pytest.fail if os.environ.get("CI", "").lower() == "true" else pytest.skip)(reason)
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en-GB", bypass_csp=True
    )  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    visit(page, app)
    found = {"start": axe(page)}
    ask(page, "How long is the notice period?")
    page.locator(".books summary").click()
    found["answer"] = axe(page)
    page.locator(".quote").first.click()
    expect(page.locator("#source mark")).to_be_visible()
    found["source"] = axe(page)
    assert {place: some for place, some in found.items() if some} == {}
    context.close()


def axe(page: Page) -> list[str]:
    page.add_script_tag(path=AXE)
    result = page.evaluate(
        "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })"
    )
    return [
        f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']][:3]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_typing_is_instant_with_many_turns(page: Page, app: App, tmp_path: Path) -> None:
    said = (("human", "A question"), ("gpt", "An **answer** with a `bit` of everything"))
    lines = [{"from": role, "value": f"{text} number {n}. " * 12} for n in range(TURNS) for role, text in said]
    file = tmp_path / "long.json"
    file.write_text(json.dumps([{"id": "long", "title": "A long chat", "conversations": lines}]))
    httpx.post(f"{app.url}/api/import", content=file.read_bytes()).raise_for_status()
    visit(page, app)
    page.locator(".session", has_text="A").filter(has_text="long").locator("a").first.click()
    expect(page.locator(".turn")).to_have_count(20)
    while page.locator("#show-earlier").is_visible():
        before = page.locator(".turn").count()
        page.locator("#show-earlier").click()
        expect(page.locator(".turn")).not_to_have_count(before)
    expect(page.locator(".turn")).to_have_count(TURNS)
    with_many = input_delay_ms(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    with_none = input_delay_ms(page)
    assert with_many < max(INPUT_DELAY_MS, 2 * with_none), f"{with_many:.0f} ms, and {with_none:.0f} in an empty chat"


def input_delay_ms(page: Page) -> float:
    """Type, and return the median time from a key to the frame that shows it."""
    page.evaluate(
        """() => {
            window.delays = [];
            const box = document.querySelector("#question");
            window.noting ??= box.addEventListener("input", (event) => {
                const painted = () => window.delays.push(performance.now() - event.timeStamp);
                requestAnimationFrame(() => setTimeout(painted));
            }, true) ?? true;
        }"""
    )
    page.fill("#question", "")
    page.locator("#question").press_sequentially("How long is the notice period for those who manage?", delay=40)
    page.wait_for_timeout(300)
    delays = sorted(page.evaluate("window.delays"))
    assert len(delays) >= 40
    return float(delays[len(delays) // 2])


def test_the_books_say_where_everything_went(page: Page, start_app: Starter) -> None:
    app = start_app(THIMBLE_ANSWER_THRESHOLD="0", THIMBLE_MAX_NEW_TOKENS="12")
    add_samples(app)
    visit(page, app)
    ask(page, "How long is the notice period?")
    ask(page, "And for managers?")
    books = page.locator(".turn").last.locator(".books")
    expect(books.locator("summary")).to_contain_text(re.compile(r"of 2,048 tokens · RAM [\d,]+ → [\d,]+ of [\d,]+ MiB"))
    books.locator("summary").click()
    expect(books.locator(".meter span").first).to_be_visible()
    expect(books.locator(".inside")).to_contain_text(re.compile("before .* · peak .* · after "))
    expect(books.locator("q").first).to_have_text("How long is the notice period?")
    expect(books.locator(".inside")).to_contain_text("Searched for")


def test_the_page_works_with_nothing_but_this_machine(page: Page, start_app: Starter) -> None:
    app = start_app()
    page.context.route(lambda url: not url.startswith(app.url), lambda route: route.abort())
    visit(page, app)
    page.get_by_role("button", name="Try the samples").click()
    page.get_by_role("button", name="How long is the notice period?").click()
    expect(page.locator(".quote").first).to_contain_text("six weeks")


def test_ten_tabs_cost_the_server_next_to_nothing(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How long is the trial period?")
    assert app.process is not None
    process = psutil.Process(app.process.pid)
    before = process.memory_info().rss
    tabs = [page.context.new_page() for _ in range(10)]
    for tab in tabs:
        visit(tab, app, page.url.removeprefix(app.url))
        expect(tab.locator(".turn")).to_have_count(1)
    assert process.memory_info().rss - before < 50_000_000
    for tab in tabs:
        tab.close()
    assert process.memory_info().rss - before < 50_000_000


def test_opening_and_closing_a_tab_a_hundred_times_leaks_nothing(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How long is the trial period?")
    assert app.process is not None
    process = psutil.Process(app.process.pid)
    before = process.memory_info().rss
    for _ in range(100):
        tab = page.context.new_page()
        tab.goto(page.url, wait_until="commit")
        tab.locator(".turn").wait_for()
        tab.close()
    assert process.memory_info().rss - before < 20_000_000


def test_a_document_can_be_for_one_chat_only(page: Page, app: App, tmp_path: Path) -> None:
    visit(page, app)
    page.locator("#only-here").check()
    note = tmp_path / "marzipan.txt"
    note.write_text("The marzipan project ends on the ninth of May.")
    page.locator("#pick-files").set_input_files(note)
    expect(page.locator("#documents .file", has_text="marzipan.txt")).to_contain_text("this chat only")
    ask(page, "When does the marzipan project end?")
    expect(page.locator(".quote").first).to_contain_text("ninth of May")
    address = page.url.removeprefix(app.url)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#documents .file", has_text="marzipan.txt")).to_have_count(0)
    visit(page, app, address)
    page.get_by_role("button", name="Remove marzipan.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator("#documents .file", has_text="marzipan.txt")).to_have_count(0)


def test_an_encrypted_file_asks_for_its_password(page: Page, app: App, tmp_path: Path) -> None:
    file = tmp_path / "sesame.pdf"
    file.write_bytes(encrypted_pdf("The treasure lies under the third palm tree of the bay.", "open sesame"))
    visit(page, app)
    page.locator("#pick-files").set_input_files(file)
    row = page.locator("#documents .file.refused", has_text=file.name)
    row.get_by_role("button", name="Unlock").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("open sesame")
    page.get_by_role("dialog").get_by_role("button", name="Unlock").click()
    expect(page.get_by_role("button", name=f"Preview {file.name}")).to_be_visible()
    kept = app.folder / "store" / "uploads"
    assert [path.name for path in kept.rglob("sesame.pdf")] == ["sesame.pdf"]
    page.get_by_role("button", name=f"Remove {file.name}").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("button", name=f"Preview {file.name}")).to_have_count(0)
    assert list(kept.rglob("sesame.pdf")) == []
