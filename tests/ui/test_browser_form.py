"""The form and the bar below it in a real browser: what is checked, said and kept before, during and after a run."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsing import LONG, SECONDS, SHORT, drawn, open_tab, visit

pytestmark = pytest.mark.browser

VIEWS = ("Mask flips", "Saliency", "Choices", "Perplexity", "Text")


def open_sections(page: Page, *titles: str) -> None:
    for title in titles:
        page.get_by_role("button", name=title).click()


def type_into(page: Page, name: str, text: str) -> None:
    """Replace the text of a field by keys, and leave it with the tab key."""
    field = page.locator(f"#{name} input, #{name} textarea")
    field.click()
    field.fill("")
    field.press_sequentially(text)
    field.press("Tab")


@pytest.mark.parametrize("width", [390, 1400])
def test_run_and_the_estimate_are_in_sight_wherever_the_page_is(browser, server, complaints, width):
    page = visit(browser, server, SHORT, complaints, width)
    expect(page.locator("#expected")).to_contain_text("Expected on cpu: about", timeout=30 * SECONDS)
    open_sections(page, "Method in detail", "Data and seed", "Memory")
    for target in ("header", "#max_memory", "#views"):
        page.locator(target).first.scroll_into_view_if_needed()
        for part in ("#run", "#stop", "#expected"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
        top = page.evaluate(
            "() => { const box = document.querySelector('#run').getBoundingClientRect();"
            "return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).id; }"
        )
        assert top == "run"
    page.close()


def test_the_estimate_follows_the_form(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    expected = page.locator("#expected")
    expect(expected).to_contain_text("Expected on cpu: about", timeout=30 * SECONDS)
    small = expected.inner_text()
    open_sections(page, "Data and seed")
    type_into(page, "nsamples", "512")
    type_into(page, "seqlen", "256")
    expect(expected).not_to_have_text(small, timeout=20 * SECONDS)
    type_into(page, "seqlen", "3000")
    expect(expected).to_contain_text("Sequence length 3000 is beyond the")
    type_into(page, "seqlen", "64")
    type_into(page, "sparsity", "1:7")
    expect(expected).to_contain_text("A pattern over 7 consecutive inputs does not fit")
    page.close()


WRONG = [
    ("sparsity", "0", "60%", "Sparsity ratio 0 is not allowed"),
    ("sparsity", "4", "60%", "Sparsity ratio 4 is not allowed"),
    ("seed", "", "0", "Seed is empty: give a whole number from 0 to 4294967295."),
    ("nsamples", "12.7", "6", "Samples 12.7 is not allowed: give a whole number from 1 to 65536."),
    ("nsamples", "many", "6", "Samples 'many' is not a number"),
    ("evaluation", ",", "storyteller", "Evaluation data ',' is empty"),
    ("rounds", "0", "", "Rounds 0 is not allowed"),
    ("max_memory", "much", "", "Memory limit 'much' is not a size"),
]


def test_every_value_is_checked_where_it_stands(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    open_sections(page, "Method in detail", "Data and seed", "Memory")
    note = page.locator(".bb-note")
    for name, wrong, right, sentence in WRONG:
        field = page.locator(f"#{name} input, #{name} textarea")
        type_into(page, name, wrong)
        expect(note).to_contain_text(sentence)
        below, above = note.bounding_box(), field.bounding_box()
        assert 0 < below["y"] - above["y"] < 120, name
        expect(field).to_have_value(wrong)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#expected")).to_contain_text("To correct before Run:")
        url = page.url
        page.locator("#run").click()
        expect(field).to_be_focused()
        assert page.url == url, name
        type_into(page, name, right)
        expect(note).to_have_count(0)
    expect(page.locator("#expected")).to_contain_text("Expected on cpu")
    page.close()


def test_a_preset_fills_the_form_and_the_command_line_follows(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    open_sections(page, "Method in detail", "Command line")
    line = page.locator("#command textarea")
    for title, pattern, flags in (
        ("Paper", "50%", "--sparsity_ratio 0.5 --prune_barber --nsamples 128"),
        ("2:4", "2:4", "--sparsity_type 2:4 --prune_barber --threshold auto --nsamples 128"),
        (
            "High sparsity",
            "70%",
            "--sparsity_ratio 0.7 --prune_barber --threshold auto --allocation owl --nsamples 128",
        ),
    ):
        page.get_by_role("button", name=title, exact=True).click()
        expect(page.locator("#sparsity input")).to_have_value(pattern)
        expected = f"python main.py --model storyteller --prune_method wanda {flags} --eval_data storyteller"
        expect(line).to_have_value(expected, timeout=20 * SECONDS)
    page.get_by_role("button", name="Paper", exact=True).click()
    expect(page.locator("#threshold").locator("input, textarea")).to_have_value("0.01")
    expect(page.locator("#granularity input")).to_have_value("one output row")
    type_into(page, "threshold", "2")
    expect(line).to_have_value("")
    page.close()


def test_a_refused_run_opens_the_section_of_the_field(browser, server, complaints):
    page = visit(browser, server, SHORT.replace("nsamples=6", "nsamples=0"), complaints)
    expect(page.locator("#expected")).to_have_text("To correct before Run: Samples.", timeout=20 * SECONDS)
    page.locator("#run").click()
    expect(page.locator("#nsamples").locator("input, textarea")).to_be_focused()
    type_into(page, "nsamples", "3")
    expect(page.locator("#expected")).to_contain_text("uses every 4th calibration sequence for validation, but got 3")
    type_into(page, "nsamples", "4")
    expect(page.locator("#expected")).to_contain_text("Expected on cpu")
    assert page.locator(".bb-note").count() == 0
    page.close()


def test_what_is_hidden_is_not_in_the_way(browser, server, complaints):
    """A switch that hides fields and shows them again changes none of them; a hidden value is never wrong."""
    page = visit(browser, server, SHORT, complaints)
    open_sections(page, "Method in detail")
    page.locator("#rebuild input").uncheck()
    expect(page.locator("#rounds")).not_to_be_visible()
    page.locator("#rebuild input").check()
    expect(page.locator("#rounds").locator("input, textarea")).to_have_value("")
    type_into(page, "rounds", "0")
    expect(page.locator(".bb-note")).to_contain_text("Rounds 0 is not allowed")
    page.locator("#rebuild input").uncheck()
    expect(page.locator("#expected")).to_contain_text("Expected on cpu")
    expect(page.locator(".bb-note")).not_to_be_visible()
    page.close()


@pytest.mark.parametrize("way", ["Tab", "Enter", "click"])
def test_a_typed_pattern_stays_however_it_is_left(browser, server, complaints, way):
    page = visit(browser, server, SHORT, complaints)
    pattern = page.locator("#sparsity input")
    pattern.click()
    pattern.fill("")
    pattern.press_sequentially("0.4")
    page.locator("h1").click() if way == "click" else pattern.press(way)
    expect(page.locator("[role=listbox]")).to_have_count(0)
    expect(pattern).to_have_value("0.4")
    page.close()


def test_while_a_run_goes_the_views_say_so_and_plotly_is_loaded(browser, server, complaints):
    page = visit(browser, server, LONG, complaints)
    loaded: list[str] = []
    page.on("response", lambda response: loaded.append(response.url))
    page.locator("#run").click()
    expect(page.locator("#status [role=progressbar]")).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#doing")).to_contain_text("%")
    for view in VIEWS:
        open_tab(page, view)
        expect(page.get_by_text("The run goes on.").locator("visible=true")).to_have_count(1)
        expect(page.get_by_text("Press Run").locator("visible=true")).to_have_count(0)
    assert any("PlotlyPlot" in url for url in loaded)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible()
    expect(page.get_by_text("Press Run").locator("visible=true")).to_have_count(1)
    page.close()


def test_the_keyboard_stays_where_it_was(browser, server, complaints):
    """Tab closes every list behind it, and the focus is on the button that can be pressed."""
    page = visit(browser, server, LONG, complaints)
    page.locator("#model input").focus()
    for _ in range(5):
        page.keyboard.press("Tab")
        own = page.locator("[role=combobox]:focus").count()  # a dropdown opens its list when it gets the focus
        expect(page.locator("[role=listbox]")).to_have_count(own)
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused(timeout=30 * SECONDS)
    page.keyboard.press("Enter")
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#run")).to_be_focused()
    page.close()


def test_the_last_result_stays_until_there_is_another(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    page.locator("#run").click()
    result = page.locator("#result .bb-done")
    expect(result).to_be_visible(timeout=120 * SECONDS)
    expect(page.locator("#changed")).not_to_be_visible()
    first = result.inner_text()
    bars = drawn(page, "flip-bars")
    open_sections(page, "Data and seed")
    type_into(page, "seed", "7")
    expect(page.locator("#changed")).to_have_text("Changed in the form since this run: Seed.")
    type_into(page, "calibration", "no-such-file.txt")
    expect(page.locator("#changed")).to_contain_text("Calibration text, Seed.")
    page.locator("#run").click()
    expect(page.locator("#status .bb-failed")).to_contain_text("no-such-file.txt", timeout=60 * SECONDS)
    expect(page.locator("#run")).to_be_enabled()
    assert page.get_by_text("no-such-file.txt").count() == 1
    type_into(page, "calibration", "storyteller")
    type_into(page, "nsamples", "512")
    page.locator("#run").click()
    expect(page.locator("#status .bb-running")).to_be_visible(timeout=30 * SECONDS)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=2 * SECONDS)
    assert result.inner_text() == first
    assert drawn(page, "flip-bars") == bars
    type_into(page, "seed", "0")
    type_into(page, "nsamples", "6")
    expect(page.locator("#changed")).not_to_be_visible()
    page.close()


def test_a_refused_prompt_is_said_once_and_not_echoed(browser, server, complaints):
    page = visit(browser, server, SHORT, complaints)
    page.locator("#run").click()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    open_tab(page, "Text")
    before = page.locator("#text-dense").inner_text()
    page.locator("#prompt textarea").fill("barber " * 1200)
    page.locator("#write").click()
    problem = page.locator("#text-problem")
    expect(problem).to_contain_text("tokens, but the model has room for", timeout=30 * SECONDS)
    assert page.get_by_text("barber barber").count() <= 1
    assert page.locator("#text-dense").inner_text() == before
    page.locator("#prompt textarea").fill("Once upon a time")
    type_into(page, "text-seed", "")
    page.locator("#write").click()
    expect(problem).to_have_text("Seed is empty: give a whole number from 0 to 4294967295.")
    type_into(page, "text-seed", "1")
    page.locator("#write").click()
    expect(page.locator("#text-rebuilt")).to_contain_text("Once upon a time", timeout=30 * SECONDS)
    expect(problem).not_to_be_visible()
    page.close()


def test_the_console_stayed_silent(complaints):
    assert complaints == []
