"""Choices: the swaps that each round tried in a sub-block, their validation errors, and the swap it chose."""

from __future__ import annotations

import gradio as gr

from analysis import choices
from barber.config import PruneConfig
from barber.events import Event, RunStarted
from barber.registry import BARBER, REFINERS
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("which swaps each round tried in a sub-block, and which it chose.")
BY_ERROR = (
    "Each round tries swaps of several sizes in a sub-block and keeps the mask with the lowest validation error: the "
    "error of the sub-block's output on every fourth calibration sequence, which saliency is not measured on. The "
    "rounds end when no swap lowers this error."
)
BY_THRESHOLD = (
    "With a fixed threshold, each round swaps the same share of the gaining pairs. The rounds of a sub-block end when "
    "this no longer lowers its error."
)


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        how = intro(BY_ERROR)
        rounds = gr.Plot(show_label=False, container=False, elem_id="choice-rounds")
        with gr.Column() as details:
            intro(
                "The swaps that one round tried. A gaining pair is a pruned and a kept weight of one group, the pruned "
                "one of larger saliency; a group is the whole sub-block, one matrix or one output row. One-swaps are "
                "exact greedy swaps in each output row. A point above “no change” raises the error; the lowest is "
                "chosen."
            )
            with gr.Row():
                layer = gr.Dropdown([], label="Layer", elem_id="choice-layer", min_width=90)
                block = gr.Dropdown([], label="Sub-block", elem_id="choice-block", min_width=130)
                number = gr.Dropdown([], label="Round", elem_id="choice-round", min_width=90)
            curve = gr.Plot(show_label=False, container=False, elem_id="choice-curve")

    def draw(name: str | None, layer: int, block: str, number: int):
        tried = choices.candidates(hub.events(name))
        at = (tried["layer"] == layer) & (tried["sub_block"] == block) & (tried["round"] == number)
        return plot(choices.curve_figure(tried[at]), "choices") if at.any() else gr.skip()

    def blocks_of(frame, layer: int) -> list[tuple[str, str]]:
        rows = frame[frame["layer"] == layer].drop_duplicates("sub_block")
        return list(zip(rows["kind"], rows["sub_block"], strict=True))

    def rounds_of(frame, layer: int, block: str) -> list[int]:
        return frame[(frame["layer"] == layer) & (frame["sub_block"] == block)]["round"].tolist()

    def show(name: str | None):
        events = hub.events(name)
        frame = choices.choices(events)
        if frame.empty:
            return nothing_yet(why_empty(events), 7)
        auto = config_of(events).auto
        first, block = choices.most_improved(frame)
        return (
            *results_there(),
            f'<p class="bb-intro">{BY_ERROR if auto else BY_THRESHOLD}</p>',
            gr.update(visible=auto),
            plot(choices.rounds_figure(frame), "rounds"),
            gr.update(choices=sorted(set(frame["layer"].tolist())), value=first),
            gr.update(choices=blocks_of(frame, first), value=block),
            gr.update(choices=rounds_of(frame, first, block), value=1),
            draw(name, first, block, 1),
        )

    def choose(name: str | None, layer: int, block: str, number: int):
        """New choices of the dropdowns for the layer and the sub-block, and the curve."""
        frame = choices.choices(hub.events(name))
        blocks = blocks_of(frame, layer)
        names = [value for _, value in blocks]
        block = block if block in names else names[0]
        numbers = rounds_of(frame, layer, block)
        number = number if number in numbers else numbers[-1]
        return (
            gr.update(choices=blocks, value=block),
            gr.update(choices=numbers, value=number),
            draw(name, layer, block, number),
        )

    chosen = [run_id, layer, block, number]
    redraw.change(show, run_id, [nothing, results, how, details, rounds, layer, block, number, curve], **CALM)
    gr.on([layer.input, block.input, number.input], choose, chosen, [block, number, curve], **CALM)


def config_of(events: list[Event]) -> PruneConfig | None:
    """The configuration of the run, None before it has begun."""
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    return PruneConfig.from_dict(started.config) if started else None


def why_empty(events: list[Event]) -> str:
    """Why a run has no choices to show."""
    config = config_of(events)
    if not config:
        return EMPTY
    if not config.barber:
        return empty("This run has no rebuild, so nothing was chosen. Switch the rebuild on and run again.")
    if config.refiner != BARBER:
        title = REFINERS[config.refiner].title
        return empty(
            f"The refiner <b>{title}</b> does not choose between swaps. Select the refiner Barber to see choices."
        )
    if not config.auto:
        return empty(
            f"With a fixed threshold nothing is chosen: every sub-block swaps {100 * config.threshold:g} % of its "
            "gaining pairs. Let the validation error choose the swaps and run again."
        )
    return empty("The run was stopped before the rebuild of the first sub-block ended.")
