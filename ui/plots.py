"""A figure for gr.Plot, with the button that saves it as SVG."""

from __future__ import annotations

import json

from gradio.components.plot import PlotData


def plot(figure, name: str) -> PlotData:
    """The plotly figure as Gradio's page shows it; `name` is in the file name of the saved picture."""
    config = {
        "displaylogo": False,
        "responsive": True,
        "toImageButtonOptions": {"format": "svg", "filename": f"barber-{name}"},
        "modeBarButtons": [["toImage"]],
    }
    return PlotData(type="plotly", plot=json.dumps(json.loads(figure.to_json()) | {"config": config}))
