"""Saliency: the saliency of the weights of one matrix, by their fate, and the positions of the changed mask bits."""

from __future__ import annotations

import gradio as gr

from analysis import figures, frames
from barber.config import PruneConfig
from barber.events import Event, RunStarted
from barber.registry import BARBER, METRICS
from barber.runs.directory import RunDirectory
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("the saliency of the weights, and which of them the rebuild grew or cut.")
NO_SALIENCY = empty("This run has no rebuild, so no saliency was measured. Switch the rebuild on and run again.")
HOW_TO_READ = (
    "Saliency is {}. A good mask keeps the weights on the right, of high saliency: <b class='bb-grown'>grown</b> "
    "weights were pruned although their saliency is high, <b class='bb-cut'>cut</b> weights were kept although it is "
    "low."
)


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        reading = intro("")
        with gr.Row():
            layer = gr.Dropdown([], label="Layer", elem_id="saliency-layer", min_width=110)
            module = gr.Dropdown([], label="Module", elem_id="saliency-module", min_width=150)
            scale = gr.Radio(["linear", "log"], value="linear", label="Counts", elem_id="saliency-scale", min_width=150)
        histogram = gr.Plot(show_label=False, container=False, elem_id="saliency-histogram")
        zeros = gr.HTML(visible=False, elem_id="saliency-zeros")
        intro("The mask of the same matrix, one cell for each weight; of a large matrix, the top left corner.")
        mask = gr.Plot(show_label=False, container=False, elem_id="mask-map")

    def draw_histogram(name: str | None, layer: int, module: str, scale: str) -> tuple:
        """The histogram of one matrix, and a sentence on the weights that it leaves out."""
        events = hub.events(name)
        bins, without = frames.saliency(events, layer, module), frames.without_saliency(events, layer, module)
        if bins.empty:
            return gr.skip(), gr.skip()
        figure = figures.saliency_histogram(bins, without, scale == "log")
        left_out = gr.update(value=f'<p class="bb-intro">{not_drawn(without)}</p>', visible=bool(without))
        return plot(figure, "saliency"), left_out

    def draw(name: str | None, layer: int, module: str, scale: str) -> tuple:
        """The histogram and the map of one matrix."""
        fates = frames.fates(RunDirectory(hub.path(name)), layer, module)
        return (
            *draw_histogram(name, layer, module, scale),
            plot(figures.mask_map(fates), "mask") if fates.size else gr.skip(),
        )

    def modules_of(name: str | None, layer: int) -> list[tuple[str, str]]:
        flips = frames.flips(hub.events(name))
        rows = flips[flips["layer"] == layer]
        return list(zip(rows["module"], rows["name"], strict=True))

    def show(name: str | None, scale: str):
        events = hub.events(name)
        flips = frames.flips(events)
        if flips.empty:
            return nothing_yet(NO_SALIENCY if events else EMPTY, 6)
        first, module = frames.most_changed(flips)
        return (
            *results_there(),
            f'<p class="bb-intro">{HOW_TO_READ.format(measure(events))}</p>',
            gr.update(choices=sorted(set(flips["layer"].tolist())), value=first),
            gr.update(choices=modules_of(name, first), value=module),
            *draw(name, first, module, scale),
        )

    def choose_layer(name: str | None, layer: int, module: str, scale: str):
        choices = modules_of(name, layer)
        names = [value for _, value in choices]
        module = module if module in names else names[0]
        return gr.update(choices=choices, value=module), *draw(name, layer, module, scale)

    chosen, drawn = [run_id, layer, module, scale], [histogram, zeros]
    redraw.change(show, [run_id, scale], [nothing, results, reading, layer, module, *drawn, mask], **CALM)
    layer.input(choose_layer, chosen, [module, *drawn, mask], **CALM)
    module.input(draw, chosen, [*drawn, mask], **CALM)
    scale.input(draw_histogram, chosen, drawn, **CALM)


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
