"""A figure with its name and its numbers: a chart, and the button that saves it as SVG."""

from __future__ import annotations

import json
from html import escape
from typing import NamedTuple

import gradio as gr
from gradio.components.plot import PlotData

from analysis.style import saving
from ui.tables import table

NO_FIGURE = PlotData(type="plotly", plot='{"data": [], "layout": {}}')
NO_WORDS = {"name": "", "numbers": ""}
# A screen reader hears the caption as the name of the figure. An open table stays open when another figure is drawn.
FIGURE = """
const caption = element.querySelector(".bb-caption");
element.setAttribute("role", "figure");
element.setAttribute("aria-labelledby", caption.id);
let open = false;
element.addEventListener("toggle", event => { open = event.target.open; }, true);
watch("value", () => { if (open) element.querySelector("details")?.setAttribute("open", ""); });
"""


class Chart(NamedTuple):
    """The components of a chart: the figure, and its caption above and table of numbers below."""

    figure: gr.Plot
    words: gr.HTML


def chart(name: str) -> Chart:
    """A chart without content. name: the id of its figure; that of the caption ends in "-name"."""
    with gr.HTML(
        NO_WORDS,
        html_template=f'<p class="bb-caption" id="{name}-name">${{value.name}}</p>@children${{value.numbers}}',
        js_on_load=FIGURE,
        elem_classes="bb-chart",
    ) as words:
        figure = gr.Plot(show_label=False, container=False, elem_id=name)
    return Chart(figure, words)


def drawn(figure, file: str, name: str, numbers) -> tuple[PlotData, dict]:
    """The values of a chart. file: in the name of the saved picture; name: the caption; numbers: a frame."""
    return plot(figure, file), {"name": escape(name), "numbers": table(numbers, name) if numbers is not None else ""}


def plot(figure, name: str) -> PlotData:
    """The plotly figure as Gradio's page shows it; `name` is in the file name of the saved picture."""
    return PlotData(type="plotly", plot=json.dumps(json.loads(figure.to_json()) | {"config": saving(name)}))


def library() -> gr.Plot:
    """A plot that is not shown: with the value NO_FIGURE it makes the page load plotly, before the first figure."""
    return gr.Plot(show_label=False, container=False, elem_classes="bb-library")
