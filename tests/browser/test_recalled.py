"""What was said four hundred turns ago comes back in the page, marked as recalled, after a restart."""

from __future__ import annotations

import re

import pytest
from driving import Starter, add_samples, ask, visit
from playwright.sync_api import Page, expect

from assistant.history import History, NewTurn

pytestmark = pytest.mark.browser

FACT = "By the way, our cat Schnurri was born in the barn of my aunt in Tübingen."
TOPICS = ("invoices", "the roof", "train times", "a birthday cake", "the printer", "holiday plans", "taxes")


def small_talk(number: int) -> NewTurn:
    question = FACT if number == 2 else f"What about {TOPICS[number % 7]} in week {number}?"
    answer = "How nice." if number == 2 else f"Nothing new about {TOPICS[number % 7]} so far."
    return NewTurn(str(number), str(number - 1) if number else None, question, answer)


def test_a_fact_from_turn_three_is_quoted_after_400_turns_and_a_restart(page: Page, start_app: Starter) -> None:
    app = start_app()
    add_samples(app)
    app.stop()
    with History.open(app.folder / "history") as history:
        history.add("cats", map(small_talk, range(400)), title="Small talk")
        third = history.turns("cats", limit=1000)[2]
        assert third.question == FACT
    app.start()
    visit(page, app)
    page.locator(".session", has_text="Small talk").locator("a").click()
    expect(page.locator(".turn").last.locator(".bubble")).to_have_text("What about invoices in week 399?")
    expect(page.locator(".bubble", has_text="Schnurri")).to_have_count(0)  # it is far above what the page shows
    ask(page, "Where was our cat Schnurri born?")
    turn = page.locator(".turn").last
    evidence = turn.locator(".evidence")
    expect(evidence).to_contain_text("From this conversation, earlier")
    quote = evidence.locator(".quote", has_text=FACT)
    expect(quote).to_have_count(1)
    expect(quote).to_contain_text("Earlier in this conversation")
    books = turn.locator(".books")
    books.locator("summary").click()
    expect(books.locator(".part-recalled").first).to_be_attached()
    expect(books.locator(".legend .part-recalled")).to_have_text(re.compile(r"recalled turns \d+"))
    expect(books).to_contain_text(re.compile(r"[1-3] recalled"))
    quote.click()
    expect(page.locator("#source")).to_contain_text(FACT)
