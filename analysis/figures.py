"""Plotly figures of frames: one function per figure, each a few kilobytes of JSON for any model size."""

from __future__ import annotations

import math
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.style import BLUE, FATE_COLOUR, GREY, RED, STAGE_COLOUR, format_perplexity, rounded, styled
from barber.events import Fate, Stage

CHANGED = (Fate.GROWN, Fate.CUT)
STAGE_LABEL = {Stage.DENSE: "dense", Stage.INITIAL: "initial mask", Stage.REBUILT: "rebuilt"}


def flip_heatmap(flips: pd.DataFrame) -> go.Figure:
    """Share of mask bits of each weight matrix that the rebuild changed: modules as rows, layers as columns."""
    order = list(dict.fromkeys(flips["module"]))
    table = (100 * flips.pivot(index="module", columns="layer", values="share")).loc[order]
    grown, cut = (flips.pivot(index="module", columns="layer", values=kind).loc[order].to_numpy() for kind in CHANGED)
    figure = go.Figure(
        go.Heatmap(
            z=[rounded(row, 4) for row in table.to_numpy()],
            x=table.columns.tolist(),
            y=order,
            customdata=np.stack([grown, cut], axis=-1).tolist(),
            hovertemplate="layer %{x} · %{y}<br>%{z:.2f} % of the mask changed"
            "<br>%{customdata[0]:,} grown, %{customdata[1]:,} cut<extra></extra>",
            colorscale=[[0, "rgba(59,130,201,0.06)"], [1, "rgba(59,130,201,1)"]],
            zmin=0,
            zmax=max(table.max(axis=None), 1e-9),
            xgap=2 if table.shape[1] <= 16 else 0.5,
            ygap=2,
            colorbar={
                "title": {"text": "% changed", "side": "right", "font": {"size": 13}},
                "thickness": 10,
                "outlinewidth": 0,
            },
        )
    )
    styled(figure, x="layer", height=70 + 30 * len(order), top=8)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, **_layer_ticks(table.columns.tolist()))
    return figure


def flip_bars(flips: pd.DataFrame, by: str = "layer") -> go.Figure:
    """Weights grown and cut, summed by "layer" or by "module".

    Where every sum grew as many as it cut, one bar stands for both; else the grown ones are up and the cut ones down.
    """
    sums = flips.groupby(by, sort=False)[list(CHANGED)].sum()
    x, equal = sums.index.tolist(), (sums[Fate.GROWN] == sums[Fate.CUT]).all()
    figure = go.Figure()
    for kind, sign, colour in ((Fate.GROWN, 1, BLUE), (Fate.CUT, -1, RED))[: 1 if equal else 2]:
        what = "grown, and as many cut" if equal else str(kind)
        figure.add_bar(
            x=x,
            y=(sign * sums[kind]).tolist(),
            customdata=sums[kind].tolist(),
            name=f"{what} ({sums[kind].sum():,})",
            marker={"color": colour},
            showlegend=True,
            hovertemplate=f"{by} %{{x}}<br>%{{customdata:,}} {what}<extra></extra>",
        )
    styled(figure, x=by, y="weights", height=300)
    figure.update_layout(barmode="relative", bargap=0.35)
    figure.update_xaxes(showgrid=False, **(_layer_ticks(x) if by == "layer" else {}))
    return figure


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


def saliency_histogram(histogram: pd.DataFrame, zeros: dict[str, int], log_counts: bool = False) -> go.Figure:
    """log10 saliency of one weight matrix by fate, as step lines over the bins of the frame.

    zeros: fate -> how many weights are in no bin (see frames.without_saliency); the legend includes them.
    """
    figure = go.Figure()
    edges = rounded([*histogram["left"], *histogram["right"].tail(1)])
    for fate in Fate:
        counts = histogram[fate].tolist()
        figure.add_scatter(
            x=edges,
            y=[*counts, counts[-1]],
            name=f"{fate} ({sum(counts) + zeros.get(fate, 0):,})",
            mode="lines",
            line={"color": FATE_COLOUR[fate], "width": 1.5, "shape": "hv"},
            fill=None if log_counts else "tozeroy",
            fillcolor=_faded(FATE_COLOUR[fate], 0.55 if fate in CHANGED else 0.18),
            hovertemplate=f"log₁₀ S from %{{x:.2f}}<br>%{{y:,}} {fate}<extra></extra>",
        )
    styled(figure, x="log₁₀ saliency", y="weights", height=380)
    if log_counts:
        figure.update_yaxes(type="log", dtick=1)
    return figure


def mask_map(fates: np.ndarray) -> go.Figure:
    """A weight matrix, one cell per weight, coloured by fate: rows are outputs, columns inputs."""
    rows, columns = fates.shape
    steps = np.linspace(0, 1, len(Fate) + 1)
    strength = {Fate.KEPT: 0.75, Fate.PRUNED: 0.12, Fate.GROWN: 1.0, Fate.CUT: 1.0}
    colours = [_faded(FATE_COLOUR[fate], strength[fate]) for fate in Fate]
    scale = [[float(step), colour] for i, colour in enumerate(colours) for step in steps[i : i + 2]]
    look = {"zmin": -0.5, "zmax": len(Fate) - 0.5, "colorscale": scale, "showscale": False, "hoverinfo": "skip"}
    figure = go.Figure(go.Heatmap(z=fates.tolist(), **look))
    for fate, colour in zip(Fate, colours, strict=True):
        marker = {"color": colour, "symbol": "square", "size": 12}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=fate, marker=marker)
    styled(figure, x="input", y="output", height=80 + max(240, min(520, 5 * rows)))
    figure.update_yaxes(range=[rows - 0.5, -0.5], showgrid=False, scaleanchor="x", constrain="domain")
    figure.update_xaxes(range=[-0.5, columns - 0.5], showgrid=False, constrain="domain")
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
            customdata=[_interval(one) for one in part.itertuples()],
            mode="markers+text",
            marker={"color": [STAGE_COLOUR[Stage(stage)] for stage in part["stage"]], "size": 12},
            text=[format_perplexity(value) for value in values],
            textposition="top center",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
        ends = [value for value in [*low, *high] if math.isfinite(value)] or [1.0]
        first, last = min(ends) / 1.15, max(ends) * 1.15
        ticks = log_ticks(first, last)
        figure.update_xaxes(
            row=row,
            col=1,
            type="log",
            range=[math.log10(first), math.log10(last)],
            tickvals=ticks,
            ticktext=[format_perplexity(tick) for tick in ticks],
        )
        figure.update_yaxes(row=row, col=1, range=[len(part) - 0.5, -0.8], showgrid=False)
    styled(figure, height=70 + 170 * len(datasets))
    figure.update_xaxes(title_text="perplexity (log axis), lower is better", row=len(datasets), col=1)
    figure.update_annotations(x=0, xshift=-70, xanchor="left", font={"size": 13})
    return figure


def _interval(row) -> str:
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


def _faded(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
