"""Plotly figures of frames: one function per figure, each a few kilobytes of JSON for any model size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.style import BLUE, GREY, RED, STAGE_COLOUR, format_perplexity, rounded, styled
from barber.events import Fate, Stage

FROM_NOTHING = [[0, "rgba(59,130,201,0.06)"], [1, "rgba(59,130,201,1)"]]  # a colour scale
STAGE_LABEL = {Stage.DENSE: "dense", Stage.INITIAL: "initial mask", Stage.REBUILT: "rebuilt"}


def module_heatmap(table: pd.DataFrame, most: float, title: str, hover: str) -> go.Figure:
    """Values from 0 to `most` of all matrices: modules as rows, layers as columns. title: of the scale."""
    figure = go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(value) else value for value in rounded(row, 4)] for row in table.to_numpy(float)],
            x=table.columns.tolist(),
            y=table.index.tolist(),
            hovertemplate=f"layer %{{x}} · %{{y}}<br>{hover}<extra></extra>",
            colorscale=FROM_NOTHING,
            zmin=0,
            zmax=most,
            xgap=2 if table.shape[1] <= 16 else 0.5,
            ygap=2,
            colorbar={
                "title": {"text": title, "side": "right", "font": {"size": 13}},
                "thickness": 10,
                "outlinewidth": 0,
            },
        )
    )
    styled(figure, x="layer", height=70 + 30 * len(table), top=8)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, **_layer_ticks(table.columns.tolist()))
    return figure


def by_module(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """A column of a frame with one row per matrix as a table: modules in their order as rows, layers as columns."""
    return frame.pivot(index="module", columns="layer", values=value).reindex(list(dict.fromkeys(frame["module"])))


def flip_heatmap(flips: pd.DataFrame) -> go.Figure:
    """Share of mask bits of each weight matrix that the rebuild changed."""
    table = 100 * by_module(flips, "share")
    return module_heatmap(table, max(table.max(axis=None), 1e-9), "% changed", "%{z:.2f} % of the mask changed")


def flip_bars(flips: pd.DataFrame, by: str = "layer") -> go.Figure:
    """Weights grown and cut, summed by "layer" or by "module".

    Where every sum grew as many as it cut, one bar stands for both; else there are two side by side.
    """
    sums = flip_sums(flips, by)
    x, equal = sums.index.tolist(), (sums[Fate.GROWN] == sums[Fate.CUT]).all()
    figure = go.Figure()
    for kind, colour in ((Fate.GROWN, BLUE), (Fate.CUT, RED))[: 1 if equal else 2]:
        what = "grown, and as many cut" if equal else str(kind)
        figure.add_bar(
            x=x,
            y=sums[kind].tolist(),
            name=f"{what} ({sums[kind].sum():,})",
            marker={"color": colour},
            showlegend=True,
            hovertemplate=f"{by} %{{x}}<br>%{{y:,}} {what}<extra></extra>",
        )
    styled(figure, x=by, y="weights", height=300)
    figure.update_layout(barmode="group", bargap=0.35, bargroupgap=0.1)
    figure.update_xaxes(showgrid=False, **(_layer_ticks(x) if by == "layer" else {}))
    return figure


def flip_sums(flips: pd.DataFrame, by: str) -> pd.DataFrame:
    """Weights, and those grown and cut, summed by "layer" or by "module"."""
    return flips.groupby(by, sort=False)[["weights", str(Fate.GROWN), str(Fate.CUT)]].sum()


def sub_block_errors(sub_blocks: pd.DataFrame) -> go.Figure:
    """Each sub-block's output error with the initial mask and after the rebuild, joined by a line; log axis."""
    x = [f"{row.layer} {'attn' if row.kind == 'attention' else row.kind}" for row in sub_blocks.itertuples()]
    before, after = rounded(sub_blocks["before"]), rounded(sub_blocks["after"])
    figure = go.Figure()
    figure.add_scatter(
        x=[item for label in x for item in (label, label, None)],
        y=[item for pair in zip(before, after, strict=True) for item in (*pair, None)],
        mode="lines",
        line={"color": GREY, "width": 2},
        opacity=0.5,
        hoverinfo="skip",
        showlegend=False,
    )
    for values, name, colour in ((before, "initial mask", RED), (after, "rebuilt", BLUE)):
        figure.add_scatter(
            x=x,
            y=values,
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            hovertemplate=f"layer %{{x}}<br>{name}: %{{y:.3g}}<extra></extra>",
        )
    styled(figure, x="layer and sub-block", y="output error (mean squared)", height=320)
    narrow = max(before, default=1.0) < 50 * max(min(after, default=1.0), 1e-30)
    figure.update_yaxes(type="log", tickformat="~g", dtick="D2" if narrow else 1)
    figure.update_xaxes(type="category", showgrid=False, tickvals=x if len(x) <= 24 else x[:: len(x) // 16 * 2])
    return figure


def perplexity_dots(perplexities: pd.DataFrame) -> go.Figure:
    """Perplexity by stage with its 95 % interval on a log axis, one panel per dataset with its number of tokens."""
    datasets = list(dict.fromkeys(perplexities["dataset"]))
    parts = [perplexities[perplexities["dataset"] == dataset] for dataset in datasets]
    titles = [f"{escape(name)}: {part['tokens'].iloc[0]:,} tokens" for name, part in zip(datasets, parts, strict=True)]
    figure = make_subplots(rows=len(datasets), cols=1, subplot_titles=titles, vertical_spacing=0.35 / len(datasets))
    for row, part in enumerate(parts, start=1):
        values = part["perplexity"]
        low, high = (part[end].fillna(values) for end in ("low", "high"))
        figure.add_scatter(
            row=row,
            col=1,
            x=values.tolist(),
            y=[STAGE_LABEL[Stage(stage)] for stage in part["stage"]],
            error_x={"array": (high - values).tolist(), "arrayminus": (values - low).tolist(), "color": GREY},
            customdata=[describe_interval(one) for one in part.itertuples()],
            mode="markers+text",
            marker={"color": [STAGE_COLOUR[Stage(stage)] for stage in part["stage"]], "size": 12},
            text=[format_perplexity(value) for value in values],
            textposition="top center",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
        ends = [value for value in [*low, *high] if math.isfinite(value)] or [1.0]
        perplexity_axis(figure, row, ends)
        figure.update_yaxes(row=row, col=1, range=[len(part) - 0.5, -0.8], showgrid=False)
    styled(figure, height=70 + 170 * len(datasets))
    figure.update_xaxes(title_text="perplexity (log axis), lower is better", row=len(datasets), col=1)
    figure.update_annotations(x=0, xshift=-70, xanchor="left", font={"size": 13})
    return figure


def perplexity_axis(figure: go.Figure, row: int, values: Sequence[float]) -> None:
    """Make the x axis of a panel logarithmic, from a little below the smallest of the values to above the largest."""
    first, last = min(values) / 1.15, max(values) * 1.15
    ticks = log_ticks(first, last)
    figure.update_xaxes(
        row=row,
        col=1,
        type="log",
        range=[math.log10(first), math.log10(last)],
        tickvals=ticks,
        ticktext=[format_perplexity(tick) for tick in ticks],
    )


def describe_interval(row) -> str:
    """A perplexity with its interval, where that is known."""
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return format_perplexity(row.perplexity)
    ends = " to ".join(format_perplexity(end) for end in (row.low, row.high))
    return f"{format_perplexity(row.perplexity)}, 95 % interval {ends}"


def log_ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers from `low` to `high` for a log axis; fewer only where there is none between."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [factor * 10.0**power for power in decades for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) >= 3:
            break
    else:  # so narrow that equal steps look equal
        step = 10.0 ** math.floor(math.log10((high - low) / 2))
        found = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [float(f"{tick:.4g}") for tick in found[:: math.ceil(len(found) / 8)]]


def _layer_ticks(layers: list[int]) -> dict:
    """A label for every layer, or for every fourth of more than 16."""
    return {"tickmode": "array", "tickvals": layers if len(layers) <= 16 else layers[::4]}
