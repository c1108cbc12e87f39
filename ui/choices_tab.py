"""Choices: what each sub-block tried on the samples set aside, and what it took, round by round."""

from __future__ import annotations

import gradio as gr

from analysis import choices
from barber.config import PruneConfig
from barber.events import Event, RunStarted
from barber.registry import BARBER, REFINERS
from ui.hub import Hub
from ui.plots import plot
from ui.views import CALM, empty, intro, nothing_yet, results_there

EMPTY = empty("Press <b>Run</b>. Here you will see what each block tried, and what helped most.")
BY_ERROR = (
    "In every round a sub-block tries to exchange few or many of its pruned and kept weights, and keeps the mask whose "
    "output is nearest to its target, on samples set aside for that. It ends when nothing helps."
)
BY_THRESHOLD = (
    "With a fixed threshold every round swaps the same share of the gaining pairs, and the rounds of a sub-block end "
    "when that no longer lowers its error."
)


def build(hub: Hub, run_id: gr.State, ended: gr.events.Dependency) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        how = intro(BY_ERROR)
        rounds = gr.Plot(show_label=False, container=False, elem_id="choice-rounds")
        with gr.Column() as details:
            intro(
                "What one round tried: to swap a share of the gaining pairs, formed in the whole block, in each matrix "
                "or in each output row, and exact one-swaps. A point above the start would do harm; the lowest is "
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
        first, block = choices.most_telling(frame)
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
        """The dropdowns again, for what the layer and the sub-block have, and the curve."""
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
    ended.then(show, run_id, [nothing, results, how, details, rounds, layer, block, number, curve], **CALM)
    gr.on([layer.input, block.input, number.input], choose, chosen, [block, number, curve], **CALM)


def config_of(events: list[Event]) -> PruneConfig | None:
    """What the run was asked to do, once it has begun."""
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
            f"<b>{title}</b> follows a rule of its own, so nothing was chosen. Rebuild by Barber to see choices."
        )
    if not config.auto:
        return empty(
            f"With a fixed threshold nothing is chosen: every block swaps {100 * config.threshold:g} % of its gaining "
            "pairs. Let the held-out error choose the swaps and run again."
        )
    return empty("The run was stopped before the first block had chosen.")
