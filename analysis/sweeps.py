"""The results of a sweep as frames, with mean and standard deviation over the seeds, and their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analysis.figures import log_ticks
from analysis.frames import recovered
from analysis.style import BLUE, GREY, RED, SAND, TEAL, format_perplexity, rounded, styled
from barber.config import Sparsity
from barber.errors import UserError
from barber.events import Stage
from barber.jobs.grid import NAMED
from barber.jobs.sweep_table import FINISHED, RESULTS

SEED, SPARSITY = "seed", "sparsity"
PERPLEXITIES = ("dense", "initial", "perplexity", "recovered")
OF_JOB = ("zeros", "weights", "seconds", "peak_memory")
LOOKS = [(colour, dash) for dash in ("solid", "dash", "dot") for colour in (BLUE, RED, TEAL, SAND)]


def results(folder: Path) -> pd.DataFrame:
    """One row per job and data set of the finished jobs in a sweep's folder.

    Columns: job; the settings that differ between jobs, with method, sparsity and seed, as text, "" for one without
    effect; dataset; dense, initial; perplexity, that of the final weights; recovered, see frames.recovered; zeros,
    weights; seconds of the pruning; peak_memory in bytes. Raises UserError if the folder has no sweep.
    """
    try:
        frame = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        raise UserError(f"{folder} holds no sweep: give the folder that a sweep was written into.") from None
    settings = [name for name in frame.columns if name in NAMED]
    frame = frame[frame["status"] == FINISHED]
    numbers = frame.drop(columns=settings).apply(pd.to_numeric, errors="coerce")
    parts = []
    for dataset in datasets(frame):
        stage = {name: _column(numbers, f"{dataset} {name}") for name in Stage}
        final = stage[Stage.REBUILT].fillna(stage[Stage.INITIAL])
        part = frame[["job", *settings]].assign(
            dataset=dataset, dense=stage[Stage.DENSE], initial=stage[Stage.INITIAL], perplexity=final
        )
        values = part[["dense", "initial", "perplexity"]]
        part["recovered"] = [recovered(*row) for row in values.itertuples(index=False)]
        for name in OF_JOB:
            part[name] = _column(numbers, name)
        parts.append(part[part["perplexity"].notna()])
    columns = ["job", *settings, "dataset", *PERPLEXITIES, *OF_JOB]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def datasets(frame: pd.DataFrame) -> list[str]:
    """The data sets that a table of results has perplexities of."""
    end = f" {Stage.DENSE} low"
    return [name.removesuffix(end) for name in frame.columns if name.endswith(end)]


def settings_of(frame: pd.DataFrame) -> list[str]:
    """The columns of `results`, or of their averages, that are settings, without the seed."""
    return [name for name in frame.columns if name in NAMED and name != SEED]


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """One row per data set and combination of settings: mean over its seeds and, as "<name>_std", sample deviation.

    seeds: how many. The deviation of a single one is NaN.
    """
    keys = ["dataset", *settings_of(results)]
    groups = results.groupby(keys, sort=False)
    means = groups[[*PERPLEXITIES, *OF_JOB]].mean()
    deviations = groups[[*PERPLEXITIES, *OF_JOB]].std().add_suffix("_std")
    return pd.concat([means, deviations, groups.size().rename("seeds")], axis=1).reset_index()


def numeric_axes(results: pd.DataFrame) -> list[str]:
    """The settings whose values are numbers, two or more of them, so that a curve can be drawn over them."""
    return [name for name in settings_of(results) if place(name, results[name]).dropna().nunique() > 1]


def place(setting: str, values: pd.Series) -> pd.Series:
    """The numbers of the values of a setting: the share of zeros for a sparsity; NaN for those that are none."""
    if setting == SPARSITY:
        return values.map(lambda text: Sparsity.parse(text).ratio)
    return pd.to_numeric(values, errors="coerce")


def curves(averages: pd.DataFrame, axis: str = SPARSITY) -> go.Figure:
    """Perplexity over a numeric setting, a line for each combination of the others, of one data set.

    averages: of `over_seeds`. Bars are the deviation over the seeds; the dense model is a dashed line. An n:m pattern
    is a diamond at its share of zeros, not part of a line.
    """
    settings = [name for name in settings_of(averages) if averages[name].nunique() > 1 and name != axis]
    frame = averages.assign(place=place(axis, averages[axis]), label=_labels(averages, settings), pattern="")
    if axis == SPARSITY:
        frame["pattern"] = [text if ":" in text else "" for text in frame[SPARSITY]]
    frame = frame[frame["place"].notna()].sort_values("place", kind="stable")
    figure = go.Figure()
    looks = dict(zip(dict.fromkeys(frame["label"]), cycle(LOOKS)))
    named: set[str] = set()
    for (pattern, label), part in sorted(
        frame.groupby(["pattern", "label"], sort=False), key=lambda group: group[0][0]
    ):
        colour, dash = looks[label]
        deviation = part["perplexity_std"].fillna(0.0)
        figure.add_scatter(
            x=rounded(part["place"]),
            y=rounded(part["perplexity"]),
            error_y={"array": rounded(deviation), "visible": bool((deviation > 0).any()), "color": colour},
            customdata=[_cell(row.perplexity, row.perplexity_std, row.seeds) for row in part.itertuples()],
            name=" ".join(word for word in (label, pattern) if word) or "pruned",
            mode="markers" if pattern else "lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "size": 9, "symbol": "diamond" if pattern else "circle"},
            showlegend=label not in named,
            hovertemplate=f"{axis} %{{x}}<br>%{{customdata}}<extra>%{{fullData.name}}</extra>",
        )
        named.add(label)
    for pattern in dict.fromkeys(filter(None, frame["pattern"])):
        marker = {"color": GREY, "size": 9, "symbol": "diamond"}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=pattern)
    figure.add_hline(y=float(frame["dense"].mean()), line={"color": GREY, "dash": "dash", "width": 1.5})
    deviation = frame["perplexity_std"].fillna(0.0)
    ends = pd.concat([frame["dense"], frame["perplexity"] - deviation, frame["perplexity"] + deviation])
    ends = [value for value in ends if 0 < value < math.inf] or [1.0]
    first, last = min(ends) / 1.1, max(ends) * 1.1
    ticks = log_ticks(first, last)
    styled(figure, x=_title(axis), y="perplexity (log axis)", height=420)
    figure.update_yaxes(
        type="log",
        range=[math.log10(first), math.log10(last)],
        tickvals=ticks,
        ticktext=[format_perplexity(tick) for tick in ticks],
    )
    if axis == SPARSITY:
        figure.update_xaxes(tickformat=".0%")
    return figure


def table(averages: pd.DataFrame) -> pd.DataFrame:
    """The averages as text, for a table: settings, perplexities with their deviation, share recovered, seconds."""
    settings = settings_of(averages)
    text = averages[["dataset", *settings]].copy()
    for name in ("dense", "initial", "perplexity"):
        text[name] = [
            _cell(mean, std, seeds)
            for mean, std, seeds in averages[[name, f"{name}_std", "seeds"]].itertuples(index=False)
        ]
    text["recovered"] = ["" if math.isnan(share) else f"{share:.0%}" for share in averages["recovered"]]
    text["seconds"] = [f"{seconds:.1f}" for seconds in averages["seconds"]]
    text["seeds"] = averages["seeds"].astype(str)
    return text


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name] if name in frame else pd.Series(math.nan, frame.index)


def _labels(averages: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The values of the settings that differ, in one text for each row; a switch that is on by its name."""
    rows = averages[list(settings)].to_dict("records")
    return [
        ", ".join(name if value == "True" else value for name, value in row.items() if value not in ("", "False"))
        for row in rows
    ]


def _cell(mean: float, deviation: float, seeds: int) -> str:
    spread = f" ± {format_perplexity(deviation)}" if seeds > 1 and math.isfinite(deviation) else ""
    return format_perplexity(mean) + spread


def _title(axis: str) -> str:
    return "share of zeros" if axis == SPARSITY else axis
