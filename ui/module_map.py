"""The map of a model's matrices, layers beside modules: a table of buttons, of which one is selected."""

from __future__ import annotations

from html import escape

import gradio as gr

NAME = "Share of the mask that the rebuild changed, in percent"
# Tab enters the table at the selected cell; arrows, Home, End, Page Up and Page Down move in it, Enter selects.
KEYS = """
const cells = () => [...element.querySelectorAll("tbody tr")].map(row => [...row.querySelectorAll("td")]
  .map(cell => cell.querySelector("button")));
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-layer]");
  if (button) trigger("select", {layer: Number(button.dataset.layer), module: button.dataset.module});
});
element.addEventListener("keydown", event => {
  const rows = cells(), row = rows.findIndex(buttons => buttons.includes(event.target));
  if (row < 0) return;
  const column = rows[row].indexOf(event.target), last = rows[row].length - 1;
  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  let next = {Home: rows[row].find(Boolean), End: rows[row].findLast(Boolean),
    PageUp: rows.find(buttons => buttons[column])?.[column],
    PageDown: rows.findLast(buttons => buttons[column])?.[column]}[event.key];
  for (let [r, c] = [row, column]; step && !next; ) {
    [r, c] = [r + step[0], c + step[1]];
    if (!(r in rows) || c < 0 || c > last) break;
    next = rows[r][c];
  }
  if (step || next) event.preventDefault();
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
"""


def build() -> gr.HTML:
    """The empty map. Its event `select` has the data `layer` and `module`, the name within the layer."""
    return gr.HTML("", elem_id="module-map", js_on_load=KEYS)


def table(flips, layer: int | None, name: str | None) -> str:
    """The map of a frame as in frames.flips; `layer` and `name` say which cell is selected, if any."""
    rows = {(row.module, row.layer): row for row in flips.itertuples()}
    modules, layers = list(dict.fromkeys(flips["module"])), sorted(set(flips["layer"].tolist()))
    most = max(float(flips["share"].max()), 1e-9)
    chosen = (layer, name) if ((flips["layer"] == layer) & (flips["name"] == name)).any() else None
    entry = chosen or (int(flips["layer"].iloc[0]), flips["name"].iloc[0])
    head = "".join(f"<th scope='col'>{number}</th>" for number in layers)
    body = "".join(
        f"<tr><th scope='row'><span>{escape(module)}</span></th>"
        + "".join(_cell(rows.get((module, number)), most, chosen, entry) for number in layers)
        + "</tr>"
        for module in modules
    )
    return (
        f'<div class="bb-map"><table role="grid" aria-label="{NAME}">'
        f"<thead><tr><th scope='col'>layer</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(row, most: float, chosen: tuple | None, entry: tuple) -> str:
    """The cell of one matrix; empty where a layer has no such module."""
    if row is None:
        return "<td role='gridcell'></td>"
    place = (row.layer, row.name)
    words = f"layer {row.layer}, {row.module}: {_percent(row.share)} % changed, {row.grown:,} grown, {row.cut:,} cut"
    return (
        f"<td role='gridcell' aria-selected='{str(place == chosen).lower()}'>"
        f"<button type='button' tabindex='{0 if place == entry else -1}' data-layer='{row.layer}' "
        f"data-module='{escape(row.name)}' aria-label='{escape(words)}' title='{escape(words)}' "
        f"style='--share:{row.share / most:.3f}'>{escape(_percent(row.share))}</button></td>"
    )


def _percent(share: float) -> str:
    """A share in percent in few characters: 12, 3.4, 0.56, 0.07, <0.01, 0."""
    percent = 100 * share
    if 0 < percent < 0.005:
        return "<0.01"
    return f"{percent:.2g}" if percent >= 0.1 or not share else f"{percent:.2f}"
