"""A real browser on the real page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.app_server import SMALL, Server

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
SHORT = "?" + "&".join(f"{name}={value}" for name, value in SMALL.items())
LONG = "?nsamples=512&seqlen=128&eval_windows=6"
SECONDS = 1000  # of Playwright's milliseconds


@contextmanager
def launched() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("Chromium is missing: run `make test`, which installs it, or set CHROMIUM to its path.")
    expect.set_options(timeout=15 * SECONDS)  # of an expectation that gives none: test machines are busy
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


def visit(browser: Browser, server: Server, query: str, complaints: list[str], width: int = 1400) -> Page:
    """A new page of the app, ready to run. complaints: receives the errors of the console."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda entry: complain(complaints, entry.text) if entry.type == "error" else None)
    page.on("pageerror", lambda error: complain(complaints, str(error)))
    page.goto(server.url + query)
    expect(page.locator("#run")).to_be_enabled(timeout=30 * SECONDS)
    return page


def complain(complaints: list[str], text: str) -> None:
    """Keep an error of the console, but for those of Gradio itself when a page is left while its stream is open."""
    if not any(words in text for words in ("signal is aborted", "Connection errored out")):
        complaints.append(text)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.wait_for_timeout(500)  # a tab mounts its components when it is first opened


def drawn(page: Page, figure: str) -> int:
    """The number of shapes that plotly drew in a figure, once it drew any."""
    shapes = page.locator(f"#{figure} .cartesianlayer").locator("image, .trace path, .trace .point")
    expect(shapes.first).to_be_attached(timeout=20 * SECONDS)
    return shapes.count()
