"""Take the README's screenshots from the running chat: ``make screenshots``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from driving import ARGS, CHROMIUM, ROOT, App, add_samples, ask, running, visit
from playwright.sync_api import Browser, Page, sync_playwright

SIZE_LIMIT = 300_000  # bytes a picture in the repository may take


def main(folder: Path) -> None:
    """Write all pictures into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch), ROOT / "models") as start:
        app = start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            empty = _page(browser, 1360, 850)
            visit(empty, app)
            _save(empty, folder / "empty.png")
            add_samples(app)
            light = _page(browser, 1360, 850)
            visit(light, app)
            _conversation(light)
            _save(light, folder / "light.png")
            address = light.url.removeprefix(app.url)
            _dark(browser, app, address, folder)
            _phone(browser, app, address, folder)
            browser.close()


def _conversation(page: Page) -> None:
    ask(page, "May I work from home?")
    ask(page, "How much does the company pay for it?")
    page.locator(".turn").last.locator(".quote").first.click()
    page.locator("#source mark").wait_for()
    page.mouse.move(700, 500)
    page.wait_for_timeout(400)


def _dark(browser: Browser, app: App, address: str, folder: Path) -> None:
    page = _page(browser, 1360, 850, scheme="dark")
    visit(page, app, address)
    page.locator(".turn").last.locator(".books summary").click()
    page.locator("#scroll").evaluate("box => { box.scrollTop = box.scrollHeight; }")
    page.wait_for_timeout(400)
    _save(page, folder / "dark.png")


def _phone(browser: Browser, app: App, address: str, folder: Path) -> None:
    page = _page(browser, 360, 740, scale=2)
    visit(page, app, address)
    page.wait_for_timeout(400)
    _save(page, folder / "phone.png")
    page.locator("#toggle-panel").click()
    page.wait_for_timeout(300)
    _save(page, folder / "phone-documents.png")


def _page(browser: Browser, width: int, height: int, *, scheme: str = "light", scale: int = 1) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale, locale="en-GB"
    )  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    return context.new_page()


def _save(page: Page, path: Path) -> None:
    page.screenshot(path=path)
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise SystemExit(f"{path.name} has {size:,} bytes, more than {SIZE_LIMIT:,}.")
    sys.stdout.write(f"{path} ({size // 1000} kB)\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots")
