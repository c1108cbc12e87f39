"""Mask flips: how many mask bits the rebuild changed in each weight matrix, and the error of each sub-block."""

from __future__ import annotations

import gradio as gr

from analysis import figures, frames
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("how many mask bits the rebuild changed in each weight matrix.")
NO_FLIPS = empty("This run has no rebuild, so no mask flipped. Switch the rebuild on and run again.")
UNCHANGED = "The rebuild changed no mask: the rebuilt mask of every weight matrix equals the initial one."


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        unchanged = gr.HTML(f'<p class="bb-intro">{UNCHANGED}</p>', visible=False)
        with gr.Column() as changed:
            intro(
                "Each cell is one weight matrix; a stronger blue means that the rebuild changed a larger share of its "
                "mask. A <b class='bb-grown'>grown</b> weight is pruned by the initial mask and kept by the rebuilt "
                "one, a <b class='bb-cut'>cut</b> weight is kept by the initial mask and pruned by the rebuilt one."
            )
            heatmap = gr.Plot(show_label=False, container=False, elem_id="flip-heatmap")
            by = gr.Radio(
                [("by layer", "layer"), ("by module", "module")],
                value="layer",
                label="Weights grown and cut",
                elem_id="flips-by",
            )
            bars = gr.Plot(show_label=False, container=False, elem_id="flip-bars")
        intro(
            "Output error of each sub-block with the initial mask and with its final weights: the mean squared "
            "difference from its target, which is the output with dense weights. Lower is better."
        )
        errors = gr.Plot(show_label=False, container=False, elem_id="sub-block-errors")
        refit = gr.HTML(visible=False, elem_id="refit")

    def show(name: str | None, by: str):
        events = hub.events(name)
        flips = frames.flips(events)
        if flips.empty:
            return nothing_yet(NO_FLIPS if events else EMPTY, 6)
        any_changed = bool(flips["grown"].any())
        refitted = frames.describe_refits(frames.refits(events))
        return (
            *results_there(),
            gr.update(visible=not any_changed),
            gr.update(visible=any_changed),
            plot(figures.flip_heatmap(flips), "flips"),
            plot(figures.flip_bars(flips, by), "grown-and-cut"),
            plot(figures.sub_block_errors(frames.sub_blocks(events)), "errors"),
            gr.update(value=f'<p class="bb-intro">{refitted}</p>', visible=bool(refitted)),
        )

    def regroup(name: str | None, by: str):
        flips = frames.flips(hub.events(name))
        return gr.skip() if flips.empty else plot(figures.flip_bars(flips, by), "grown-and-cut")

    redraw.change(show, [run_id, by], [nothing, results, unchanged, changed, heatmap, bars, errors, refit], **CALM)
    by.input(regroup, [run_id, by], bars, **CALM)
