"""Mask flips: where the rebuild changed the mask, and what it did to each sub-block's error."""

from __future__ import annotations

import gradio as gr

from analysis import figures, frames
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there

EMPTY = empty("Press <b>Run</b>. Here you will see which layers changed their mind about which weights.")
NO_FLIPS = empty("This run has no rebuild, so no mask flipped. Switch the rebuild on and run again.")
UNMOVED = "No mask changed in this run: every weight that the initial mask pruned is still pruned."


def build(hub: Hub, run_id: gr.State, ended: gr.events.Dependency) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        unmoved = gr.HTML(f'<p class="bb-intro">{UNMOVED}</p>', visible=False)
        with gr.Column() as moved:
            intro(
                "Each cell is one weight matrix. The stronger the blue, the more of its mask the rebuild changed: "
                "weights that the initial mask had pruned <b class='bb-grown'>grow</b> back, and others are "
                "<b class='bb-cut'>cut</b> for them."
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
            "Output error of every sub-block, with the initial mask and at the end. Lower is closer to the dense model."
        )
        errors = gr.Plot(show_label=False, container=False, elem_id="sub-block-errors")
        refit = gr.HTML(visible=False, elem_id="refit")

    def show(name: str | None, by: str):
        events = hub.events(name)
        flips = frames.flips(events)
        if flips.empty:
            return nothing_yet(NO_FLIPS if events else EMPTY, 6)
        any_moved = bool(flips["grown"].any())
        refitted = frames.refit_words(frames.refits(events))
        return (
            *results_there(),
            gr.update(visible=not any_moved),
            gr.update(visible=any_moved),
            plot(figures.flip_heatmap(flips), "flips"),
            plot(figures.flip_bars(flips, by), "grown-and-cut"),
            plot(figures.sub_block_errors(frames.sub_blocks(events)), "errors"),
            gr.update(value=f'<p class="bb-intro">{refitted}</p>', visible=bool(refitted)),
        )

    def regroup(name: str | None, by: str):
        flips = frames.flips(hub.events(name))
        return gr.skip() if flips.empty else plot(figures.flip_bars(flips, by), "grown-and-cut")

    ended.then(show, [run_id, by], [nothing, results, unmoved, moved, heatmap, bars, errors, refit], **CALM)
    by.input(regroup, [run_id, by], bars, **CALM)
