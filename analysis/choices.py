"""The swaps that the rebuild tried and chose by validation error: frames of a run's rounds, and their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.style import BLUE, GREY, RED, SAND, TEAL, rounded, styled
from barber.config import Granularity
from barber.events import Candidate, Event, Round, SubBlockRebuilt, SwapKind

WITHIN = {
    Granularity.BLOCK: "in the whole sub-block",
    Granularity.LAYER: "in one matrix",
    Granularity.OUTPUT: "in one output row",
    Granularity.INPUT: "in one input column",
}
HOVER = "%{customdata}<br>%{y:.4g} % of the initial error<extra></extra>"
LINES = {  # granularity -> name, colour, dash and marker of its line
    Granularity.BLOCK: ("sub-block", BLUE, "solid", "circle"),
    Granularity.LAYER: ("matrix", SAND, "dash", "square"),
    Granularity.OUTPUT: ("row", GREY, "dot", "triangle-up"),
    Granularity.INPUT: ("column", GREY, "dashdot", "triangle-down"),
}


def choices(events: Sequence[Event]) -> pd.DataFrame:
    """One row per sub-block and round: the swap that the round chose, and the validation error before and after it.

    round: from 1. swap: a SwapKind, NONE where no swap lowered the error. fraction: of the gaining pairs.
    relative: the error after the round as a share of the error with the initial mask.
    """
    rows = [
        _place(event, number)
        | _swap(one)
        | {"before": one.error_before, "after": one.error, "relative": _ratio(one.error, _initial(event))}
        for event, number, one in _rounds(events)
    ]
    columns = ["layer", "sub_block", "kind", "round", "swap", "granularity", "fraction", "swaps"]
    return pd.DataFrame(rows, columns=[*columns, "before", "after", "relative"])


def candidates(events: Sequence[Event]) -> pd.DataFrame:
    """One row per swap that a round tried, and one for no swap: its validation error, as in `choices`.

    chosen: whether the round chose it.
    """
    rows = [
        _place(event, number)
        | _swap(tried)
        | {
            "error": tried.error,
            "relative": _ratio(tried.error, _initial(event)),
            "chosen": _swap(tried) == _swap(one),
        }
        for event, number, one in _rounds(events)
        for tried in one.curve
    ]
    columns = ["layer", "sub_block", "kind", "round", "swap", "granularity", "fraction", "swaps"]
    return pd.DataFrame(rows, columns=[*columns, "error", "relative", "chosen"])


def most_improved(choices: pd.DataFrame) -> tuple[int, str]:
    """Layer and name of the sub-block with the largest relative fall of its error."""
    row = choices.loc[choices["relative"].fillna(math.inf).idxmin()]
    return int(row["layer"]), row["sub_block"]


def describe_swap(swap: str, granularity: str, fraction: float, swaps: int) -> str:
    """A sentence part that describes a swap."""
    if swap == SwapKind.NONE:
        return "no change"
    if swap == SwapKind.ONE_SWAP:
        return f"exact one-swaps in each row: {swaps:,} pairs"
    return f"{100 * fraction:g} % of the gaining pairs {WITHIN[granularity]}: {swaps:,} pairs"


def rounds_figure(choices: pd.DataFrame) -> go.Figure:
    """Each sub-block's validation error after each round, relative to the initial mask."""
    labels = [f"{row.layer} {'attn' if row.kind == 'attention' else row.kind}" for row in choices.itertuples()]
    frame = choices.assign(label=labels, percent=100 * choices["relative"])
    x = list(dict.fromkeys(labels))
    lows = frame.groupby("label", sort=False)["percent"].min()
    figure = go.Figure()
    figure.add_scatter(
        x=[item for label in x for item in (label, label, None)],
        y=[item for low in rounded(lows) for item in (100.0, low, None)],
        mode="lines",
        line={"color": GREY, "width": 2},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=x,
        y=[100.0] * len(x),
        mode="markers",
        name="initial mask",
        marker={"color": RED, "size": 9},
        hovertemplate="layer %{x}<br>initial mask<extra></extra>",
    )
    marks = (
        (SwapKind.BY_SALIENCY, "swap by saliency", BLUE, "circle"),
        (SwapKind.ONE_SWAP, "one-swaps", TEAL, "diamond"),
    )
    for swap, name, colour, symbol in marks:
        part = frame[frame["swap"] == swap]
        if part.empty:
            continue
        figure.add_scatter(
            x=part["label"].tolist(),
            y=rounded(part["percent"]),
            customdata=[[row.round, _description(row)] for row in part.itertuples()],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9, "symbol": symbol},
            hovertemplate="layer %{x}, round %{customdata[0]}<br>%{customdata[1]}"
            "<br>%{y:.3g} % of the initial error<extra></extra>",
        )
    styled(figure, x="layer and sub-block", y="output error, % of initial", height=320)
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(type="category", showgrid=False, tickvals=x if len(x) <= 24 else x[:: len(x) // 16 * 2])
    return figure


def curve_figure(candidates: pd.DataFrame) -> go.Figure:
    """Validation error of each swap that a round tried in a sub-block, over the share of the gaining pairs."""
    frame = candidates.assign(percent=100 * candidates["relative"])
    start, single = frame[frame["swap"] == SwapKind.NONE], frame[frame["swap"] == SwapKind.ONE_SWAP]
    swaps = frame[frame["swap"] == SwapKind.BY_SALIENCY]
    fractions = sorted({value for value in swaps["fraction"] if value > 0})
    none = fractions[0] / 3 if fractions else 0.001  # the place of no change on the log axis
    edges = [none / 1.4, 1.4 * (fractions[-1] if fractions else none)]
    figure = go.Figure()
    for granularity, part in swaps.groupby("granularity", sort=False):
        name, colour, dash, symbol = LINES[granularity]
        line = pd.concat([start, part.sort_values("fraction")])
        figure.add_scatter(
            x=[row.fraction or none for row in line.itertuples()],
            y=rounded(line["percent"]),
            customdata=[_description(row) for row in line.itertuples()],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 7, "symbol": symbol},
            hovertemplate=HOVER,
        )
    if not single.empty:
        figure.add_scatter(
            x=[edges[0], *fractions, edges[1]],
            y=rounded(single["percent"]) * (len(fractions) + 2),
            customdata=[_description(row) for row in single.itertuples()] * (len(fractions) + 2),
            mode="lines",
            name="one-swaps",
            line={"color": TEAL, "width": 2, "dash": "longdash"},
            hovertemplate=HOVER,
        )
    _mark(figure, start, none, "no change", {"color": RED, "size": 9})
    chosen = frame[frame["chosen"]]
    where = fractions[-1] if fractions and (chosen["swap"] == SwapKind.ONE_SWAP).any() else none
    ring = {"color": "rgba(0,0,0,0)", "size": 17, "line": {"color": BLUE, "width": 2.5}}
    _mark(figure, chosen, where, "chosen", ring)
    styled(figure, x="share of the gaining pairs that are swapped", y="output error, % of initial", height=360)
    ticks = {"tickvals": [none, *fractions], "ticktext": ["none", *(f"{100 * value:g} %" for value in fractions)]}
    figure.update_xaxes(type="log", range=[math.log10(edge) for edge in edges], **ticks)
    high, low = frame["percent"].max(), frame["percent"].min()
    if low > 0 and high > 5 * low:
        figure.update_yaxes(type="log", tickformat="~g", dtick="D2" if high < 50 * low else 1)
    return figure


def gain_curve(events: Sequence[Event], layer: int, sub_block: str) -> pd.DataFrame:
    """Gain over rank of the gaining pairs of one sub-block (see events.GainCurve): rank, gain; empty without one."""
    found = (
        event.curve
        for event in events
        if isinstance(event, SubBlockRebuilt) and (event.layer, event.sub_block) == (layer, sub_block)
    )
    curve = next(found, None)
    return pd.DataFrame({"rank": curve.ranks, "gain": curve.gains} if curve else {"rank": [], "gain": []})


def some_gains(gains: pd.DataFrame, most: int = 25) -> pd.DataFrame:
    """At most `most` rows of a gain curve, evenly spaced, with the first and the last."""
    places = sorted({round(place * (len(gains) - 1) / (most - 1)) for place in range(most)})
    return gains.iloc[places]


def gain_figure(gains: pd.DataFrame) -> go.Figure:
    """Gain over rank of the gaining pairs of one sub-block, on a log axis."""
    figure = go.Figure()
    figure.add_scatter(
        x=gains["rank"].tolist(),
        y=rounded(gains["gain"]),
        mode="lines" if len(gains) > 50 else "lines+markers",
        line={"color": BLUE, "width": 2},
        hovertemplate="pair %{x:,}<br>gain %{y:.3g}<extra></extra>",
    )
    styled(figure, x="gaining pairs, from the largest gain", y="gain in saliency", height=300, top=8)
    figure.update_yaxes(type="log", dtick=1, exponentformat="e")
    return figure


def _mark(figure: go.Figure, part: pd.DataFrame, otherwise: float, name: str, marker: dict) -> None:
    """A marker for the only row of `part`: at its fraction, or at `otherwise` if that is 0."""
    if part.empty:
        return
    row = next(part.itertuples())
    figure.add_scatter(
        x=[row.fraction or otherwise],
        y=rounded([row.percent]),
        customdata=[_description(row)],
        mode="markers",
        name=name,
        marker=marker,
        hovertemplate=HOVER,
    )


def _rounds(events: Sequence[Event]) -> list[tuple[SubBlockRebuilt, int, Round]]:
    return [
        (event, number, one)
        for event in events
        if isinstance(event, SubBlockRebuilt)
        for number, one in enumerate(event.rounds, start=1)
    ]


def _place(event: SubBlockRebuilt, number: int) -> dict:
    return {"layer": event.layer, "sub_block": event.sub_block, "kind": event.kind, "round": number}


def _swap(change: Candidate) -> dict:
    return {name: getattr(change, name) for name in ("swap", "granularity", "fraction", "swaps")}


def _initial(event: SubBlockRebuilt) -> float:
    return event.rounds[0].error_before


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _description(row) -> str:
    return describe_swap(row.swap, row.granularity, row.fraction, row.swaps)
