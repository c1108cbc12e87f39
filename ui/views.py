"""What the views share: an empty state, and results that appear when there is something to show."""

from __future__ import annotations

import secrets

import gradio as gr

TELLING = {"show_progress": "hidden", "api_visibility": "private"}  # of events that change a State with listeners
CALM = TELLING | {"queue": False}  # of all others


def empty(sentence: str) -> str:
    """The empty state of a view: a sentence on how to fill it."""
    return f'<div class="bb-empty"><p>{sentence}</p></div>'


def unfilled(shows: str) -> str:
    """The empty state of a view until the first result, told apart by the style sheet. shows: what will be there."""
    return empty(
        f'<span class="bb-when-idle">Press <b>Run</b>. This view then shows {shows}</span>'
        f'<span class="bb-when-running">The run goes on. When it ends, this view shows {shows}</span>'
        '<span class="bb-when-ended">The figures of the run are being drawn.</span>'
    )


def nothing_yet(sentence: str, outputs: int) -> tuple:
    """Updates that show the empty state and hide the results, and skip `outputs` more."""
    return gr.update(value=sentence, visible=True), gr.update(visible=False), *[gr.skip()] * outputs


def results_there() -> tuple:
    """Updates that hide the empty state and show the results."""
    return gr.update(visible=False), gr.update(visible=True)


def intro(sentence: str) -> gr.HTML:
    """A paragraph that explains how to read a view."""
    return gr.HTML(f'<p class="bb-intro">{sentence}</p>')


def new() -> str:
    """A value that no State had before, so that it counts as changed."""
    return secrets.token_hex(8)
