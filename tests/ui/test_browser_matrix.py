"""One weight matrix in a real browser: the map, the shared selection, the window of single weights and the charts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from barber.bundled import STORYTELLER
from barber.events import Stage
from barber.models.stored_weights import read_weight
from barber.runs.directory import RunDirectory
from tests.support.browsing import SECONDS, SHORT, drawn, open_tab, visit

pytestmark = pytest.mark.browser

CHARTS = {
    "Mask flips": ("flip-bars", "sub-block-errors"),
    "Matrix": ("matrix-density", "matrix-rows", "matrix-columns", "matrix-patterns"),
    "Saliency": ("saliency-histogram",),
    "Choices": ("choice-rounds", "choice-curve", "gain-curve"),
    "Perplexity": ("perplexity-dots",),
}


@pytest.fixture(scope="module")
def finished(browser, server, complaints) -> Iterator[Page]:
    """A page with one finished run of a 2:4 pattern."""
    page = visit(browser, server, SHORT + "&sparsity=2:4", complaints)
    page.locator("#run").click()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    yield page
    page.close()


@pytest.fixture
def directory(server) -> RunDirectory:
    (run,) = [path for path in server.runs.iterdir() if path.is_dir()]
    return RunDirectory(run)


def cell(page: Page, layer: int, module: str) -> Locator:
    return page.locator(f"#module-map button[data-layer='{layer}'][data-module='{module}']")


def selected(page: Page) -> Locator:
    return page.locator("#module-map td[aria-selected=true] button")


def test_a_click_on_the_map_selects_the_matrix_for_all_views(finished):
    open_tab(finished, "Mask flips")
    expect(selected(finished)).to_have_count(1, timeout=20 * SECONDS)
    cell(finished, 3, "mlp.up_proj").click()
    expect(selected(finished)).to_have_attribute("data-module", "mlp.up_proj", timeout=30 * SECONDS)
    expect(finished.locator("#layer input")).to_have_value("3")
    expect(finished.locator("#module input")).to_have_value("up_proj")
    for tab, caption in (
        ("Matrix", "#mask-window-name"),
        ("Saliency", "#saliency-histogram-name"),
    ):
        open_tab(finished, tab)
        expect(finished.locator(caption)).to_contain_text("layer 3, mlp.up_proj", timeout=30 * SECONDS)
    open_tab(finished, "Choices")
    expect(finished.locator("#gain-curve-name")).to_contain_text("layer 3, mlp")


def test_the_map_is_used_with_the_keyboard(finished):
    open_tab(finished, "Mask flips")
    cell(finished, 0, "self_attn.q_proj").click()
    expect(selected(finished)).to_have_attribute("data-module", "self_attn.q_proj", timeout=30 * SECONDS)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        finished.keyboard.press(key)
    expect(cell(finished, 2, "self_attn.k_proj")).to_be_focused()
    for key, (layer, module) in {
        "Home": (0, "self_attn.k_proj"),
        "End": (4, "self_attn.k_proj"),
        "PageDown": (4, "mlp.down_proj"),
        "PageUp": (4, "self_attn.q_proj"),
    }.items():
        finished.keyboard.press(key)
        expect(cell(finished, layer, module)).to_be_focused()
    finished.keyboard.press("ArrowUp")
    finished.keyboard.press("Enter")
    expect(selected(finished)).to_have_attribute("data-layer", "4", timeout=30 * SECONDS)
    expect(selected(finished)).to_be_focused()
    assert finished.locator("#module-map button[tabindex='0']").count() == 1


def test_the_lists_select_the_matrix_too(finished):
    open_tab(finished, "Mask flips")
    finished.locator("#layer input").click()
    finished.get_by_role("option", name="1", exact=True).click()
    finished.locator("#module input").click()
    finished.get_by_role("option", name="o_proj").click()
    expect(selected(finished)).to_have_attribute("data-layer", "1", timeout=30 * SECONDS)
    expect(selected(finished)).to_have_attribute("data-module", "self_attn.o_proj", timeout=30 * SECONDS)
    for tab, visible in (("Perplexity", False), ("Text", False), ("Choices", True)):
        open_tab(finished, tab)
        expect(finished.locator("#selection")).to_be_visible(visible=visible)


def test_the_window_says_what_each_weight_is(finished, directory):
    open_tab(finished, "Mask flips")
    cell(finished, 2, "mlp.down_proj").click()
    open_tab(finished, "Matrix")
    expect(finished.locator("#mask-window-name")).to_contain_text("layer 2, mlp.down_proj", timeout=30 * SECONDS)
    before, after = (directory.masks(2, stage)["mlp.down_proj"] for stage in (Stage.INITIAL, Stage.REBUILT))
    row, column = (after < before).nonzero()[0].tolist()
    assert row < 64 > column
    canvas, readout = finished.locator("#mask-window canvas"), finished.locator("#mask-window .bb-readout")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover(position={"x": (column + 0.5) * box["width"] / 64, "y": (row + 0.5) * box["height"] / 64})
    expect(readout).to_have_text(f"row {row}, column {column}: grown")
    canvas.focus()
    finished.keyboard.press("Home")
    finished.keyboard.press("ArrowRight")
    expect(readout).to_contain_text(f"row {row}, column 1: ")
    fate = {(0, 0): "kept", (1, 1): "pruned", (1, 0): "grown", (0, 1): "cut"}
    expect(readout).to_contain_text(fate[int(before[row, 1]), int(after[row, 1])])


def test_the_window_has_the_dense_weights_if_asked(finished):
    open_tab(finished, "Mask flips")
    cell(finished, 1, "self_attn.k_proj").click()
    open_tab(finished, "Matrix")
    expect(finished.locator("#mask-window-name")).to_contain_text("layer 1, self_attn.k_proj", timeout=30 * SECONDS)
    canvas, readout = finished.locator("#mask-window canvas"), finished.locator("#mask-window .bb-readout")
    finished.locator("#window-values input").check()
    weight = read_weight(STORYTELLER, 1, "self_attn.k_proj")[0, 3].item()
    canvas.scroll_into_view_if_needed()

    def said() -> str:
        canvas.focus()
        for key in ("ArrowUp", "Home", "ArrowRight", "ArrowRight", "ArrowRight"):
            finished.keyboard.press(key)
        return readout.inner_text()

    for _ in range(60):
        if "dense weight" in said():
            break
        finished.wait_for_timeout(500)
    assert float(said().split("dense weight ")[1]) == pytest.approx(weight, rel=5e-3)
    finished.locator("#window-values input").uncheck()


def test_the_window_moves(finished, directory):
    open_tab(finished, "Mask flips")
    cell(finished, 0, "mlp.down_proj").click()
    open_tab(finished, "Matrix")
    name = finished.locator("#mask-window-name")
    expect(name).to_contain_text("layer 0, mlp.down_proj", timeout=30 * SECONDS)
    height, width = directory.masks(0, Stage.INITIAL)["mlp.down_proj"].shape
    assert width > 64
    first = finished.locator("#window-column input[type=number]")
    first.fill("20")
    first.press("Enter")
    expect(name).to_contain_text(f"columns 20 to {20 + 64 - 1}", timeout=30 * SECONDS)
    finished.locator("#window-size input").click()
    finished.get_by_role("option", name="32", exact=True).click()
    expect(name).to_contain_text("Rows 0 to 31 and columns 20 to 51", timeout=30 * SECONDS)
    finished.locator("#window-size input").click()
    finished.get_by_role("option", name="256").click()
    expect(name).to_contain_text(f"Rows 0 to {height - 1} and columns 0 to {width - 1}", timeout=30 * SECONDS)


def test_every_chart_has_a_name_and_its_numbers(finished):
    for tab, charts in CHARTS.items():
        open_tab(finished, tab)
        for chart in charts:
            assert drawn(finished, chart) >= 1
            figure = finished.get_by_role("figure").filter(has=finished.locator(f"#{chart}"))
            name = finished.locator(f"#{chart}-name")
            expect(name).not_to_be_empty()
            expect(figure).to_have_accessible_name(name.inner_text())
            if tab == "Perplexity":
                continue
            summary = figure.locator("summary")
            expect(figure.locator("table")).not_to_be_visible()
            summary.click()
            expect(figure.locator("tbody tr").first).to_be_visible()
            summary.click()


def test_an_open_table_stays_open_when_the_figure_changes(finished):
    open_tab(finished, "Saliency")
    figure = finished.get_by_role("figure").filter(has=finished.locator("#saliency-histogram"))
    figure.locator("summary").click()
    expect(figure.locator("thead th")).to_have_text(["left", "right", "kept", "pruned", "grown", "cut"])
    finished.locator("#saliency-curves").get_by_label("initial and rebuilt mask").check()
    expect(figure.locator("thead th").nth(2)).to_have_text("kept by the initial mask", timeout=30 * SECONDS)
    expect(figure.locator("tbody tr").first).to_be_visible()
    finished.locator("#saliency-curves").get_by_label("fate of the weight").check()


def test_the_curves_of_saliency_stand_apart_and_add_up(finished):
    open_tab(finished, "Saliency")
    finished.locator("#saliency-layout").get_by_label("a panel each").check()
    expect(finished.locator("#saliency-histogram .cartesianlayer > .subplot")).to_have_count(4, timeout=30 * SECONDS)
    finished.locator("#saliency-scale input").click()
    finished.get_by_role("option", name="cumulative share").click()
    expect(finished.locator("#saliency-histogram-name")).to_contain_text("cumulative share", timeout=30 * SECONDS)
    finished.locator("#saliency-layout").get_by_label("one panel").check()
    expect(finished.locator("#saliency-histogram .cartesianlayer > .subplot")).to_have_count(1, timeout=30 * SECONDS)


def test_the_map_scrolls_within_itself(finished):
    finished.set_viewport_size({"width": 390, "height": 844})
    open_tab(finished, "Mask flips")
    finished.evaluate(
        """() => { const row = document.querySelector("#module-map tbody tr");
        for (let i = 0; i < 40; i++) row.append(row.lastElementChild.cloneNode(true)); }"""
    )
    box = finished.locator(".bb-map")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    assert finished.evaluate("document.documentElement.scrollWidth") <= 390
    finished.set_viewport_size({"width": 1400, "height": 900})


def test_the_console_stayed_silent(finished, complaints):
    assert complaints == []
