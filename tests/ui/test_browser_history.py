"""The history in a real browser: a run outlives its page, is opened again, and is renamed, pinned and deleted."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import Server, serving
from tests.support.browsing import LONG, SECONDS, SHORT, drawn, open_tab, visit

pytestmark = pytest.mark.browser

LINK = re.compile(r"[?&]run=([A-Za-z0-9_-]{22})")


def run(page: Page) -> str:
    """Press Run and wait for the end; the id of the run."""
    page.locator("#run").click()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    page.wait_for_url(LINK)
    return LINK.search(page.url)[1]


def rows(page: Page) -> list[str]:
    """The runs that are listed, without the examples."""
    open_tab(page, "Runs")
    expect(page.locator("#run-list tbody tr").first).to_be_visible(timeout=30 * SECONDS)
    page.wait_for_timeout(1000)  # the list is renewed when the view is opened
    return [row for row in page.locator("#run-list tbody tr").all_inner_texts() if "example" not in row]


def tick(page: Page, name: str) -> None:
    page.locator(f'#run-list input[value="{name}"]').check()


def test_a_reload_and_a_link_show_a_finished_run(browser, server, complaints):
    page = visit(browser, server, SHORT + "&sparsity=2:4", complaints)
    name = run(page)
    title = page.locator("#result h2").inner_text()
    page.goto(f"{server.url}?run={name}")
    expect(page.locator("#result h2")).to_have_text(title, timeout=30 * SECONDS)
    assert drawn(page, "flip-bars") >= 1
    expect(page.locator("#sparsity input")).to_have_value("2:4")
    expect(page.locator("#run")).to_be_enabled()
    expect(page.locator("#resume")).not_to_be_visible()
    page.close()


def test_a_run_goes_on_when_its_page_is_closed_and_the_next_page_finds_it(browser, server, complaints):
    page = visit(browser, server, LONG + "&sparsity=2:4", complaints)
    page.locator("#run").click()
    expect(page.locator("#status .bb-phases")).to_be_visible(timeout=60 * SECONDS)
    page.wait_for_url(LINK)
    name = LINK.search(page.url)[1]
    page.close()
    page = visit(browser, server, "", complaints)
    assert any("running" in row for row in rows(page))
    page.locator(f'#run-list a[data-run="{name}"]').click()
    expect(page.locator("#status .bb-phases")).to_be_visible(timeout=60 * SECONDS)
    expect(page.locator("#run")).to_be_disabled()
    expect(page.locator("#sparsity input")).to_have_value("2:4")
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    expect(page.locator("#resume")).to_be_visible()
    page.close()


def test_a_stopped_run_is_resumed_from_its_page(browser, server, complaints):
    page = visit(browser, server, LONG.replace("512", "64"), complaints)
    page.locator("#run").click()
    expect(page.locator("#blocks tbody tr").first).to_be_visible(timeout=120 * SECONDS)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    page.locator("#resume").click()
    expect(page.locator("#status .bb-phases")).to_be_visible(timeout=60 * SECONDS)
    expect(page.locator("#resume")).not_to_be_visible()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    page.close()


def test_a_first_page_shows_the_example_and_runs_the_preset(browser, server, complaints):
    page = visit(browser, server, "", complaints)
    expect(page.locator("#result h2")).to_contain_text("Example", timeout=30 * SECONDS)
    assert drawn(page, "flip-bars") >= 1
    expect(page.locator("#model input")).to_have_value(re.compile("Storyteller"))
    expect(page.locator("#run")).to_be_enabled()
    page.close()


def test_an_unknown_run_is_said_and_the_settings_of_the_link_stay(browser, server, complaints):
    page = visit(browser, server, SHORT + "&sparsity=2:4&run=nothing", complaints)
    expect(page.locator("#status")).to_contain_text("does not exist here", timeout=30 * SECONDS)
    expect(page.locator("#sparsity input")).to_have_value("2:4")
    run(page)
    page.close()


def test_runs_are_renamed_pinned_found_and_deleted(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    first = run(page)
    page.locator("#run").click()
    page.wait_for_url(lambda url: LINK.search(url)[1] != first)
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    expect(page.locator("#run")).to_be_enabled(timeout=120 * SECONDS)
    assert rows(page)[0].count("finished")
    expect(page.locator("#run-delete")).to_be_disabled()
    tick(page, first)
    expect(page.locator("#run-rename")).to_be_enabled()
    page.locator("#run-title input, #run-title textarea").fill("A run <i>of mine</i>")
    page.locator("#run-rename").click()
    expect(page.locator(f'#run-list a[data-run="{first}"]')).to_have_text("A run <i>of mine</i>")
    page.locator("#run-pin").click()
    expect(page.locator("#run-list tbody tr").first).to_contain_text("Pinned A run")
    page.locator("#run-search input, #run-search textarea").fill("of mine")
    expect(page.locator("#run-list tbody tr")).to_have_count(1)
    page.locator("#run-delete").click()
    page.locator("#run-delete-no").click()
    expect(page.locator("#run-delete-yes")).not_to_be_visible()
    page.locator("#run-delete").click()
    page.locator("#run-delete-yes").click()
    expect(page.locator("#run-list")).to_contain_text("No run has all these words")
    assert not (server.runs / first).exists()
    page.close()


def test_two_runs_are_compared(browser, server, complaints):
    names = []
    for query in ("&sparsity=50%25&threshold=0.2", "&sparsity=50%25&threshold=0.2&method=magnitude"):
        page = visit(browser, server, SHORT + query, complaints)
        names.append(run(page))
        page.close() if len(names) == 1 else None
    open_tab(page, "Compare")
    expect(page.get_by_text("Tick two to four runs")).to_be_visible()
    rows(page)
    tick(page, names[0])
    expect(page.locator("#run-delete")).to_be_enabled()
    expect(page.locator("#run-compare")).to_be_disabled()
    tick(page, names[1])
    page.locator("#run-compare").click()
    expect(page.locator("#compared-runs li")).to_have_count(2)
    assert page.locator("#compared-settings tbody tr").all_inner_texts() == ["Initial mask\tmagnitude\twanda"]
    expect(page.locator("#compared-agreement")).to_contain_text("on average 0.")
    for figure in ("compared-perplexities", "compared-errors", "compared-flips", "compared-masks"):
        assert drawn(page, figure) >= 1
    expect(page.locator("#compared-texts article")).to_have_count(2)
    page.close()


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("public"), "--host", "0.0.0.0") as running:
        yield Server(running.url, running.runs, running.log)


def test_on_a_public_server_each_browser_lists_its_own_runs(browser, public, complaints):
    own = visit(browser, public, SHORT, complaints)  # each page has a browser storage of its own
    name = run(own)
    assert len(rows(own)) == 1
    own.reload()
    expect(own.locator("#result .bb-done")).to_be_visible(timeout=30 * SECONDS)
    assert len(rows(own)) == 1
    other = visit(browser, public, f"?run={name}", complaints)
    expect(other.locator("#result .bb-done")).to_be_visible(timeout=30 * SECONDS)
    assert rows(other) == []
    other.close()
    own.close()
    assert complaints == []
