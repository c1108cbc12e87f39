"""What the page says of the form while it is filled in: wrong values, changes since the run shown, what a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import gradio as gr

from barber.errors import UserError
from barber.jobs.command import command
from barber.jobs.forecast import forecast, settled
from barber.jobs.report import format_estimate
from barber.settings import SHOWN
from ui import settings
from ui.board import Bar, Board, Shown
from ui.form import Form, marks
from ui.gpu import ZERO_GPU
from ui.views import CALM

TELL_INVALID = """() => { setTimeout(() => {
  for (const field of document.querySelectorAll(".bb-panel :is(input, textarea)"))
    field.setAttribute("aria-invalid", Boolean(field.closest(".bb-invalid")));
}, 100); }"""


def wire(form: Form, bar: Bar, board: Board, shown: Shown) -> None:
    """After each change of the form: mark what is wrong, and say what a run needs and what has changed since the last.

    The events of the page run one after the other; a change that comes meanwhile is reviewed when they are done.
    """
    fields, marked = list(form.fields.values()), gr.State({})

    def review(before: list | None, known: Mapping[str, str], *values: object) -> list:
        wrong = settings.problems(*values)
        return [*marks(form, wrong, known), note(before, *values), wrong]

    def note(before: list | None, *values: object) -> str:
        changes = settings.changes(before, *values) if before else []
        return f'<p class="bb-changed">Changed in the form since this run: {escape(", ".join(changes))}.</p>' * bool(
            changes
        )

    outputs = [*fields, *form.notes.values(), board.changed, marked]
    reviewed = gr.on(
        [field.change for field in fields],
        review,
        [shown.viewed_form, marked, *fields],
        outputs,
        trigger_mode="always_last",
        **CALM,
    )
    reviewed.then(expect, fields, [bar.expected, bar.command], **CALM)
    reviewed.then(fn=None, js=TELL_INVALID, api_visibility="private")
    shown.redraw.change(note, [shown.viewed_form, *fields], board.changed, **CALM)


def expect(*values: object) -> tuple[str, str]:
    """What a run with the values of the form will need, or why it cannot run; and its command line."""
    wrong = settings.problems(*values)
    if names := [SHOWN[name].title for name in wrong if name]:
        return f'<p class="bb-unready">To correct before Run: {escape(", ".join(names))}.</p>', ""
    if wrong:
        return f'<p class="bb-unready">{escape(wrong[""])}</p>', ""
    spec = settings.from_form(*values)
    try:
        line = command(settled(spec))
        needs = None if ZERO_GPU else forecast(spec)  # there, the process of the page has no GPU to measure
    except UserError as error:
        return f'<p class="bb-unready bb-unfit">{escape(str(error))}</p>', ""
    return f"<p>{escape(format_estimate(needs))}</p>" if needs else "", line
