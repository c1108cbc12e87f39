"""Perplexity: of the dense, the initial and the rebuilt model, and the share of the gap that the rebuild recovered."""

from __future__ import annotations

import math
from html import escape

import gradio as gr

from analysis import figures, frames
from analysis.style import format_perplexity
from barber.events import Stage
from ui.hub import Hub
from ui.live import recovery
from ui.plots import chart, drawn
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled(
    "the perplexity of the dense, the initial and the rebuilt model, and the "
    "share of the gap that the rebuild recovered."
)
NOT_MEASURED = empty("This run measured no perplexity. Choose an evaluation text and run again.")


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        head = gr.HTML()
        dots = chart("perplexity-dots")
        table = gr.HTML(elem_id="perplexity-table")
        intro(
            "Perplexity is the exponential of the mean cross-entropy of the next token; a model that always chose "
            "between k equally likely tokens would have perplexity k. Lower is better. The gap is the difference in "
            "log perplexity between the initial mask and the dense model. The lines at the dots are "
            "95 % intervals over the windows."
        )

    def show(name: str | None):
        events = hub.events(name)
        measured = frames.perplexities(events)
        if measured.empty:
            return nothing_yet(NOT_MEASURED if events else EMPTY, 4)
        return (
            *results_there(),
            gr.update(value=(headline := _headline(measured)), visible=bool(headline)),
            *drawn(figures.perplexity_dots(measured), "perplexity", "Perplexity of each model on each text", None),
            _table(measured),
        )

    redraw.change(show, [run_id], [nothing, results, head, *dots, table], **CALM)


def _headline(measured) -> str:
    """One big number per dataset that has all three stages."""
    rows = [row for row in measured.itertuples() if not math.isnan(row.recovered)]
    return "".join(
        f'<div class="bb-figure"><strong>{100 * row.recovered:.0f} %</strong>'
        f"<span>On {escape(row.dataset)} the rebuild {recovery(row.recovered)} to the dense model.</span></div>"
        for row in rows
    )


def _table(measured) -> str:
    """One table per dataset; its caption says what was measured."""
    head = "".join(f"<th scope='col'>{title}</th>" for title in ("model", "perplexity", "gap recovered"))
    tables = []
    for dataset, rows in measured.groupby("dataset", sort=False):
        body = "".join(
            f"<tr><th scope='row'>{figures.STAGE_LABEL[row.stage]}</th><td>{format_perplexity(row.perplexity)}</td>"
            f"<td>{_share(row)}</td></tr>"
            for row in rows.itertuples()
        )
        first = rows.iloc[0]
        caption = f"{escape(dataset)}: {first.tokens:,} tokens in windows of {first.seqlen:,}"
        caption += ", each of which begins with the beginning-of-text token" if first.window_start == "bos" else ""
        tables.append(
            f'<table class="bb-table"><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )
    return "".join(tables)


def _share(row) -> str:
    """The share of the gap recovered, in the rows that can have one."""
    if not math.isnan(row.recovered):
        return f"{100 * row.recovered:.1f} %"
    return "no gap" if row.stage == Stage.REBUILT else ""
