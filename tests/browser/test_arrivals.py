"""What comes in from outside: uploads that outlive their server, files of chats, messages in the reader's language."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from driving import App, Starter, ask, visit, wait_for_uploads
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser_full


def upload(app: App, name: str, content: bytes) -> None:
    httpx.put(f"{app.url}/api/uploads", params={"name": name}, content=content, timeout=60).raise_for_status()


def long_text(paragraphs: int) -> bytes:
    return "\n\n".join(
        f"Lighthouse number {n} stands on rock {n * 7}. Its lamp,  {n % 50 + 10} m high, was lit in {n % 300 + 1700}."
        for n in range(paragraphs)
    ).encode()  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_upload_goes_on_after_the_server_was_ended(start_app: Starter, number: signal.Signals) -> None:
    app = start_app()
    upload(app, "lighthouses.txt", long_text(1200))
    upload(app, "note.txt", b"The bosun of the tender is called Halvorsen.")
    for _ in range(600):
        first = httpx.get(f"{app.url}/api/uploads").json()["uploads"][0]
        if first["chunks"]:
            break
        time.sleep(0.05)
    assert first["state"] == "reading", "it was read before the server could be ended"
    app.stop(number)
    app.start()
    resumed = wait_for_uploads(app)
    assert "note.txt" in {one["name"] for one in resumed}
    assert {one["state"] for one in resumed} <= {"added", "updated", "unchanged"}
    documents = httpx.get(f"{app.url}/api/documents").json()["documents"]
    assert {(one["name"], one["status"]) for one in documents} == {("lighthouses.txt", "ready"), ("note.txt", "ready")}
    left = [path for path in (app.folder / "store").glob("uploads*/**/*") if path.is_file() and path.name != "lock"]
    assert left == []


def test_an_upload_whose_sending_broke_off_says_so(page: Page, start_app: Starter) -> None:
    app = start_app()
    with socket.create_connection(("127.0.0.1", app.port)) as web:
        head = (
            f"PUT /api/uploads?name=half.txt HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\nContent-Length: 2000000\r\n\r\n"
        )
        web.sendall(head.encode() + b"word " * 100_000)
        for _ in range(600):
            if any(path.stat().st_size for path in (app.folder / "store" / "uploads").rglob("*.part")):
                break
            time.sleep(0.05)
        app.stop(signal.SIGKILL)
    app.start()
    visit(page, app)
    row = page.locator("#documents .file.refused", has_text="half.txt")
    expect(row).to_contain_text("its sending broke off; add it again")
    assert not list((app.folder / "store" / "uploads").rglob("*.part"))
    row.get_by_role("button", name="Cancel half.txt").click()
    expect(row).to_have_count(0)
    assert not list((app.folder / "store").glob("uploads-queue/*/*.json"))


def test_what_is_too_large_is_refused_by_its_announced_size(start_app: Starter) -> None:
    app = start_app(THIMBLE_MAX_FILE_BYTES="1000000")
    for path in ("PUT /api/uploads?name=huge.txt", "POST /api/import?name=huge.json"):
        with socket.create_connection(("127.0.0.1", app.port)) as web:
            web.sendall(f"{path} HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\nContent-Length: 9000000000\r\n\r\n".encode())
            web.settimeout(60)
            said = web.recv(65536)  # before a byte of it was sent
        assert re.match(rb"HTTP/1.1 (400|507) ", said), said[:200]

    def endless() -> Iterator[bytes]:  # sent in pieces, its size not announced
        for _ in range(400):
            yield b"word " * 1000

    reply = httpx.put(f"{app.url}/api/uploads", params={"name": "huge.txt"}, content=endless(), timeout=60)
    assert reply.status_code == 400
    assert "over the limit" in reply.json()["message"]
    assert [path for path in (app.folder / "store" / "uploads").rglob("*") if path.is_file()] == []


def test_the_page_says_that_a_file_is_too_large(page: Page, start_app: Starter, tmp_path: Path) -> None:
    app = start_app("--auth", "ada:correct horse", THIMBLE_MAX_FILE_BYTES="40000000",
                    THIMBLE_USER_UPLOAD_BYTES="1000000")  # fmt: skip
    page.goto(app.url)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("body[data-ready]")
    for size, said in ((41_000_000, "a file may have 38 MiB"), (30_000_000, "remove some first")):
        file = tmp_path / f"{size}.txt"
        file.write_bytes(b"word " * (size // 5))
        page.locator("#pick-files").set_input_files(file)
        expect(page.locator(".toast", has_text=said)).to_be_visible()
    expect(page.locator("#connection")).to_be_hidden()


def test_a_file_of_chats_shows_how_far_it_is_and_what_became_of_it(page: Page, app: App, tmp_path: Path) -> None:
    said = (("human", "A question about buoys"), ("gpt", "An answer about buoys"))
    lines = [{"from": role, "value": f"{text} number {n}. "} for n in range(3) for role, text in said]
    chats = [{"id": f"buoy-{n}", "title": f"Buoys {n}", "conversations": lines} for n in range(500)]
    file = tmp_path / "buoys.json"
    file.write_text(json.dumps([*chats, {"nothing": "of the kind"}, chats[0]]))
    visit(page, app)
    page.locator("#pick-import").set_input_files(file)
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    expect(dialog).to_contain_text("Imported chats: 500 · questions: 1,500")
    expect(dialog.locator(".report li")).to_have_count(2)
    expect(dialog.locator(".report")).to_contain_text("it is here already")
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator(".session", has_text="Buoys 499")).to_be_visible()
    for chat in chats:
        httpx.delete(f"{app.url}/api/sessions/{chat['id']}")

    file.write_text("no chats at all")
    page.locator("#pick-import").set_input_files(file)
    expect(page.locator(".toast")).to_contain_text("buoys.json is not an export of conversations")
    expect(dialog).to_have_count(0)


def test_a_german_page_says_german_what_the_program_says(chromium: Browser, app: App, tmp_path: Path) -> None:
    context = chromium.new_context(locale="de-DE")
    page = context.new_page()
    page.set_default_timeout(60_000)
    visit(page, app)
    ask(page, "What is the orbital period of Neptune in a leap year?")
    turn = page.locator(".turn").last
    expect(turn.locator(".answer")).to_contain_text("Die Dokumente scheinen das nicht zu sagen. Am nächsten kommt:")
    expect(turn.locator(".place").first).to_contain_text(re.compile("Seite|Zeile"))
    expect(turn.locator(".evidence h3").first).to_contain_text("Am nächsten in deinen Dokumenten")
    empty = tmp_path / "leer.txt"
    empty.write_bytes(b"")
    page.locator("#pick-files").set_input_files(empty)
    row = page.locator("#documents .file.refused", has_text="leer.txt")
    expect(row).to_contain_text("nicht gelesen: die Datei ist leer")
    page.fill("#question", "x" * 200_001)
    page.press("#question", "Enter")
    expect(page.locator(".toast", has_text="Die Frage hat 200.001 Zeichen")).to_be_visible()
    page.goto(f"{app.url}/?s=nothing")
    expect(page.locator(".toast", has_text="Diesen Chat gibt es nicht mehr")).to_be_visible()
    row.get_by_role("button", name="leer.txt entfernen").click()
    page.get_by_role("dialog").get_by_role("button", name="Entfernen").click()
    expect(row).to_have_count(0)
    context.close()


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("locked.pdf: it is encrypted; give its password.", "locked.pdf: verschlüsselt; gib das Passwort an."),
        ("it is damaged (a: b; c); open and save it anew", "beschädigt (a: b; c); öffne und speichere die Datei neu"),
        ("it is an image, not a document; something new", "ein Bild, kein Dokument; something new"),
        ("1.5 GiB won't fit on the disk, 2 MiB are free.", "1,5 GiB passen nicht auf die Festplatte, 2 MiB sind frei."),
        ("Nobody has translated this; yet: never.", "Nobody has translated this; yet: never."),
        ("", ""),
    ],
)  # fmt: skip
def test_sentences_with_values_in_them_are_translated(page: Page, app: App, english: str, german: str) -> None:
    visit(page, app)
    made = page.evaluate(
        """async (english) => {
            const { said, setMessages } = await import("/static/js/said.js");
            const { setWords } = await import("/static/js/words.js");
            document.cookie = "thimble-language=de; path=/";
            const start = await (await fetch("/api/start")).json();
            setWords(start.words, "de");
            setMessages(start.messages);
            return said(english);
        }""",
        english,
    )
    assert made == german


def test_a_very_long_question_is_folded(page: Page, app: App) -> None:
    visit(page, app)
    ask(page, "How long is the notice period? " * 100)
    bubble = page.locator(".bubble")
    folded = bubble.bounding_box()
    page.get_by_role("button", name="Show all of it").click()
    whole = bubble.bounding_box()
    assert folded is not None
    assert whole is not None
    assert folded["height"] < 250 < whole["height"]
