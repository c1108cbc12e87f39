"""What the views share: an empty state, and results that appear when there is something to show."""

from __future__ import annotations

from html import escape

import gradio as gr

CALM = {"show_progress": "hidden", "api_visibility": "private", "queue": False}


def empty(sentence: str) -> str:
    """The empty state of a view: what to do to fill it."""
    return f'<div class="bb-empty"><p>{sentence}</p></div>'


def nothing_yet(sentence: str, outputs: int) -> tuple:
    """Updates that show the empty state instead of results: for the two of them, and `outputs` more."""
    return gr.update(value=sentence, visible=True), gr.update(visible=False), *[gr.skip()] * outputs


def results_there() -> tuple:
    """Updates that hide the empty state and show the results."""
    return gr.update(visible=False), gr.update(visible=True)


def intro(sentence: str) -> gr.HTML:
    """The line at the head of a view that says how to read it."""
    return gr.HTML(f'<p class="bb-intro">{sentence}</p>')


def warn(error: Exception) -> None:
    """A toast with an error's sentence; toasts show HTML, and the sentence may quote what a visitor wrote."""
    gr.Warning(escape(str(error)), title="Not possible")
