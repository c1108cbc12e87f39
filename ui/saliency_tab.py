"""Saliency: the saliency of the weights of one matrix, by their fate or by the masks that keep and prune them."""

from __future__ import annotations

import gradio as gr

from analysis import frames, saliency
from analysis.saliency import BY_FATE, BY_MASK, Scale
from barber.config import PruneConfig
from barber.events import Event, RunStarted
from barber.registry import BARBER, METRICS
from ui.hub import Hub
from ui.plots import chart, drawn
from ui.selection import Matrix, Selection
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("the saliency of the weights, and which of them the rebuild grew or cut.")
NO_SALIENCY = empty("This run has no rebuild, so no saliency was measured. Switch the rebuild on and run again.")
NOT_REACHED = empty("The run was stopped before it rebuilt this matrix, so its saliency is not known.")
HOW_TO_READ = (
    "Saliency is {}. A good mask keeps the weights on the right, of high saliency: <b class='bb-grown'>grown</b> "
    "weights were pruned although their saliency is high, <b class='bb-cut'>cut</b> weights were kept although it is "
    "low. Shares are of the weights of each curve, so that few grown weights are as visible as many kept ones."
)
CURVES = {"fates": BY_FATE, "masks": BY_MASK}


def build(hub: Hub, selection: Selection) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        reading = intro("")
        with gr.Row():
            which = gr.Radio(
                [("fate of the weight", "fates"), ("initial and rebuilt mask", "masks")],
                value="fates",
                label="Curves",
                elem_id="saliency-curves",
                min_width=200,
            )
            scale = gr.Dropdown(
                [str(one) for one in Scale],
                value=str(Scale.SHARE),
                label="Height",
                elem_id="saliency-scale",
                min_width=150,
            )
            apart = gr.Radio(
                [("one panel", False), ("a panel each", True)],
                value=False,
                label="Layout",
                elem_id="saliency-layout",
                min_width=150,
            )
        histogram = chart("saliency-histogram")
        zeros = gr.HTML(visible=False, elem_id="saliency-zeros")

    def draw(shown: Matrix, which: str, scale: str, apart: bool) -> tuple:
        """The chart of one matrix, and a sentence on the weights that it leaves out."""
        events = hub.events(shown.run)
        bins = frames.saliency(events, shown.layer, shown.module)
        if bins.empty:
            return gr.skip(), gr.skip(), gr.skip()
        without, lines, height = frames.without_saliency(events, shown.layer, shown.module), CURVES[which], Scale(scale)
        sentence = "" if height is Scale.CUMULATIVE else not_drawn(without)
        return (
            *drawn(
                saliency.figure(bins, without, lines, height, apart),
                "saliency",
                f"Saliency of layer {shown.layer}, {shown.module}: {scale}",
                saliency.curves(bins, without, lines, height),
            ),
            gr.update(value=f'<p class="bb-intro">{sentence}</p>', visible=bool(sentence)),
        )

    def show(shown: Matrix, which: str, scale: str, apart: bool):
        events = hub.events(shown.run)
        if frames.flips(events).empty:
            return nothing_yet(NO_SALIENCY if events else EMPTY, 4)
        if frames.saliency(events, shown.layer, shown.module).empty:
            return nothing_yet(NOT_REACHED, 4)
        return (
            *results_there(),
            f'<p class="bb-intro">{HOW_TO_READ.format(measure(events))}</p>',
            *draw(shown, which, scale, apart),
        )

    chosen, outputs = [selection.shown, which, scale, apart], [*histogram, zeros]
    selection.shown.change(show, chosen, [nothing, results, reading, *outputs], **CALM)
    gr.on([which.input, scale.input, apart.input], draw, chosen, outputs, **CALM)


def not_drawn(zeros: dict[str, int]) -> str:
    """Which weights the histogram leaves out, by fate (see frames.without_saliency); empty where it leaves out none."""
    *most, last = [f"{count:,} {fate}".strip() for fate, count in zeros.items()] or [""]
    counts = f"{', '.join(most)} and {last}" if most else last
    have = "weight has" if sum(zeros.values()) == 1 else "weights have"
    return f"Not drawn: {counts} {have} saliency zero, which has no logarithm." if counts else ""


def measure(events: list[Event]) -> str:
    """What the saliency of a run is, which the rebuild ranked the weights by."""
    config = next(PruneConfig.from_dict(event.config) for event in events if isinstance(event, RunStarted))
    if not config.barber:
        return "the magnitude of a weight, since this run has no rebuild"
    if config.refiner != BARBER:
        return "Wanda's score, |weight| times the norm of its inputs, since this refiner uses no gradient"
    return (
        "an estimate of how much the output error of the sub-block changes with a weight: "
        f"{METRICS[config.metric].title}"
    )
