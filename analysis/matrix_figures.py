"""Figures of one weight matrix: what it keeps in blocks, rows, columns and heads, and how its n:m patterns changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.matrix import CELLS, Heads, Overview, Window, averaged
from analysis.style import BLUE, RED, rounded, styled
from barber.events import Stage

LINES = {Stage.INITIAL: ("initial mask", RED, "dot"), Stage.REBUILT: ("rebuilt mask", BLUE, "solid")}
WORDS = {"kept": "kept by the rebuilt mask", "changed": "of the mask changed"}


def density(overview: Overview, share: str, shown: Window | None = None) -> go.Figure:
    """The matrix in blocks, coloured by their share "kept" or "changed", with the outline of a window, if given."""
    shares, (tall, wide) = getattr(overview, share), overview.block
    height, width = len(overview.rows), len(overview.columns)
    colour = "59,130,201" if share == "changed" else "139,147,161"
    figure = go.Figure(
        go.Heatmap(
            z=(100 * shares).astype(np.float32).round(2),
            x0=(wide - 1) / 2,
            dx=wide,
            y0=(tall - 1) / 2,
            dy=tall,
            zmin=0,
            zmax=max(100 * float(shares.max()), 1e-9),
            colorscale=[[0, f"rgba({colour},0.04)"], [1, f"rgba({colour},1)"]],
            colorbar={
                "title": {"text": f"% {share}", "side": "right", "font": {"size": 13}},
                "thickness": 10,
                "outlinewidth": 0,
            },
            hovertemplate=f"%{{z:.3~g}} % {WORDS[share]}<br>around row %{{y:.0f}}, column %{{x:.0f}}<extra></extra>",
        )
    )
    if shown:
        rows, columns = shown.fates.shape
        figure.add_shape(
            type="rect",
            x0=shown.column - 0.5,
            x1=shown.column + columns - 0.5,
            y0=shown.row - 0.5,
            y1=shown.row + rows - 0.5,
            line={"color": RED, "width": 2},
        )
    styled(figure, x="column (input)", y="row (output)", height=380, top=8)
    figure.update_xaxes(range=[-0.5, width - 0.5], showgrid=False)
    figure.update_yaxes(range=[height - 0.5, -0.5], showgrid=False)
    return figure


def shares(frame: pd.DataFrame, axis: str) -> go.Figure:
    """The share that both masks keep of each row or column, as lines; of a long axis, means of neighbours."""
    means = averaged(frame)
    figure = go.Figure()
    for stage, (name, colour, dash) in LINES.items():
        figure.add_scatter(
            x=means["first"].tolist(),
            y=rounded(100 * means[stage], 4),
            customdata=means[["first", "last"]].to_numpy().tolist(),
            mode="lines",
            name=name,
            line={"color": colour, "width": 2, "dash": dash, "shape": "hv"},
            hovertemplate=f"{axis} %{{customdata[0]}} to %{{customdata[1]}}<br>{name} keeps %{{y}} %<extra></extra>"
            if len(frame) > CELLS
            else f"{axis} %{{x}}<br>{name} keeps %{{y}} %<extra></extra>",
        )
    styled(figure, x=axis, y="% kept", height=240)
    low, high = 100 * frame.min(axis=None), 100 * frame.max(axis=None)
    room = max(2.0, (high - low) / 10)
    figure.update_yaxes(range=[max(low - room, -1), min(high + room, 101)])
    return figure


def head_shares(frame: pd.DataFrame, heads: Heads) -> go.Figure:
    """The share that both masks keep of each attention head, as dots."""
    figure = go.Figure()
    for stage, (name, colour, _) in LINES.items():
        figure.add_scatter(
            x=frame.index.tolist(),
            y=rounded(100 * frame[stage], 4),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9, "symbol": "circle-open" if stage is Stage.INITIAL else "circle"},
            hovertemplate=f"head %{{x}}: {name} keeps %{{y}} %<extra></extra>",
        )
    styled(figure, x=f"head ({heads.width} {heads.axis} each)", y="% kept", height=240)
    figure.update_xaxes(showgrid=False, **({"dtick": 1} if len(frame) <= 32 else {}))
    return figure


def pattern_transitions(table: pd.DataFrame) -> go.Figure:
    """How many groups of each pattern (rows) have each pattern after the rebuild (columns), coloured by logarithm."""
    counts = table.to_numpy()
    figure = go.Figure(
        go.Heatmap(
            z=np.log10(counts + 1).round(3).tolist(),
            x=[*table.columns],
            y=[*table.index],
            customdata=counts.tolist(),
            text=[[_short(count) for count in row] for row in counts.tolist()],
            texttemplate="%{text}",
            colorscale=[[0, "rgba(59,130,201,0.04)"], [1, "rgba(59,130,201,0.85)"]],
            showscale=False,
            xgap=2,
            ygap=2,
            hovertemplate="%{y} became %{x}<br>%{customdata:,} groups<extra></extra>",
        )
    )
    styled(
        figure, x="pattern of the rebuilt mask", y="pattern of the initial mask", height=140 + 30 * len(table), top=8
    )
    category = {"type": "category", "showgrid": False, "tickfont": {"family": "monospace"}}
    figure.update_xaxes(side="bottom", tickangle=-45 if len(table) > 6 else 0, **category)
    figure.update_yaxes(autorange="reversed", **category)
    return figure


def _short(count: int) -> str:
    """A count in few characters: 950, 12k, 3.4M; empty for none."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.2g}{unit}" if count < 100 * size else f"{count / size:.0f}{unit}"
    return str(count) if count else ""
