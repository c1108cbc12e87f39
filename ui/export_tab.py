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
# The button that saves has its address a moment after it appears.
SAVE = """() => { const wait = (left) => setTimeout(() => {
  const link = document.querySelector("a#save-%(name)s, #save-%(name)s a");
  if (link?.href) link.click(); else if (left) wait(left - 1);
}, 100); wait(30); }"""


def build(hub: Hub, run_id: gr.State, ended: gr.events.Dependency) -> None:
    nothing = gr.HTML(EMPTY)
    saves = {}
    with gr.Column(visible=False) as results:
        intro(
            "Each file is made when its button is pressed, and saved by your browser. A figure is saved by the button "
            "at its own top right corner, as SVG."
        )
        problem = gr.HTML(elem_id="export-problem")
        for name, kind in KINDS.items():
            with gr.Row(elem_classes="bb-export"):
                gr.HTML(f"<h3>{kind.title}</h3><p>{kind.content}</p>", min_width=260)
                make = gr.Button(f"Make: {kind.title}", scale=0, min_width=200, elem_id=f"make-{name}")
                saves[name] = gr.DownloadButton(
                    "Save", visible=False, variant="primary", scale=0, min_width=200, elem_id=f"save-{name}"
                )
            made = make.click(
                partial(_make, hub, name),
                run_id,
                [saves[name], problem],
                show_progress="minimal",
                show_progress_on=problem,
                concurrency_id="export",
                concurrency_limit=2,
                api_visibility="private",
            )
            made.success(fn=None, js=SAVE % {"name": name}, api_visibility="private")

    def show(run: str | None):
        if not run or not hub.has_results(run):
            return nothing_yet(EMPTY, 1 + len(saves))
        return *results_there(), "", *[gr.update(visible=False, value=None)] * len(saves)

    ended.then(show, run_id, [nothing, results, problem, *saves.values()], **CALM)


def _make(hub: Hub, name: str, run_id: str | None) -> tuple:
    """The button that saves the file, with its size; or why there is none."""
    try:
        file = export(hub, run_id, name)
    except UserError as error:
        return gr.update(visible=False, value=None), f'<p class="bb-note" role="alert">{escape(str(error))}</p>'
    label = f"Save again ({format_bytes(file.stat().st_size)})"
    return gr.update(value=str(file), label=label, visible=True), ""
