"""The view that compares runs, without a browser."""

from __future__ import annotations

from barber.events import TextGenerated
from tests.ui.test_history import card, spec
from ui.compare_tab import _differences, _texts, _titles


def text(words: str) -> list:
    return [TextGenerated("rebuilt", "Once", words, done=True)]


def test_only_settings_that_differ_are_listed():
    cards = {"A": card("a"), "B": card("b", job=spec(sparsity="2:4", seed=3).to_dict())}
    table = _differences(cards)
    assert table.count("<tr>") == 3
    for words in ("Pattern", "60%", "2:4", "Seed", "<td>0</td><td>3</td>"):
        assert words in table
    assert "same settings" in _differences({"A": card("a"), "B": card("b")})


def test_a_title_cannot_hold_markup():
    assert "<img" not in _titles({"A": card("a", title="<img src=x>")})


def test_the_start_that_equals_the_first_text_is_marked():
    shown = _texts({"A": text(" upon a time"), "B": text(" upon <b>hill")}, "Once", "rebuilt")
    assert "<p> upon a time</p>" in shown
    assert "<p> <mark>upon</mark> &lt;b&gt;hill</p>" in shown
    assert _texts({"A": [], "B": []}, None, None) == ""
