"""A figure for gr.Plot, with the button that saves it as SVG."""

from __future__ import annotations

import json

import gradio as gr
from gradio.components.plot import PlotData

from analysis.style import saving

NO_FIGURE = PlotData(type="plotly", plot='{"data": [], "layout": {}}')


def plot(figure, name: str) -> PlotData:
    """The plotly figure as Gradio's page shows it; `name` is in the file name of the saved picture."""
    return PlotData(type="plotly", plot=json.dumps(json.loads(figure.to_json()) | {"config": saving(name)}))


def library() -> gr.Plot:
    """A plot that is not shown: with the value NO_FIGURE it makes the page load plotly, before the first figure."""
    return gr.Plot(show_label=False, container=False, elem_classes="bb-library")
