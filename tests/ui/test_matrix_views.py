"""The map of the matrices, the window of a mask and the tables of numbers, as HTML."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest

from analysis.matrix import Window, changed_weights
from barber.events import Fate
from tests.analysis.test_frames import LIMIT
from ui import mask_window, module_map, tables


def flips(rows: list[tuple]) -> pd.DataFrame:
    columns = ["layer", "name", "module", "share", "grown", "cut"]
    return pd.DataFrame([(*row, 12, 12) for row in rows], columns=columns)


TWO = flips([(0, "a.q", "q", 0.5), (0, "a.k", "k", 0.00001), (1, "a.q", "q", 0.0), (1, "b.<x>", "<x>", 0.012)])


def buttons(html: str) -> list[dict]:
    """The attributes of the buttons of a map, and its text."""
    found = []
    for attributes, text in re.findall(r"<button ([^>]*)>([^<]*)<", html):
        found.append(dict(re.findall(r"([\w-]+)='([^']*)'", attributes)) | {"text": text})
    return found


def test_the_map_has_a_cell_for_each_matrix_with_its_share():
    cells = buttons(module_map.table(TWO, 0, "a.k"))
    assert [(cell["data-layer"], cell["data-module"]) for cell in cells] == [
        ("0", "a.q"), ("1", "a.q"), ("0", "a.k"), ("1", "b.&lt;x&gt;"),
    ]  # fmt: skip
    assert [cell["text"] for cell in cells] == ["50", "0", "&lt;0.01", "1.2"]
    assert cells[0]["aria-label"] == "layer 0, q: 50 % changed, 12 grown, 12 cut"
    assert [float(re.search(r"--share:([\d.]+)", cell["style"])[1]) for cell in cells] == [1, 0, 0, 0.024]


def test_a_layer_without_a_module_has_an_empty_cell():
    html = module_map.table(TWO, 0, "a.k")
    assert html.count("<td role='gridcell'></td>") == 2
    assert "<x>" not in html


@pytest.mark.parametrize(("layer", "name", "entry"), [(0, "a.k", 2), (1, "a.q", 1), (None, None, 0), (1, "a.k", 0)])
def test_tab_enters_the_map_at_the_selected_cell(layer, name, entry):
    html = module_map.table(TWO, layer, name)
    assert [cell["tabindex"] for cell in buttons(html)] == ["0" if place == entry else "-1" for place in range(4)]
    chosen = [row == (layer, name) for row in ((0, "a.q"), (1, "a.q"), (0, "a.k"), (1, "b.<x>"))]
    assert [match == "true" for match in re.findall(r"aria-selected='(\w+)'", html)] == chosen


def test_the_map_of_many_experts_stays_small():
    rows = [
        (layer, f"experts.{i}.w{k}", f"experts.{i}.w{k}", 0.01)
        for layer in range(2)
        for i in range(13)
        for k in (1, 2, 3)
    ]
    html = module_map.table(flips(rows), 0, "experts.0.w1")
    assert len(buttons(html)) == 2 * 39
    assert (
        len(module_map.table(flips([(la, f"m{i}", f"m{i}", 0.3) for la in range(32) for i in range(7)]), 0, "m1"))
        < LIMIT
    )


def test_a_window_carries_the_fate_of_each_weight():
    fates = np.random.default_rng(0).integers(0, 4, (256, 256)).astype(np.uint8)
    part = Window(300, 128, fates)
    value = mask_window.value(part, 4, "Rows of <layer>", changed_weights(part))
    assert (value["rows"], value["columns"], value["row"], value["column"], value["group"]) == (256, 256, 300, 128, 4)
    assert (np.frombuffer(base64.b64decode(value["fates"]), np.uint8).reshape(256, 256) == fates).all()
    assert value["name"] == "Rows of &lt;layer&gt;"
    assert "The first 300 of" in value["numbers"]
    assert len(json.dumps(value)) < LIMIT
    assert len(mask_window.COLOURS) == len(Fate)


def test_weights_travel_as_half_floats_relative_to_the_largest():
    weights = np.random.default_rng(0).normal(0, 1e-5, (256, 256)).astype(np.float32)
    part = Window(0, 0, np.zeros((256, 256), np.uint8))
    value = mask_window.value(part, 0, "window", changed_weights(part), weights)
    read = np.frombuffer(base64.b64decode(value["weights"]), np.float16).astype(float) * value["largest"]
    assert np.allclose(read.reshape(256, 256), weights, rtol=2e-3, atol=1e-9)
    assert len(json.dumps(value)) < LIMIT
    zeros = mask_window.value(part, 0, "window", changed_weights(part), np.zeros_like(weights))
    assert not any(base64.b64decode(zeros["weights"]))
    assert mask_window.value(part, 0, "window", changed_weights(part))["weights"] == ""


def test_a_table_has_its_numbers_and_no_markup_of_others():
    frame = pd.DataFrame({"<b>": ["<i>x</i>"], "count": [12345], "share": [0.123456], "none": [float("nan")]})
    html = tables.table(frame, 'a "name"')
    assert "<th scope='col'>&lt;b&gt;</th>" in html
    assert "&lt;i&gt;x&lt;/i&gt;" in html
    assert re.findall(r"<td>(.*?)</td>", html) == ["12,345", "0.1235", ""]
    assert 'aria-label="a &quot;name&quot;: numbers"' in html
    assert html.startswith("<details")
    assert " open" not in html
