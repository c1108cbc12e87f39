"""The distribution of the saliency of one matrix: of the weights of each fate, or of what each mask keeps."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.style import BLUE, FATE_COLOUR, RED, faded, rounded, styled
from barber.events import Fate


class Scale(StrEnum):
    """What the height of a curve is."""

    SHARE = "share of each"
    CUMULATIVE = "cumulative share"
    COUNT = "weights"
    LOG = "weights, log axis"


class Curve(NamedTuple):
    """The weights that one curve shows: those of some fates."""

    fates: tuple[Fate, ...]
    colour: str
    dash: str = "solid"


BY_FATE = {str(fate): Curve((fate,), FATE_COLOUR[fate]) for fate in Fate}
BY_MASK = {
    "kept by the initial mask": Curve((Fate.KEPT, Fate.CUT), RED),
    "kept by the rebuilt mask": Curve((Fate.KEPT, Fate.GROWN), BLUE),
    "pruned by the initial mask": Curve((Fate.PRUNED, Fate.GROWN), RED, "dot"),
    "pruned by the rebuilt mask": Curve((Fate.PRUNED, Fate.CUT), BLUE, "dot"),
}
UNIT = {Scale.SHARE: "% of each", Scale.CUMULATIVE: "% of each up to here"}


def curves(histogram: pd.DataFrame, zeros: Mapping[str, int], which: Mapping[str, Curve], scale: Scale) -> pd.DataFrame:
    """The height of each curve in each bin: left, right, and one column per curve.

    histogram, zeros: see frames.saliency and frames.without_saliency. Shares are in percent of all weights of a curve,
    also of those that have saliency zero, which are below every bin.
    """
    heights = {}
    for name, curve in which.items():
        counts = sum(histogram[fate] for fate in curve.fates)
        below = sum(zeros.get(fate, 0) for fate in curve.fates)
        if scale is Scale.CUMULATIVE:
            counts = counts.cumsum() + below
        if scale in (Scale.SHARE, Scale.CUMULATIVE):
            whole = below + sum(histogram[fate].sum() for fate in curve.fates)
            counts = 100 * counts / max(whole, 1)
        heights[name] = counts
    return pd.DataFrame({"left": histogram["left"], "right": histogram["right"]} | heights)


def totals(histogram: pd.DataFrame, zeros: Mapping[str, int], which: Mapping[str, Curve]) -> dict[str, int]:
    """Curve -> number of its weights, with those that are in no bin."""
    return {
        name: int(sum(histogram[fate].sum() + zeros.get(fate, 0) for fate in curve.fates))
        for name, curve in which.items()
    }


def figure(
    histogram: pd.DataFrame, zeros: Mapping[str, int], which: Mapping[str, Curve], scale: Scale, apart: bool = False
) -> go.Figure:
    """The curves over log10 saliency, in one panel or each in a panel of its own (apart), as step lines."""
    shown, numbers = curves(histogram, zeros, which, scale), totals(histogram, zeros, which)
    edges = rounded([*shown["left"], *shown["right"].tail(1)])
    panels = make_subplots(rows=len(which), cols=1, shared_xaxes=True, vertical_spacing=0.04) if apart else go.Figure()
    for place, (name, curve) in enumerate(which.items(), start=1):
        heights = rounded(shown[name])
        # A cumulative share is reached at the right edge of its bin.
        heights = [0.0, *heights] if scale is Scale.CUMULATIVE else [*heights, heights[-1]]
        if scale is Scale.LOG:
            heights = [height or None for height in heights]
        panels.add_scatter(
            x=edges,
            y=heights,
            name=f"{name} ({numbers[name]:,})",
            mode="lines",
            line={
                "color": curve.colour,
                "width": 2,
                "dash": curve.dash,
                "shape": "linear" if scale is Scale.CUMULATIVE else "hv",
            },
            fill="tozeroy" if scale in (Scale.SHARE, Scale.COUNT) and curve.dash == "solid" else None,
            fillcolor=faded(curve.colour, 0.15),
            hovertemplate=f"log₁₀ S = %{{x:.2f}}<br>{name}: %{{y:,.4~g}} {UNIT.get(scale, 'weights')}<extra></extra>",
            **({"row": place, "col": 1} if apart else {}),
        )
    height = 110 + 120 * len(which) if apart else 380
    styled(panels, x="" if apart else "log₁₀ saliency", y="" if apart else UNIT.get(scale, "weights"), height=height)
    if apart:
        panels.update_xaxes(title_text="log₁₀ saliency", row=len(which), col=1)
        panels.update_yaxes(title_text=UNIT.get(scale, "weights"), row=1, col=1)
    panels.update_yaxes(type="log", dtick=1) if scale is Scale.LOG else panels.update_yaxes(rangemode="tozero")
    return panels
