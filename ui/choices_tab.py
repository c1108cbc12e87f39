"""Choices: the swaps that each round tried in a sub-block, their validation errors, and the swap it chose."""

from __future__ import annotations

import gradio as gr

from analysis import choices, frames
from barber.config import PruneConfig
from barber.events import Event, RunStarted
from barber.registry import BARBER, REFINERS
from ui.hub import Hub
from ui.plots import chart, drawn
from ui.selection import Matrix, Selection
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


def build(hub: Hub, selection: Selection) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        how = intro(BY_ERROR)
        rounds = chart("choice-rounds")
        with gr.Column() as details:
            intro(
                "The swaps that one round tried in the sub-block of the selected matrix. A gaining pair is a pruned "
                "and a kept weight of one group, the pruned one of larger saliency; a group is the whole sub-block, "
                "one matrix or one output row. One-swaps are exact greedy swaps in each output row. A point above “no "
                "change” raises the error; the lowest is chosen."
            )
            number = gr.Dropdown([], label="Round", elem_id="choice-round", min_width=90)
            curve = chart("choice-curve")
    with gr.Column(visible=False) as with_gains:
        intro(
            "The gain curve of the sub-block of the selected matrix: how much larger the saliency of the pruned weight "
            "of each gaining pair is than that of the kept one, in the first round. Where it falls early, few pairs "
            "matter."
        )
        gains = chart("gain-curve")

    def draw(shown: Matrix, number: int) -> tuple:
        events = hub.events(shown.run)
        tried, block = choices.candidates(events), block_of(events, shown)
        at = (tried["layer"] == shown.layer) & (tried["sub_block"] == block) & (tried["round"] == number)
        if not at.any():
            return gr.skip(), gr.skip()
        return drawn(
            choices.curve_figure(tried[at]),
            "choices",
            f"Swaps that round {number} tried in layer {shown.layer}, {block}",
            tried[at][["swap", "granularity", "fraction", "swaps", "error", "relative", "chosen"]],
        )

    def show(shown: Matrix):
        events = hub.events(shown.run)
        frame = choices.choices(events)
        if frame.empty:
            return nothing_yet(why_empty(events), 7)
        auto = config_of(events).auto
        numbers = frame[(frame["layer"] == shown.layer) & (frame["sub_block"] == block_of(events, shown))]
        tried = numbers["round"].tolist()
        return (
            *results_there(),
            f'<p class="bb-intro">{BY_ERROR if auto else BY_THRESHOLD}</p>',
            gr.update(visible=auto and bool(tried)),
            *drawn(choices.rounds_figure(frame), "rounds", "Validation error of each sub-block by round", frame),
            gr.update(choices=tried, value=tried[0] if tried else None),
            *draw(shown, 1),
        )

    def show_gains(shown: Matrix):
        events = hub.events(shown.run)
        block = block_of(events, shown)
        frame = choices.gain_curve(events, shown.layer, block)
        if frame.empty:
            return gr.update(visible=False), gr.skip(), gr.skip()
        return (
            gr.update(visible=True),
            *drawn(
                choices.gain_figure(frame),
                "gains",
                f"Gains of the gaining pairs of layer {shown.layer}, {block}",
                choices.some_gains(frame),
            ),
        )

    outputs = [nothing, results, how, details, *rounds, number, *curve]
    selection.shown.change(show, selection.shown, outputs, **CALM)
    selection.shown.change(show_gains, selection.shown, [with_gains, *gains], **CALM)
    number.input(draw, [selection.shown, number], [*curve], **CALM)


def block_of(events: list[Event], shown: Matrix) -> str | None:
    """The name of the sub-block of the selected matrix."""
    frame = frames.modules(events)
    rows = frame[(frame["layer"] == shown.layer) & (frame["name"] == shown.module)]
    return None if rows.empty else rows["sub_block"].iloc[0]


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
