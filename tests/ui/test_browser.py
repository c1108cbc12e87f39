"""The page in a real browser: the form, a run and its six views."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsing import SECONDS, SHORT, drawn, open_tab, visit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def finished(browser, server, complaints) -> Iterator[Page]:
    """A page with one finished run on the bundled model."""
    page = visit(browser, server, SHORT, complaints)
    page.locator("#run").click()
    expect(page.locator("#status [role=progressbar]")).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    yield page
    page.close()


def test_the_address_is_a_link_to_the_run(finished):
    for setting in ("nsamples=6", "method=wanda", "threshold=auto", "rounds=&"):
        assert setting in finished.url


def test_a_link_fills_the_form_and_what_has_no_effect_is_hidden(browser, server, complaints):
    page = visit(
        browser,
        server,
        SHORT + "&threshold=0.2&granularity=layer&rounds=2&order=one-pass&stream=true&max_memory=2GiB",
        complaints,
    )
    page.get_by_role("button", name="Method in detail").click()
    threshold, rounds = page.locator("#threshold input"), page.locator("#rounds input")
    expect(threshold).to_have_value("0.2")
    expect(rounds).to_have_value("2")
    expect(page.locator("#granularity input")).to_have_value("one matrix")
    expect(page.locator("#order input")).to_have_value("each sub-block before its rebuild")
    page.get_by_role("button", name="Memory").click()
    expect(page.locator("#stream input")).to_be_checked()
    expect(page.locator("#max_memory").get_by_role("textbox")).to_have_value("2GiB")
    page.locator("#swaps").get_by_label("chosen by validation error").check()
    expect(threshold).not_to_be_visible()
    expect(page.locator("#granularity")).not_to_be_visible()
    expect(rounds).to_be_visible()
    page.locator("#refiner input").click()
    page.get_by_role("option", name="DSnoT").click()
    for name in ("swaps", "rounds", "metric"):
        expect(page.locator(f"#{name}")).not_to_be_visible()
    page.locator("#rebuild input").uncheck()
    expect(page.locator("#refiner")).not_to_be_visible()
    expect(page.locator("#order")).not_to_be_visible()
    page.locator("#reconstruct input").check()
    expect(page.locator("#order")).to_be_visible()
    page.close()


@pytest.mark.parametrize("typed", ["0", "4", "0.45"])
def test_a_typed_pattern_stays_as_typed(browser, server, complaints, typed):
    """Enter does not select a choice that merely contains the typed text, as 50% contains 0."""
    page = visit(browser, server, SHORT, complaints)
    pattern = page.locator("#sparsity input")
    pattern.click()
    pattern.fill("")
    pattern.press_sequentially(typed)
    pattern.press("Enter")
    expect(pattern).to_have_value(typed)
    page.locator("#run").click()
    if typed == "0.45":
        expect(page.locator("#status [role=progressbar]")).to_be_visible(timeout=30 * SECONDS)
    else:
        expect(page.locator(".bb-note")).to_contain_text(f"Sparsity ratio {typed} is not allowed")
        expect(page.locator("#status")).to_contain_text("press Run")
    page.close()


def test_a_choice_is_still_taken_with_the_arrow_keys(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    pattern = page.locator("#sparsity input")
    pattern.click()
    pattern.fill("4")
    pattern.press("ArrowDown")
    pattern.press("Enter")
    expect(pattern).to_have_value("4:8")
    page.close()


def test_an_option_is_shown_with_the_method_that_has_it(browser, server, complaints):
    page = visit(browser, server, SHORT + "&method=sparsegpt", complaints)
    page.get_by_role("button", name="Method in detail").click()
    expect(page.locator("#retain_reconstruction")).to_be_visible()
    page.locator("#method input").click()
    page.get_by_role("option", name="RIA").click()
    expect(page.locator("#retain_reconstruction")).not_to_be_visible()
    page.close()


def test_a_finished_run_shows_its_results(finished):
    result = finished.locator("#result")
    expect(result).to_contain_text("of the gap recovered")
    expect(result).to_contain_text(
        "weights pruned (59.5\N{NO-BREAK SPACE}%: of 60%, counts are rounded down in each row)"
    )
    title = result.locator("h2")
    expect(title).to_contain_text("storyteller · Wanda 60% · rebuilt by Barber, swaps by validation error")
    expect(title).to_contain_text("6 sequences of Stories, bundled · seed 0")
    expect(finished.locator("#status")).to_have_text("")
    result.locator("summary").click()
    expect(result.locator("tbody tr").first).to_be_visible()


def test_the_flips_are_drawn(finished):
    open_tab(finished, "Mask flips")
    expect(finished.locator("#module-map td[aria-selected=true]")).to_have_count(1, timeout=20 * SECONDS)
    assert drawn(finished, "sub-block-errors") >= 4
    by_layer = drawn(finished, "flip-bars")
    finished.locator("#flips-by").get_by_label("by module").check()
    expect(finished.locator("#flip-bars .xtick text", has_text="q_proj")).to_be_visible(timeout=10 * SECONDS)
    assert drawn(finished, "flip-bars") != 0 != by_layer


def test_the_saliency_follows_the_selection(finished):
    open_tab(finished, "Saliency")
    assert drawn(finished, "saliency-histogram") >= 4
    legend = finished.locator("#saliency-histogram .legendtext")
    before = legend.all_text_contents()
    assert [text.split()[0] for text in before] == ["kept", "pruned", "grown", "cut"]
    module = finished.locator("#module input")
    other = {"down_proj": "up_proj"}.get(module.input_value(), "down_proj")
    module.click()
    finished.get_by_role("option", name=other).click()
    expect(legend.first).not_to_have_text(before[0], timeout=30 * SECONDS)


def test_no_click_on_a_list_reaches_the_legend_below(finished):
    """The list of a dropdown covers the legend below it, and closes before the mouse button is released."""
    open_tab(finished, "Saliency")
    box = finished.locator("#saliency-histogram .legendtext").first.bounding_box()
    finished.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    finished.wait_for_timeout(1 * SECONDS)  # plotly waits for a double click
    expect(finished.locator("#saliency-histogram .legend .traces").first).to_have_css("opacity", "1")


def test_the_choices_follow_the_selection(finished):
    open_tab(finished, "Choices")
    assert drawn(finished, "choice-rounds") >= 10
    assert drawn(finished, "choice-curve") >= 4
    curve = finished.locator("#choice-curve .scatterlayer")
    expect(finished.locator("#choice-curve .legendtext").last).to_have_text("chosen")
    module = finished.locator("#module input")
    other = "q_proj" if module.input_value() in ("gate_proj", "up_proj", "down_proj") else "up_proj"
    before = curve.inner_html()
    module.click()
    finished.get_by_role("option", name=other).click()
    finished.wait_for_function(
        "before => document.querySelector('#choice-curve .scatterlayer').innerHTML !== before", arg=before
    )
    expect(module).to_have_value(other)


def test_the_perplexities_stand_in_figure_and_table(finished):
    open_tab(finished, "Perplexity")
    assert drawn(finished, "perplexity-dots") >= 3
    table = finished.locator("#perplexity-table")
    assert table.locator("tbody th").all_inner_texts() == ["dense", "initial mask", "rebuilt"]
    expect(table.locator("caption")).to_contain_text("tokens in windows of 64")


def test_three_models_generate_side_by_side(finished):
    open_tab(finished, "Text")
    columns = finished.locator(".bb-text")
    expect(columns).to_have_count(3)
    boxes = [column.bounding_box() for column in columns.all()]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    prompt = finished.locator("#prompt textarea")
    expect(prompt).not_to_have_value("")
    prompt.fill("Once upon a time, there was a barber")
    expect(finished.locator("#stop-writing")).to_be_disabled()
    finished.locator("#write").click()
    for title in ("dense", "initial", "rebuilt"):
        text = finished.locator(f"#text-{title} .bb-text p").first
        expect(text).to_contain_text("there was a barber", timeout=20 * SECONDS)
        expect(text).not_to_have_text("Once upon a time, there was a barber", timeout=20 * SECONDS)
    expect(finished.locator("#write")).to_be_enabled(timeout=20 * SECONDS)
    expect(finished.locator("#stop-writing")).to_be_disabled()


def test_writing_can_be_stopped(finished):
    open_tab(finished, "Text")
    finished.locator("#tokens input[type=number]").fill("400")
    finished.locator("#write").click()
    stop = finished.locator("#stop-writing")
    expect(stop).to_be_enabled()
    stop.click()
    expect(finished.locator("#write")).to_be_enabled()
    expect(stop).to_be_disabled()
    column = finished.locator("#text-rebuilt")
    expect(column).not_to_contain_text("processing")
    now = column.inner_text()
    finished.wait_for_timeout(1500)
    assert column.inner_text() == now


def test_the_next_text_may_follow_a_stopped_one_at_once(finished):
    open_tab(finished, "Text")
    column = finished.locator("#text-rebuilt")
    finished.locator("#tokens input[type=number]").fill("400")
    finished.locator("#prompt textarea").fill("The end of")
    for _ in range(8):
        finished.locator("#write").click()
        finished.locator("#stop-writing").click()
    finished.locator("#write").click()
    expect(column).to_contain_text("The end of", timeout=20 * SECONDS)
    expect(finished.locator("#write")).to_be_enabled(timeout=60 * SECONDS)
    expect(finished.locator("#text-dense")).to_contain_text("The end of")


def test_a_user_error_is_shown_on_the_page(browser, server, complaints):
    page = visit(browser, server, SHORT + "&sparsity=150%25", complaints)
    page.locator("#run").click()
    expect(page.locator(".bb-note")).to_contain_text("Sparsity ratio 1.5 is not allowed")
    expect(page.locator("#expected")).to_contain_text("To correct before Run: Pattern")
    expect(page.locator("#sparsity input")).to_be_focused()
    expect(page.locator("#run")).to_be_enabled()
    page.close()


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_overflows_the_page(browser, server, finished, complaints, width):
    finished.set_viewport_size({"width": width, "height": 844})
    for name in ("Mask flips", "Matrix", "Saliency", "Choices", "Perplexity", "Text"):
        open_tab(finished, name)
        assert finished.evaluate("document.documentElement.scrollWidth") <= width, name
    if width == 390:
        boxes = [column.bounding_box() for column in finished.locator(".bb-text").all()]
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]


def test_every_control_has_a_name(finished):
    finished.set_viewport_size({"width": 1400, "height": 900})
    nameless = finished.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select")]
        .filter(e => e.offsetParent && !(e.ariaLabel || e.textContent.trim() || e.labels?.length
            || e.getAttribute("aria-labelledby") || e.closest("label")))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_the_console_stayed_silent(finished, complaints):
    assert complaints == []
