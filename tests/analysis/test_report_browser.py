"""The report of a run in a real browser: figures without a request, light and dark, wide, narrow and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from analysis.report import report
from tests.support.browsing import SECONDS, launched
from tests.support.reports import auto_run, hostile_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(report(auto_run()))
    return path


def opened(browser: Browser, file: Path, noticed: list[str], **options) -> Page:
    """The report in a new page. noticed: receives the addresses of all requests, errors and dialogs."""
    page = browser.new_page(**options)
    page.on("request", lambda request: noticed.append(request.url))
    page.on("console", lambda entry: noticed.append(entry.text) if entry.type == "error" else None)
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("dialog", lambda dialog: noticed.append(dialog.message))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.place .main-svg').length > 0", timeout=20 * SECONDS)
    return page


SHAPES = ".cartesianlayer :is(image, .trace path, .trace .point)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_figures_are_drawn_without_a_request(browser, file, scheme, width):
    noticed: list[str] = []
    page = opened(browser, file, noticed, viewport={"width": width, "height": 900}, color_scheme=scheme)
    drawn = page.evaluate(f"[...document.querySelectorAll('.place')].map(p => p.querySelectorAll('{SHAPES}').length)")
    assert len(drawn) == 9
    assert min(drawn) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue > 600) == (scheme == "light")
    assert noticed == [file.as_uri()]
    page.close()


def test_a_figure_is_saved_as_svg_by_its_button(browser, file):
    noticed: list[str] = []
    page = opened(browser, file, noticed)
    page.locator("#figure-flips").hover()
    with page.expect_download() as saved:
        page.locator("#figure-flips .modebar-btn").click()
    assert saved.value.suggested_filename == "barber-flips.svg"
    page.close()


def test_every_figure_and_region_has_a_name(browser, file):
    page = opened(browser, file, [])
    captions = page.locator("figcaption").all_inner_texts()
    assert len(captions) == len(set(captions)) == 9
    for caption in captions:
        assert page.get_by_role("figure", name=caption, exact=True).count() == 1
    assert all(region.get_attribute("aria-label") for region in page.locator(".scroll").all())
    page.close()


def test_on_paper_no_table_is_closed_and_no_figure_is_cut(browser, file):
    page = opened(browser, file, [])
    details = "[...document.querySelectorAll('details')].map(one => one.open)"
    widths = "[...document.querySelectorAll('.place .main-svg')].map(one => one.getBoundingClientRect().width)"
    assert not any(page.evaluate(details))
    before = page.evaluate(widths)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    assert all(page.evaluate(details))
    assert max(page.evaluate(widths)) <= 660
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(300)
    assert not any(page.evaluate(details))
    assert page.evaluate(widths) == before
    assert len(page.pdf(format="A4")) > 10_000
    page.close()


def test_html_in_given_texts_stays_text(browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_bytes(report(hostile_run(tmp_path / "run")))
    noticed: list[str] = []
    page = opened(browser, file, noticed)
    page.wait_for_timeout(500)
    assert "owned" in page.title(), "the name of the model is part of the title"
    assert page.title() != "owned"
    assert noticed == [file.as_uri()]
    assert page.locator("main img, figure a").count() == 0
    page.close()


def test_no_other_script_can_run(browser, tmp_path, file):
    """The policy of the page, should a text ever get into it unescaped."""
    changed = tmp_path / "changed.html"
    text = file.read_text("utf-8")
    more = "<script>document.title = 'owned'</script><img src='https://evil.example/x' onerror='document.title=1'>"
    changed.write_text(text.replace("<main>", f"<main>{more}"), "utf-8")
    noticed: list[str] = []
    page = opened(browser, changed, noticed)
    page.wait_for_timeout(500)
    assert page.title() == "model, 50% pruned · Barber"
    refused = [one for one in noticed if "Content Security Policy" in one]
    assert len(refused) == 3, "the script, the picture before its request leaves, and its handler"
    page.close()
