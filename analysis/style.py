"""The style of all figures: three hues with fixed meanings, and a layout for light and dark pages."""

from __future__ import annotations

import plotly.graph_objects as go

from barber.events import Fate, Stage

GREY, RED, BLUE = "#8b93a1", "#d2524a", "#3b82c9"
SAND, TEAL = "#b9a27c", "#2f9e8f"  # further hues for lines, without a fixed meaning
TEXT = "#7d838e"
GRID = "rgba(128, 134, 145, 0.18)"
STAGE_COLOUR = {Stage.DENSE: GREY, Stage.INITIAL: RED, Stage.REBUILT: BLUE}
FATE_COLOUR = {Fate.KEPT: GREY, Fate.PRUNED: SAND, Fate.GROWN: BLUE, Fate.CUT: RED}
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"

NO_CLICKS = {
    "itemclick": False,
    "itemdoubleclick": False,
}  # a click on the list of a dropdown that covers the legend would hide a trace


def styled(figure: go.Figure, *, x: str = "", y: str = "", height: int = 320, top: int = 36) -> go.Figure:
    """The figure with the common layout: transparent, mid-grey text, legend above, growing margins."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 12, "t": top, "b": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": TEXT},
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"} | NO_CLICKS,
        hoverlabel={"font": {"family": FONT, "size": 13}},
        dragmode=False,
    )
    axis = {"automargin": True, "gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": ""}
    figure.update_xaxes(title={"text": x, "standoff": 10, "font": {"size": 13}}, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 10, "font": {"size": 13}}, **axis)
    return figure


def saving(name: str) -> dict:
    """Plotly's configuration of a figure: one button, which saves it as SVG; `name` is in the name of the file."""
    return {
        "displaylogo": False,
        "responsive": True,
        "toImageButtonOptions": {"format": "svg", "filename": f"barber-{name}"},
        "modeBarButtons": [["toImage"]],
    }


def rounded(values, digits: int = 5) -> list:
    """Plain floats with few significant digits: the figure travels as JSON."""
    return [float(f"{value:.{digits}g}") for value in values]


def format_perplexity(perplexity: float) -> str:
    """A perplexity with four significant digits or, from 1000 on, without decimals: 1.464, 6.988, 20,521, 6.9e+19."""
    if perplexity < 1000:
        return f"{perplexity:.4g}"
    return f"{perplexity:,.0f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def faded(colour: str, alpha: float) -> str:
    """A colour like "#3b82c9" with some opacity from 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
