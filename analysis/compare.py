"""Two to four runs beside each other: frames that have a column `run` with the label of a run, and their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis import frames
from analysis.figures import FROM_NOTHING, STAGE_LABEL, by_module, describe_interval, module_heatmap, perplexity_axis
from analysis.style import BLUE, GREY, RED, SAND, STAGE_COLOUR, TEAL, rounded, styled
from barber.events import Event, Stage
from barber.runs.directory import RunDirectory

LABELS = ("A", "B", "C", "D")
COLOUR = dict(zip(LABELS, (BLUE, RED, TEAL, SAND), strict=True))
SYMBOL = dict(zip(LABELS, ("circle", "diamond", "square", "triangle-up"), strict=True))
Runs = Mapping[str, Sequence[Event]]  # label -> the events of a run


def _beside(runs: Runs, frame: Callable[[Sequence[Event]], pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([frame(events).assign(run=label) for label, events in runs.items()], ignore_index=True)


def perplexities(runs: Runs) -> pd.DataFrame:
    """frames.perplexities of each run."""
    return _beside(runs, frames.perplexities)


def sub_blocks(runs: Runs) -> pd.DataFrame:
    """frames.sub_blocks of each run."""
    return _beside(runs, frames.sub_blocks)


def flips(runs: Runs) -> pd.DataFrame:
    """frames.flips of each run."""
    return _beside(runs, frames.flips)


def texts(runs: Runs) -> pd.DataFrame:
    """frames.texts of each run: run, prompt, stage, text."""
    return _beside(runs, frames.texts)


def jaccard(first: RunDirectory, second: RunDirectory, names: Sequence[tuple[int, str]]) -> pd.DataFrame:
    """The agreement of the final masks of two runs, one row per matrix that both have: layer, name, jaccard, expected.

    jaccard: weights that both prune, as a share of those that at least one prunes; 1 where both prune none. expected:
    the same of two masks with as many zeros each that know nothing of each other. names: (layer, name) of the matrices.
    """
    rows = []
    for layer, name in names:
        masks = [_final_mask(run, layer, name) for run in (first, second)]
        if masks[0] is None or masks[1] is None or masks[0][1] != masks[1][1]:
            continue
        (one, shape), (other, _) = masks
        both, either = (int(np.bitwise_count(bits).sum()) for bits in (one & other, one | other))
        ratios = [int(np.bitwise_count(bits).sum()) / math.prod(shape) for bits in (one, other)]
        rows.append([layer, name, both / either if either else 1.0, _by_chance(*ratios)])
    return pd.DataFrame(rows, columns=["layer", "name", "jaccard", "expected"])


def _final_mask(run: RunDirectory, layer: int, name: str) -> tuple[np.ndarray, list[int]] | None:
    """The rebuilt mask of a matrix, else the initial one, as bits, and its shape."""
    found = run.packed_mask(layer, Stage.REBUILT, name) or run.packed_mask(layer, Stage.INITIAL, name)
    return (found[0].numpy(), list(found[1])) if found else None


def _by_chance(first: float, second: float) -> float:
    both = first * second
    return both / (first + second - both) if first + second else 1.0


def pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Every two runs, in the order of their labels."""
    return list(combinations(labels, 2))


def perplexity_figure(perplexities: pd.DataFrame) -> go.Figure:
    """Perplexity of each run and stage with its 95 % interval on a log axis, one panel per data set."""
    datasets = list(dict.fromkeys(perplexities["dataset"]))
    labels = list(dict.fromkeys(perplexities["run"]))
    figure = make_subplots(rows=len(datasets), cols=1, subplot_titles=datasets, vertical_spacing=0.35 / len(datasets))
    for row, dataset in enumerate(datasets, start=1):
        part = perplexities[perplexities["dataset"] == dataset]
        finite = part[np.isfinite(part["perplexity"])]
        for stage in Stage:
            dots = finite[finite["stage"] == stage]
            values = dots["perplexity"]
            low, high = (dots[end].fillna(values) for end in ("low", "high"))
            figure.add_scatter(
                row=row,
                col=1,
                x=values.tolist(),
                y=dots["run"].tolist(),
                error_x={"array": (high - values).tolist(), "arrayminus": (values - low).tolist(), "color": GREY},
                customdata=[describe_interval(one) for one in dots.itertuples()],
                mode="markers",
                marker={"color": STAGE_COLOUR[stage], "size": 11},
                name=STAGE_LABEL[stage],
                showlegend=row == 1,
                hovertemplate=f"run %{{y}}, {STAGE_LABEL[stage]}: %{{customdata}}<extra></extra>",
            )
        ends = [value for end in ("low", "high", "perplexity") for value in finite[end].dropna()] or [1.0]
        perplexity_axis(figure, row, ends)
        figure.update_yaxes(row=row, col=1, type="category", categoryarray=labels[::-1], categoryorder="array")
    height = 120 + (40 + 34 * len(labels)) * len(datasets)
    styled(figure, height=height, top=64)
    figure.update_xaxes(title_text="perplexity (log axis), lower is better", row=len(datasets), col=1)
    figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top"})
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def error_figure(sub_blocks: pd.DataFrame) -> go.Figure:
    """Output error of each sub-block with the final weights, a line per run, one panel per kind of sub-block."""
    kinds = list(dict.fromkeys(sub_blocks["kind"]))
    figure = make_subplots(rows=1, cols=len(kinds), subplot_titles=kinds, shared_yaxes=True, horizontal_spacing=0.04)
    for column, kind in enumerate(kinds, start=1):
        for label, part in sub_blocks[sub_blocks["kind"] == kind].groupby("run", sort=False):
            figure.add_scatter(
                row=1,
                col=column,
                x=part["layer"].tolist(),
                y=rounded(part["after"]),
                mode="lines+markers",
                name=str(label),
                legendgroup=str(label),
                showlegend=column == 1,
                line={"color": COLOUR[str(label)], "width": 2},
                marker={"symbol": SYMBOL[str(label)], "size": 8},
                hovertemplate=f"run {label}, layer %{{x}}: %{{y:.3g}}<extra></extra>",
            )
    styled(figure, x="layer", height=340, top=72)
    figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top"})
    figure.update_yaxes(type="log", tickformat="~g")
    figure.update_yaxes(title_text="output error (mean squared)", col=1)
    figure.update_xaxes(showgrid=False)
    return figure


def flip_figure(flips: pd.DataFrame) -> go.Figure:
    """Share of mask bits that each run's rebuild changed, on one scale; of two runs, also the difference."""
    labels = list(dict.fromkeys(flips["run"]))
    tables = {label: 100 * by_module(part, "share") for label, part in flips.groupby("run", sort=False)}
    order = list(dict.fromkeys(flips["module"]))
    tables = {label: table.reindex(order) for label, table in tables.items()}
    most = max(max(table.max(axis=None) for table in tables.values()), 1e-9)
    titles = [f"run {label}" for label in labels]
    panels = [(table, "blues") for table in tables.values()]
    if len(labels) == 2:
        first, second = tables.values()
        panels.append((second - first, "difference"))
        titles.append(f"{labels[1]} minus {labels[0]}")
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, vertical_spacing=0.3 / len(panels))
    for row, (table, axis) in enumerate(panels, start=1):
        figure.add_heatmap(
            row=row,
            col=1,
            z=[[None if math.isnan(value) else value for value in rounded(line, 4)] for line in table.to_numpy()],
            x=table.columns.tolist(),
            y=order,
            coloraxis="coloraxis" if axis == "blues" else "coloraxis2",
            xgap=2 if table.shape[1] <= 16 else 0.5,
            ygap=2,
            hovertemplate=f"{titles[row - 1]}, layer %{{x}} · %{{y}}: %{{z:.2f}} %<extra></extra>",
        )
    styled(figure, height=40 + (70 + 26 * len(order)) * len(panels), top=28)
    bar = {"thickness": 10, "outlinewidth": 0, "len": 1 / len(panels), "yanchor": "top"}
    widest = max((panels[-1][0].abs().max(axis=None) if len(labels) == 2 else 0), 1e-9)
    figure.update_layout(
        coloraxis={
            "colorscale": FROM_NOTHING,
            "cmin": 0,
            "cmax": most,
            "colorbar": bar | {"y": 1, "title": {"text": "% changed", "side": "right"}},
        },
        coloraxis2={
            "colorscale": [[0, RED], [0.5, "rgba(139,147,161,0.08)"], [1, BLUE]],
            "cmin": -widest,
            "cmax": widest,
            "colorbar": bar | {"y": 1 / len(panels), "title": {"text": "difference", "side": "right"}},
        },
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title_text="layer", row=len(panels), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def jaccard_figure(agreement: pd.DataFrame) -> go.Figure:
    """The agreement of the final masks of two runs, from 0 to 1."""
    names = frames.short_names(list(dict.fromkeys(agreement["name"])))
    table = by_module(agreement.assign(module=agreement["name"].map(names)), "jaccard")
    return module_heatmap(table, 1.0, "Jaccard", "%{z:.3f}")
