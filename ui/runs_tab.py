"""Runs: the history, in which a run is opened, renamed, pinned or deleted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import gradio as gr

from analysis.compare import LABELS
from analysis.style import format_perplexity
from barber.errors import UserError
from barber.events import Stage
from ui.history import Card
from ui.hub import KEPT_SECONDS, Hub
from ui.live import duration
from ui.views import CALM, TELLING, new

STAGES = {Stage.DENSE: "dense", Stage.INITIAL: "initial", Stage.REBUILT: "rebuilt"}
NO_RUNS = "Each run is kept here, finished or not: opened again, it shows what it measured, and it can be resumed."
NOTHING_FOUND = "No run has all these words in its title."
PRIVATE = f"Only this browser lists your runs, for {KEPT_SECONDS // 3600} hours; who has the link of a run can see it."
KEPT = "The runs are kept in {}."
# A plain click opens a run in this page; with a key held down, the link opens another, as everywhere.
EVENTS = """
element.addEventListener("click", event => {
  const link = event.target.closest("a[data-run]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  trigger("select", {run: link.dataset.run});
});
element.addEventListener("change", () => {
  trigger("input", {runs: [...element.querySelectorAll("input:checked")].map(box => box.value)});
});
"""


class Wanted(NamedTuple):
    """The wish to see a run. wish: makes two wishes for the same run differ."""

    run: str
    wish: str


def build(
    hub: Hub, visitor: gr.BrowserState, wanted: gr.State, changes: Sequence, compared: gr.State, tabs: gr.Tabs
) -> None:
    """The view. wanted: gets a Wanted for a run that is clicked. compared: gets the ids of the runs to be compared.

    changes: the events after which the list may be another. tabs: in which the view "compare" is opened.
    """
    chosen = gr.State([])
    words = gr.Textbox(
        placeholder="Search in the titles",
        label="Search in the titles",
        show_label=False,
        container=False,
        max_lines=1,
        elem_id="run-search",
    )
    table = gr.HTML("", js_on_load=EVENTS, elem_id="run-list")
    with gr.Row(elem_classes="bb-run-actions"):
        beside = gr.Button("Compare", size="sm", min_width=100, scale=0, interactive=False, elem_id="run-compare")
        pin = gr.Button("Pin or unpin", size="sm", min_width=110, scale=0, interactive=False, elem_id="run-pin")
        delete = gr.Button("Delete", size="sm", min_width=90, scale=0, interactive=False, elem_id="run-delete")
        title = gr.Textbox(
            placeholder="New title of the ticked run",
            show_label=False,
            label="New title",
            max_lines=1,
            container=False,
            interactive=False,
            elem_id="run-title",
            min_width=200,
        )
        rename = gr.Button("Rename", size="sm", min_width=90, scale=0, interactive=False, elem_id="run-rename")
    with gr.Row(visible=False, elem_classes="bb-run-actions") as sure:
        question = gr.HTML("", min_width=200)
        yes = gr.Button("Delete", variant="stop", size="sm", min_width=90, scale=0, elem_id="run-delete-yes")
        no = gr.Button("Keep", size="sm", min_width=90, scale=0, elem_id="run-delete-no")
    problem = gr.HTML("", elem_id="run-problem")
    gr.HTML(f'<p class="bb-intro">{KEPT.format(escape(str(hub.runs))) if hub.history.shared else PRIVATE}</p>')

    def able(runs: Sequence[str]) -> tuple:
        """Updates of what acts on the chosen runs; only some can be compared."""
        some, one = gr.update(interactive=bool(runs)), gr.update(interactive=len(runs) == 1)
        return gr.update(interactive=2 <= len(runs) <= len(LABELS)), some, some, one, one

    def show(visitor: str, words: str, runs: list[str]) -> tuple:
        cards = hub.history.cards(visitor, words or "")
        runs = [run for run in runs if run in {card.run for card in cards}]
        empty = NOTHING_FOUND if words else NO_RUNS
        return listing(cards, runs) if cards else f'<div class="bb-empty"><p>{empty}</p></div>', runs, *able(runs)

    def tick(event: gr.EventData):
        return event.runs, *able(event.runs)

    def want(event: gr.EventData):
        return Wanted(event.run, new())

    def change(act, visitor: str, runs: list[str]) -> str:
        try:
            for run in runs:
                act(run, visitor)
        except UserError as error:
            return f'<p class="bb-note" role="alert">{escape(str(error))}</p>'
        return ""

    def turn(run: str, visitor: str) -> None:
        hub.history.pin(run, visitor, not hub.history.own(run, visitor).pinned)

    def ask(runs: list[str]):
        what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
        return gr.update(visible=True), f"<p>Delete {what} and all that was recorded?</p>"

    def put_beside(runs: list[str]):
        return list(runs), gr.update(selected="compare")

    acting = [beside, pin, delete, title, rename]
    listed = [table, chosen, *acting]
    for event in [*changes, words.change]:
        event(show, [visitor, words, chosen], listed, **CALM)
    table.input(tick, None, [chosen, *acting], **CALM)
    table.select(want, None, wanted, **TELLING)
    beside.click(put_beside, chosen, [compared, tabs], **TELLING)
    delete.click(ask, chosen, [sure, question], **CALM)
    no.click(lambda: gr.update(visible=False), None, sure, **CALM)
    done = [
        pin.click(lambda *given: change(turn, *given), [visitor, chosen], problem, **CALM),
        yes.click(lambda *given: change(hub.history.delete, *given), [visitor, chosen], problem, **CALM),
        gr.on(
            [rename.click, title.submit],
            lambda visitor, runs, title: change(
                lambda run, visitor: hub.history.rename(run, visitor, title), visitor, runs
            ),
            [visitor, chosen, title],
            problem,
            **CALM,
        ),
    ]
    for end in done:
        end.then(lambda: (gr.update(visible=False), ""), None, [sure, title], **CALM)
        end.then(show, [visitor, words, chosen], listed, **CALM)


def listing(cards: Sequence[Card], runs: Sequence[str]) -> str:
    """The table of the runs as HTML. runs: the ids of those that are ticked."""
    heads = "".join(f'<th scope="col" class="bb-number">{stage}</th>' for stage in STAGES.values())
    body = "".join(_row(card, card.run in runs) for card in cards)
    return (
        '<div class="bb-run-table" tabindex="0" role="region" aria-label="Runs"><table class="bb-table">'
        '<caption class="bb-unseen">Runs, with the perplexity of each stage on the first data set</caption>'
        f'<thead><tr><td></td><th scope="col">run</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(card: Card, ticked: bool) -> str:
    run, title = escape(card.run), escape(card.title)
    dataset, measured = next(iter(card.perplexities.items()), ("", {}))
    cells = "".join(
        f'<td class="bb-number">{format_perplexity(measured[stage]) if stage in measured else ""}</td>'
        for stage in STAGES
    )
    when = "example" if card.example else f"{card.state} · {ago(time.time() - card.began)}"
    facts = [when, duration(card.seconds), dataset]
    return (
        f'<tr><td><input type="checkbox" value="{run}" aria-label="Tick {title}"{" checked" * ticked}></td>'
        f'<td><a href="?run={run}" data-run="{run}">{"<b>Pinned</b> " * card.pinned}{title}</a>'
        f'<small class="bb-{card.state.value}">{escape(" · ".join(filter(None, facts)))}</small></td>{cells}</tr>'
    )


def ago(seconds: float) -> str:
    """How long ago, in words."""
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    raise AssertionError
