"""Export: files of the shown run to take away: its report, its tables, its masks."""

from __future__ import annotations

from functools import partial
from html import escape

import gradio as gr

from barber.errors import UserError
from barber.jobs.report import format_bytes
from ui.exports import KINDS, export
from ui.hub import Hub
from ui.views import CALM, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("files to take away: a report of the run, its tables, and its masks.")
# A hidden button has the address of the file, and the browser saves the file when it is clicked.
SAVE = """() => setTimeout(() => {
  if (document.querySelector("#about-%(name)s .bb-made")) document.getElementById("file-%(name)s").click();
}, 300)"""


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    abouts = []
    with gr.Column(visible=False) as results:
        intro(
            "Each file is made when its button is pressed, and your browser saves it. To save a single figure, as SVG, "
            "press the button at the top right of the figure in its view."
        )
        for name, kind in KINDS.items():
            with gr.Row(elem_classes="bb-export"):
                about = gr.HTML(_about(name), min_width=240, elem_id=f"about-{name}")
                save = gr.Button(f"Save {kind.noun}", scale=0, min_width=170, size="md", elem_id=f"save-{name}")
                file = gr.DownloadButton("", visible="hidden", elem_id=f"file-{name}")
            abouts.append(about)
            made = save.click(
                partial(_make, hub, name),
                run_id,
                [file, about],
                show_progress="minimal",
                show_progress_on=about,
                concurrency_id="export",
                concurrency_limit=2,
                api_visibility="private",
            )
            made.success(fn=None, js=SAVE % {"name": name}, api_visibility="private")

    def show(run: str | None):
        if not run or not hub.has_results(run):
            return nothing_yet(EMPTY, len(abouts))
        return *results_there(), *map(_about, KINDS)

    redraw.change(show, run_id, [nothing, results, *abouts], **CALM)


def _make(hub: Hub, name: str, run_id: str | None) -> tuple[str | None, str]:
    """The file, and what is said about it: its size, or why there is none."""
    try:
        file = export(hub, run_id, name)
    except UserError as error:
        return None, _about(name, f'<p class="bb-note" role="alert">{escape(str(error))}</p>')
    size = format_bytes(file.stat().st_size)
    return str(file), _about(name, f'<p class="bb-made" role="status">{file.name}, {size}</p>')


def _about(name: str, more: str = "") -> str:
    """What a kind of file is."""
    return f"<h3>{KINDS[name].title}</h3><p>{KINDS[name].content}</p>{more}"
