"""Mask flips: how many mask bits the rebuild changed in each weight matrix, and the error of each sub-block."""

from __future__ import annotations

import gradio as gr

from analysis import figures, frames
from ui import module_map
from ui.hub import Hub
from ui.plots import chart, drawn
from ui.selection import SELECTING, Matrix, Selection, select
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("how many mask bits the rebuild changed in each weight matrix.")
NO_FLIPS = empty("This run has no rebuild, so no mask flipped. Switch the rebuild on and run again.")
UNCHANGED = "The rebuild changed no mask: the rebuilt mask of every weight matrix equals the initial one."


def build(hub: Hub, run_id: gr.State, redraw: gr.State, selection: Selection) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        unchanged = gr.HTML(f'<p class="bb-intro">{UNCHANGED}</p>', visible=False)
        with gr.Column() as changed:
            intro(
                "Each cell is one weight matrix, with the percentage of its mask that the rebuild changed; a stronger "
                "blue means more. Click a cell to select that matrix for all views, or move with the arrow keys and "
                "press Enter. A <b class='bb-grown'>grown</b> weight is pruned by the initial mask and kept by the "
                "rebuilt one, a <b class='bb-cut'>cut</b> weight is kept by the initial mask and pruned by the rebuilt "
                "one."
            )
            cells = module_map.build()
            swaps = intro("")
            by = gr.Radio(
                [("by layer", "layer"), ("by module", "module")],
                value="layer",
                label="Weights grown and cut",
                elem_id="flips-by",
            )
            bars = chart("flip-bars")
        intro(
            "Output error of each sub-block with the initial mask and with its final weights: the mean squared "
            "difference from its target, which is the output with dense weights. Lower is better."
        )
        errors = chart("sub-block-errors")
        refit = gr.HTML(visible=False, elem_id="refit")

    def draw_bars(flips, by: str) -> tuple:
        return drawn(
            figures.flip_bars(flips, by),
            "grown-and-cut",
            f"Weights grown and cut by the rebuild, by {by}",
            figures.flip_sums(flips, by).reset_index(),
        )

    def show(name: str | None, by: str):
        events = hub.events(name)
        flips, blocks = frames.flips(events), frames.sub_blocks(events)
        if flips.empty:
            return nothing_yet(NO_FLIPS if events else EMPTY, 8)
        any_changed = bool(flips["grown"].any())
        refitted = frames.describe_refits(frames.refits(events))
        return (
            *results_there(),
            gr.update(visible=not any_changed),
            gr.update(visible=any_changed),
            f'<p class="bb-intro">{frames.describe_swaps(events)}</p>',
            *draw_bars(flips, by),
            *drawn(
                figures.sub_block_errors(blocks),
                "errors",
                "Output error of each sub-block with the initial and the rebuilt mask",
                blocks[["layer", "sub_block", "before", "after", "change", "candidates", "swaps"]],
            ),
            gr.update(value=f'<p class="bb-intro">{refitted}</p>', visible=bool(refitted)),
        )

    def regroup(name: str | None, by: str):
        flips = frames.flips(hub.events(name))
        return (gr.skip(), gr.skip()) if flips.empty else draw_bars(flips, by)

    def mark(shown: Matrix):
        flips = frames.flips(hub.events(shown.run))
        return gr.skip() if flips.empty else module_map.table(flips, shown.layer, shown.module)

    def choose(shown: Matrix, cell: gr.EventData):
        return select(hub, shown, cell.layer, cell.module)

    outputs = [nothing, results, unchanged, changed, swaps, *bars, *errors, refit]
    redraw.change(show, [run_id, by], outputs, **CALM)
    by.input(regroup, [run_id, by], [*bars], **CALM)
    selection.shown.change(mark, selection.shown, cells, **CALM)
    cells.select(choose, selection.shown, [*selection], **SELECTING)
