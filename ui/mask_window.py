"""A window of a mask: one square for each weight, coloured by its fate, which says what it is under the pointer."""

from __future__ import annotations

from base64 import b64encode
from html import escape

import gradio as gr

from analysis.style import FATE_COLOUR, faded
from barber.events import Fate
from ui.tables import table

STRENGTH = {Fate.KEPT: 0.75, Fate.PRUNED: 0.14, Fate.GROWN: 1.0, Fate.CUT: 1.0}
COLOURS = [faded(FATE_COLOUR[fate], STRENGTH[fate]) for fate in Fate]
NOTHING = {
    "rows": 0,
    "columns": 0,
    "row": 0,
    "column": 0,
    "group": 0,
    "fates": "",
    "weights": "",
    "largest": 0,
    "name": "",
    "numbers": "",
}
LEGEND = "".join(
    f'<li><i style="background:{colour}"></i>{fate}</li>' for fate, colour in zip(Fate, COLOURS, strict=True)
)
TEMPLATE = f"""
<p class="bb-caption" id="mask-window-name">${{value.name}}</p>
<ul class="bb-legend" aria-hidden="true">{LEGEND}</ul>
<div class="bb-window"><canvas tabindex="0" role="application" aria-labelledby="mask-window-name"
  aria-describedby="mask-window-keys"></canvas><span aria-hidden="true" hidden></span></div>
<p class="bb-readout" role="status">Point at a weight, or move with the arrow keys.</p>
<p id="mask-window-keys" hidden>Arrow keys move by one weight, Page Up and Page Down by 16 rows, Home and End to the
ends of the row.</p>
${{value.numbers}}
"""
DRAW = """
const canvas = element.querySelector("canvas"), outline = element.querySelector(".bb-window span");
const readout = element.querySelector(".bb-readout"), colours = %s, names = %s;
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
let fates = new Uint8Array(), weights = new Uint16Array(), at = null;

// The weight of a place, from 16 bits: a sign, 5 bits of exponent and 10 bits of fraction.
function weight(place) {
  const bits = weights[place], exponent = bits >> 10 & 31, fraction = (bits & 1023) / 1024;
  const size = exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14;
  return (bits >> 15 ? -1 : 1) * size * props.value.largest;
}

function draw() {
  const {rows, columns, column, group} = props.value;
  fates = bytes(props.value.fates);
  weights = new Uint16Array(bytes(props.value.weights).buffer);
  at = null;
  outline.hidden = true;
  const side = Math.max(2, Math.floor(1280 / Math.max(columns, 1)));
  [canvas.width, canvas.height] = [columns * side, rows * side];
  const context = canvas.getContext("2d");
  fates.forEach((fate, place) => {
    context.fillStyle = colours[fate];
    context.fillRect(place %% columns * side, Math.floor(place / columns) * side, side, side);
  });
  if (group < 2) return;
  context.fillStyle = getComputedStyle(canvas).color;
  for (let guide = (group - column %% group) %% group; guide < columns; guide += group)
    context.fillRect(guide * side, 0, Math.max(1, side / 10), canvas.height);
}

function point(row, column) {
  const {rows, columns} = props.value;
  if (!rows) return;
  at = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
  const share = (part, whole) => `${100 * part / whole}%%`;
  Object.assign(outline.style, {left: share(at[1], columns), top: share(at[0], rows), width: share(1, columns),
    height: share(1, rows)});
  outline.hidden = false;
  const place = at[0] * columns + at[1];
  readout.textContent =
    `row ${props.value.row + at[0]}, column ${props.value.column + at[1]}: ${names[fates[place]]}` +
    (weights.length ? `, dense weight ${Number(weight(place).toPrecision(3))}` : "");
}

canvas.addEventListener("pointermove", event => {
  const {rows, columns} = props.value;
  const [down, along] = [event.offsetY / canvas.clientHeight, event.offsetX / canvas.clientWidth];
  point(Math.floor(down * rows), Math.floor(along * columns));
});
canvas.addEventListener("keydown", event => {
  const [row, column] = at ?? [0, 0], {rows, columns} = props.value;
  const next = {ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column], Home: [row, 0], End: [row, columns - 1], PageUp: [row - 16, column],
    PageDown: [row + 16, column]}[event.key];
  if (!next) return;
  event.preventDefault();
  point(...(at ? next : [0, 0]));
});
watch("value", draw);
draw();
"""


def build() -> gr.HTML:
    """The empty window; its value is from `value`."""
    script = DRAW % (COLOURS, [str(fate) for fate in Fate])
    return gr.HTML(NOTHING, html_template=TEMPLATE, js_on_load=script, elem_id="mask-window", elem_classes="bb-chart")


def value(window, group: int, name: str, numbers, weights=None) -> dict:
    """What the window shows.

    window: analysis.matrix.Window. group: the m of n:m, 0 for no guides. numbers: a frame. weights: float array of the
    window's shape, where the values are known; they travel as half floats, relative to the largest.
    """
    rows, columns = window.fates.shape
    largest = float(abs(weights).max()) if weights is not None else 0.0
    halves = (weights / (largest or 1.0)).astype("<f2").tobytes() if weights is not None else b""
    return {
        "rows": rows,
        "columns": columns,
        "row": window.row,
        "column": window.column,
        "group": group,
        "fates": b64encode(window.fates.tobytes()).decode(),
        "weights": b64encode(halves).decode(),
        "largest": largest,
        "name": escape(name),
        "numbers": table(numbers, name),
    }
