"""Saliency: the distribution of log10 saliency in one weight matrix, by what became of each weight."""

from __future__ import annotations

import gradio as gr

from analysis import figures, frames
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there

EMPTY = empty("Press <b>Run</b>. Here you will see how much each weight matters, and what became of it.")
NO_SALIENCY = empty("This run has no rebuild, so no saliency was measured. Switch the rebuild on and run again.")


def build(hub: Hub, run_id: gr.State, ended: gr.events.Dependency) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        intro(
            "Saliency says how much the block's error feels a weight. A good mask keeps the right-hand side: "
            "<b class='bb-grown'>grown</b> weights were pruned though salient, <b class='bb-cut'>cut</b> ones were "
            "kept though not."
        )
        with gr.Row():
            layer = gr.Dropdown([], label="Layer", elem_id="saliency-layer", min_width=110)
            module = gr.Dropdown([], label="Module", elem_id="saliency-module", min_width=150)
            scale = gr.Radio(["linear", "log"], value="linear", label="Counts", elem_id="saliency-scale", min_width=150)
        figure = gr.Plot(show_label=False, container=False, elem_id="saliency-histogram")

    def draw(events: list, layer: int, module: str, scale: str):
        histogram = frames.saliency(events, layer, module)
        return gr.skip() if histogram.empty else plot(figures.saliency_histogram(histogram, scale == "log"), "saliency")

    def modules_of(flips, layer: int) -> list[tuple[str, str]]:
        rows = flips[flips["layer"] == layer]
        return list(zip(rows["module"], rows["name"], strict=True))

    def show(run: str | None, scale: str):
        events = hub.events(run)
        flips = frames.flips(events)
        if flips.empty:
            return nothing_yet(NO_SALIENCY if events else EMPTY, 3)
        first, name = frames.most_telling(flips)
        layers = sorted(set(flips["layer"].tolist()))
        return (
            *results_there(),
            gr.update(choices=layers, value=first),
            gr.update(choices=modules_of(flips, first), value=name),
            draw(events, first, name, scale),
        )

    def choose_layer(name: str | None, layer: int, module: str, scale: str):
        events = hub.events(name)
        choices = modules_of(frames.flips(events), layer)
        names = [value for _, value in choices]
        module = module if module in names else next(iter(names), None)
        return gr.update(choices=choices, value=module), draw(events, layer, module, scale)

    def redraw(name: str | None, layer: int, module: str, scale: str):
        return draw(hub.events(name), layer, module, scale)

    ended.then(show, [run_id, scale], [nothing, results, layer, module, figure], **CALM)
    layer.input(choose_layer, [run_id, layer, module, scale], [module, figure], **CALM)
    gr.on([module.input, scale.input], redraw, [run_id, layer, module, scale], figure, **CALM)
