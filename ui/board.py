"""What stands around the views: the bar with Run and Stop, the board with status and result, and which run is shown."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr

from ui.live import IDLE
from ui.plots import library

# A region that stays in the page: screen readers announce what changes in it, not what replaces it.
ANNOUNCE = """
const region = document.createElement("p");
region.setAttribute("role", "status");
region.id = "announced";
region.className = "bb-unseen";
document.body.append(region);
watch("value", () => { region.textContent = props.value; });
"""


class Bar(NamedTuple):
    """The bar that is always visible: the buttons, what a run will need, and what the run does.

    command: the command line that does the same, at the end of the form. said: what screen readers announce.
    """

    run: gr.Button
    stop: gr.Button
    expected: gr.HTML
    doing: gr.HTML
    command: gr.Textbox
    said: gr.HTML


class Board(NamedTuple):
    """What stands above the views: the status and the sub-blocks of a run that goes on, and the result of a run.

    resume: continues a run that was stopped. changed: which settings of the form have changed since the result.
    library: makes the page load the library of the figures.
    """

    status: gr.HTML
    resume: gr.Button
    blocks: gr.HTML
    result: gr.HTML
    changed: gr.HTML
    library: gr.Plot


class Shown(NamedTuple):
    """Which run a page shows.

    run: the id of the run that the panel shows. viewed: that of the run in the views, the same once the first has
    results. form, viewed_form: the values of the form that these runs were started with. begun, redraw: get a new value
    each time the panel begins to show a run, and each time the views are to be drawn.
    """

    run: gr.State
    viewed: gr.State
    form: gr.State
    viewed_form: gr.State
    begun: gr.State
    redraw: gr.State


def build_command() -> gr.Textbox:
    with gr.Accordion("Command line", open=False):
        return gr.Textbox(
            label="The same run without the app",
            info="Run it in the folder of the repository. It continues the first of the prompts.",
            lines=3,
            max_lines=10,
            buttons=["copy"],
            interactive=False,
            elem_id="command",
        )


def build_bar(command: gr.Textbox) -> Bar:
    with gr.Row(elem_classes="bb-runbar"):
        # Disabled until the form has the settings of the link.
        run = gr.Button("Run", variant="primary", interactive=False, elem_id="run", scale=0, min_width=120)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=0, min_width=80)
        expected = gr.HTML("", elem_id="expected", min_width=120)
        doing = gr.HTML("", elem_id="doing", min_width=120)
        said = gr.HTML("", html_template="", js_on_load=ANNOUNCE, visible="hidden")
    return Bar(run, stop, expected, doing, command, said)


def build_board() -> Board:
    status = gr.HTML(IDLE, elem_id="status")
    resume = gr.Button("Resume this run", visible=False, elem_id="resume", elem_classes="bb-resume", size="sm")
    blocks = gr.HTML("", elem_id="blocks")
    result = gr.HTML("", elem_id="result")
    return Board(status, resume, blocks, result, gr.HTML("", elem_id="changed"), library())


def build_shown() -> Shown:
    return Shown(*(gr.State(None) for _ in Shown._fields))
