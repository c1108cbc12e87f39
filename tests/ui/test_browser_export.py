"""The view Export in a real browser: a press makes a file, and the browser saves it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.browsing import LONG, SECONDS, SHORT, open_tab, visit

pytestmark = pytest.mark.browser
FILES = {
    "report": "barber-report.html",
    "csv": "barber-tables.zip",
    "json": "barber-tables.json",
    "masks": "barber-masks.safetensors",
}


def test_every_file_of_a_run_can_be_saved(browser, server, complaints, tmp_path):
    page = visit(browser, server, SHORT, complaints)
    open_tab(page, "Export")
    expect(page.get_by_text("This view then shows files to take away")).to_be_visible()
    page.locator("#run").click()
    expect(page.locator("#result .bb-done")).to_be_visible(timeout=120 * SECONDS)
    for name, file in FILES.items():
        with page.expect_download(timeout=30 * SECONDS) as saved:
            page.locator(f"#save-{name}").click()
        assert saved.value.suggested_filename == file
        saved.value.save_as(tmp_path / file)
        expect(page.locator(f"#about-{name} .bb-made")).to_contain_text(f"{file}, ")
    assert Path(tmp_path / FILES["report"]).stat().st_size < 6_000_000
    assert zipfile.is_zipfile(tmp_path / FILES["csv"])
    with page.expect_download(timeout=30 * SECONDS) as again:
        page.locator("#save-csv").click()
    again.value.save_as(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / FILES["csv"]).read_bytes()
    assert not complaints
    page.close()


def test_a_stopped_run_has_its_report_and_its_initial_masks(browser, server, complaints):
    page = visit(browser, server, LONG.replace("512", "128"), complaints, width=390)
    page.locator("#run").click()
    expect(page.locator("#blocks tbody tr").first).to_be_visible(timeout=120 * SECONDS)
    page.locator("#stop").click()
    expect(page.locator("#status .bb-stopped")).to_be_visible(timeout=5 * SECONDS)
    open_tab(page, "Export")
    with page.expect_download(timeout=30 * SECONDS) as saved:
        page.locator("#save-report").click()
    assert saved.value.suggested_filename == FILES["report"]
    page.locator("#save-masks").click()
    expect(page.locator("#about-masks")).to_contain_text("barber-masks.safetensors", timeout=20 * SECONDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
