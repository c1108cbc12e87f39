"""Other kinds of runs in a real browser: in one pass, layerwise, stopped, consecutive, refit only."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsing import LONG, SECONDS, SHORT, drawn, open_tab, visit
from ui.live import IN_ONE_PASS

pytestmark = pytest.mark.browser

BEGUN = LONG.replace("512", "128")  # long enough to be stopped, with an early first block
FIGURES = {
    "Mask flips": "flip-bars",
    "Saliency": "saliency-histogram",
    "Choices": "choice-curve",
    "Perplexity": "perplexity-dots",
}


def run(page: Page) -> None:
    """Press Run and wait for the end."""
    page.locator("#run").click()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)


def test_stop_stops_within_two_seconds_and_another_run_can_follow(browser, server, complaints):
    page = visit(browser, server, BEGUN, complaints)
    page.locator("#run").click()
    expect(page.locator("#blocks tbody tr").first).to_be_visible(timeout=120 * SECONDS)
    started = time.monotonic()
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    assert time.monotonic() - started < 2
    expect(page.locator("#run")).to_be_enabled()
    expect(page.locator("#announced")).to_have_text("The run was stopped.")
    expect(page.locator("#status")).to_contain_text("results so far")
    assert drawn(page, "flip-bars") >= 1
    page.goto(server.url + SHORT)
    expect(page.locator("#run")).to_be_enabled(timeout=30 * SECONDS)
    run(page)
    page.close()


def test_the_next_run_may_follow_a_stopped_one_at_once(browser, server, complaints):
    """While the stopped one is still ending."""
    page = visit(browser, server, BEGUN, complaints)
    page.locator("#run").click()
    for _ in range(3):
        expect(page.locator("#status .bb-phases")).to_be_visible(timeout=60 * SECONDS)
        page.locator("#stop").click()
        page.locator("#run").click()
    expect(page.locator("#blocks tbody tr").first).to_be_visible(timeout=120 * SECONDS)
    expect(page.locator("#run")).to_be_disabled()
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    assert drawn(page, "flip-bars") >= 1
    page.close()


def test_a_run_that_only_re_fits_shows_errors_and_no_flips(browser, server, complaints):
    page = visit(browser, server, SHORT + "&rebuild=false&reconstruct=true", complaints)
    expect(page.locator("#swaps")).not_to_be_visible()
    run(page)
    assert drawn(page, "sub-block-errors") >= 4
    expect(page.locator("#module-map")).not_to_be_visible()
    expect(page.locator("#refit")).to_contain_text("The refit of the kept weights lowered")
    open_tab(page, "Choices")
    expect(page.get_by_text("This run has no rebuild, so nothing was chosen.")).to_be_visible()
    page.close()


def test_a_run_in_one_pass_fills_every_view(browser, server, complaints):
    page = visit(browser, server, SHORT + "&order=one-pass", complaints)
    page.locator("#run").click()
    expect(page.locator("#status .bb-expected")).to_contain_text("Expected on", timeout=60 * SECONDS)
    assert page.locator("#status .bb-phases li").all_inner_texts() == list(IN_ONE_PASS)
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    assert "order=one-pass" in page.url
    for title, figure in FIGURES.items():
        open_tab(page, title)
        assert drawn(page, figure) >= 1
    open_tab(page, "Text")
    for title in ("dense", "initial", "rebuilt"):
        expect(page.locator(f"#text-{title}")).not_to_contain_text("did not reach this stage")
    page.close()


def test_a_run_in_one_pass_that_is_stopped_shows_what_it_has(browser, server, complaints):
    page = visit(browser, server, BEGUN + "&order=one-pass", complaints)
    page.locator("#run").click()
    expect(page.locator("#blocks tbody tr").first).to_be_visible(timeout=120 * SECONDS)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    for title, figure in FIGURES.items():
        open_tab(page, title)
        assert drawn(page, figure) >= 1
    assert page.locator("#perplexity-table tbody th").all_inner_texts() == ["dense"]
    open_tab(page, "Text")
    expect(page.locator("#text-initial")).to_contain_text("The run did not reach this stage.")
    page.locator("#write").click()
    expect(page.locator("#write")).to_be_enabled(timeout=60 * SECONDS)
    expect(page.locator("#text-rebuilt")).to_contain_text("The run did not reach this stage.")
    page.close()


def test_the_views_fill_while_a_run_goes_on(browser, server, complaints):
    page = visit(browser, server, BEGUN, complaints)
    page.locator("#run").click()
    expect(page.locator("#blocks tbody tr")).to_have_count(2, timeout=120 * SECONDS)
    assert drawn(page, "sub-block-errors") >= 3
    expect(page.locator("#announced")).to_have_text(re.compile(r"Rebuilding, \d+ percent"))
    expect(page.locator("#status [role=progressbar]")).to_be_visible()
    expect(page.locator("#result .bb-card")).to_have_count(0)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    page.close()


def test_the_views_show_the_last_run_until_the_next_has_results(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    run(page)
    open_tab(page, "Saliency")
    caption = page.locator("#saliency-histogram-name")
    expect(caption).not_to_be_empty(timeout=20 * SECONDS)
    before = caption.inner_text()
    page.get_by_role("button", name="Data and seed").click()
    page.locator("#nsamples input").fill("512")
    page.locator("#run").click()
    expect(page.locator("#status [role=progressbar]")).to_be_visible(timeout=30 * SECONDS)
    module = page.locator("#module input")
    other = {"down_proj": "up_proj"}.get(module.input_value(), "down_proj")
    module.click()
    page.get_by_role("option", name=other).click()
    expect(caption).not_to_have_text(before, timeout=20 * SECONDS)
    expect(page.locator("#status [role=progressbar]")).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    page.close()


def test_a_waiting_visitor_sees_the_position_and_can_leave(browser, server, complaints):
    first = visit(browser, server, LONG, complaints)
    first.locator("#run").click()
    expect(first.locator("#status .bb-phases")).to_be_visible(timeout=60 * SECONDS)
    second = visit(browser, server, SHORT, complaints)
    second.locator("#run").click()
    expect(second.locator("#status")).to_contain_text("1 job before yours", timeout=20 * SECONDS)
    second.locator("#stop").click()
    expect(second.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    first.locator("#stop").click()
    run(second)
    for page in (first, second):
        page.close()


def test_a_layerwise_run_shows_why_it_has_no_texts(browser, server, complaints):
    page = visit(browser, server, SHORT + "&stream=true", complaints)
    run(page)
    expect(page.locator("#result")).to_contain_text("No texts are generated")
    open_tab(page, "Text")
    expect(page.get_by_text("This run generated no text: its model was read layer by layer")).to_be_visible()
    open_tab(page, "Perplexity")
    assert drawn(page, "perplexity-dots") >= 3
    page.close()


def test_the_console_stayed_silent(complaints):
    assert complaints == []
