"""The weight matrix that the views show: one layer and module for all of them, in two lists above the views."""

from __future__ import annotations

import secrets
from functools import partial
from typing import NamedTuple

import gradio as gr

from analysis import frames
from ui.hub import Hub
from ui.views import CALM

# Gradio tells the page that a state has changed only from its queue; "multiple", so that no choice is lost.
SELECTING = CALM | {"queue": True, "trigger_mode": "multiple"}


class Matrix(NamedTuple):
    """What the views of one matrix show.

    Attributes:
        run: id of the run, None before the first.
        layer, module: number of the layer and name within it; None where the run has no masks.
        mark: new each time the views are to be drawn, also if the rest is as before.
        chosen: whether the visitor chose it.
    """

    run: str | None
    layer: int | None
    module: str | None
    mark: str = ""
    chosen: bool = False


class Selection(NamedTuple):
    """The two lists, and the state `shown`, a Matrix, whose `change` is the event to draw the views of a matrix at."""

    layer: gr.Dropdown
    module: gr.Dropdown
    shown: gr.State


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> Selection:
    with gr.Row(visible=False, elem_id="selection", elem_classes="bb-selection") as row:
        layer = gr.Dropdown([], label="Layer", elem_id="layer", min_width=100, scale=1)
        module = gr.Dropdown([], label="Module", elem_id="module", min_width=150, scale=2)
    selection = Selection(layer, module, gr.State(Matrix(None, None, None)))
    redraw.change(partial(first, hub), [run_id, selection.shown], [row, *selection], **SELECTING)
    inputs = [selection.shown, layer, module]
    gr.on([layer.input, module.input], partial(select, hub), inputs, [*selection], **SELECTING)
    return selection


def select(hub: Hub, shown: Matrix, layer: int | None, module: str | None, chosen: bool = True) -> tuple:
    """Values of a Selection for the module of a layer, or the first one where the layer has no such module."""
    frame = frames.masked(hub.events(shown.run))
    if layer not in set(frame["layer"]):
        return tuple(gr.skip() for _ in Selection._fields)
    rows = frame[frame["layer"] == layer]
    module = module if module in set(rows["name"]) else rows["name"].iloc[0]
    choices = list(zip(rows["module"], rows["name"], strict=True))
    return (
        gr.update(choices=sorted(set(frame["layer"].tolist())), value=layer),
        gr.update(choices=choices, value=module),
        shown._replace(layer=layer, module=module, chosen=chosen),
    )


def first(hub: Hub, run: str | None, before: Matrix) -> tuple:
    """Whether the lists are shown, and the values for the matrix that the views are to show.

    It is the one chosen `before` in the same run; else the one that the rebuild changed most, or the first one.
    """
    events = hub.events(run)
    flips, frame = frames.flips(events), frames.masked(events)
    shown = Matrix(run, None, None, secrets.token_hex(4))
    if frame.empty:
        return gr.update(visible=False), gr.skip(), gr.skip(), shown
    if before.run == run and before.chosen:
        return gr.update(visible=True), *select(hub, shown, before.layer, before.module)
    beginning = int(frame["layer"].iloc[0]), frame["name"].iloc[0]
    layer, module = beginning if flips.empty else frames.most_changed(flips)
    return gr.update(visible=True), *select(hub, shown, layer, module, chosen=False)
