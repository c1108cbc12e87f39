"""Text of visitors in a real browser is shown as text, never as markup."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.support.app_server import serving
from tests.support.browsing import SECONDS, SHORT, launched, visit

MARKUP = "<a href='https://example.org'>a prize</a>**bold**"


@pytest.mark.parametrize("width", [1400, 390])
def test_a_link_brings_no_markup_into_the_page(tmp_path, width):
    with serving(tmp_path) as server, launched() as browser:
        complaints: list[str] = []
        page = visit(browser, server, f"{SHORT}&model={quote(MARKUP)}", complaints, width)
        page.locator("#run").click()
        toast = page.get_by_test_id("toast-body")
        expect(toast).to_contain_text(MARKUP, timeout=60 * SECONDS)
        assert toast.locator("a, b, strong").count() == 0
        expect(page.locator("#status .bb-failed")).to_contain_text(MARKUP)
        assert page.locator("#status a").count() == 0
        assert not complaints
