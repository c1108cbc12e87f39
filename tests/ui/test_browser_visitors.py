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
        expect(page.locator("#status .bb-failed")).to_contain_text(MARKUP, timeout=60 * SECONDS)
        for place in ("#status", "#expected"):
            expect(page.locator(place)).to_contain_text(MARKUP)
            assert page.locator(f"{place} :is(a, b, strong)").count() == 0
        expect(page.locator("#expected")).not_to_be_visible()
        assert not complaints
