"""A recorded run as one HTML page: settings, figures, tables and texts. It needs no network, and has plotly once."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import choices, figures, frames, matrix_figures, saliency, stories
from analysis import matrix as matrices
from analysis.style import format_perplexity, saving
from analysis.tables import job_of, tables
from barber.bundled import ASSETS, STORYTELLER
from barber.config import PruneConfig
from barber.events import Event, RunFinished, Stage
from barber.input_files import shown_name
from barber.jobs.command import command
from barber.jobs.report import format_duration
from barber.runs.directory import RunDirectory

MOST_ROWS = 200  # of a table on the page
DETAILS = ("tensors.", "model_config.")  # of the environment, which only its own table has
TITLES = {  # of the tables at the end of the page
    "zero_shot": "Zero-shot tasks",
    "zero_shot_skipped": "Skipped zero-shot tasks",
    "weights": "Weight matrices",
    "initial_masks": "Initial masks",
    "mask_flips": "Mask flips",
    "sub_blocks": "Sub-blocks",
    "choices": "Choices",
    "candidates": "Candidates of each choice",
    "refits": "Refits of the kept weights",
    "gains": "Gains of the gaining pairs",
    "saliency": "Histograms of saliency",
    "saliency_zero": "Weights of saliency zero",
    "environment": "Environment with the configuration and the hashes of the model",
}
NO_REBUILD = "This run has no rebuild, so no mask changed."
NOT_REBUILT = "The run was stopped before the rebuild of its first sub-block ended."


class Figure(NamedTuple):
    """A figure on the page: name (of the place and of the saved picture), caption, and its JSON."""

    name: str
    caption: str
    data: Markup
    height: int


class Table(NamedTuple):
    """A table on the page: title, columns, which of them hold numbers, the rows as text, and how many there are."""

    title: str
    columns: list[str]
    numbers: list[bool]
    rows: list[list[str]]
    total: int


class Section(NamedTuple):
    """A part of the page under a heading."""

    title: str
    sentences: list[str]
    figures: list[Figure]
    tables: list[Table]


class Text(NamedTuple):
    """The continuation of a prompt at a stage, and a remark on it."""

    stage: Stage
    title: str
    text: str
    remark: str


def report(run: RunDirectory) -> bytes:
    """The page, in UTF-8. Raises UserError if the run is damaged.

    It has the names of the run's model and data as they were given, but no path of the run, and makes no request:
    its policy for content forbids them, and allows no scripts but its own.
    """
    events, started = run.events(), run.config
    config, found = PruneConfig.from_dict(started["config"]), tables(run)
    plotly, draw = get_plotlyjs(), (ASSETS / "report.js").read_text("utf-8")
    pages = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = pages.get_template("report.html").render(
        title=f"{shown_name(started['model'])}, {config.sparsity} pruned",
        summary=_summary(events, config),
        notices=found["notices"]["notice"].tolist(),
        settings=_table("Settings", found["settings"]),
        command=_command(run, events),
        sections=[
            _perplexity(found["perplexity"]),
            _flips(events, config, found),
            _saliency(run, events, config, found["mask_flips"]),
            _choices(config, found),
        ],
        texts=_texts(started["model"], found["texts"]),
        environment=_table("Environment", _short(found["environment"])),
        tables=[_table(title, found[name]) for name, title in TITLES.items() if not found[name].empty],
        most_rows=MOST_ROWS,
        style=Markup((ASSETS / "report.css").read_text("utf-8")),
        scripts=[Markup(plotly), Markup(draw)],
        allowed=" ".join(_hash(script) for script in (plotly, draw)),
    )
    return page.encode()


def _summary(events: Sequence[Event], config: PruneConfig) -> list[str]:
    """What was done, in sentences."""
    facts = frames.summary(events)
    sentences = [f"{config}."[:1].upper() + f"{config}."[1:]]
    if not facts["finished"]:
        return [
            *sentences,
            "The run has not ended: it was stopped, or still goes on. This page has its results so far.",
        ]
    share = facts["zeros"] / facts["weights"]
    (finished,) = [event for event in events if isinstance(event, RunFinished)][-1:]
    sentences.append(
        f"{facts['zeros']:,} of {facts['weights']:,} prunable weights are pruned ({share:.4%}), "
        f"{facts['swaps']:,} pairs were swapped, in {format_duration(finished.seconds)}."
    )
    return sentences


def _command(run: RunDirectory, events: Sequence[Event]) -> str:
    """The command line that repeats the run; empty for one without a recorded job."""
    job = job_of(run)
    if not job:
        return ""
    measured = frames.perplexities(events)["seqlen"].tolist()
    lengths = [run.config["calibration"].get("seqlen"), *measured]
    return command(replace(job, seqlen=job.seqlen or next((length for length in lengths if length), None)))


def _perplexity(measured: pd.DataFrame) -> Section:
    title = "Perplexity"
    if measured.empty:
        return Section(title, ["This run measured no perplexity."], [], [])
    shown = pd.DataFrame(
        {
            "text": measured["dataset"],
            "model": [figures.STAGE_LABEL[Stage(stage)] for stage in measured["stage"]],
            "perplexity": [format_perplexity(value) for value in measured["perplexity"]],
            "95 % interval": [_interval(row.low, row.high) for row in measured.itertuples()],
            "gap recovered": ["" if math.isnan(share) else f"{share:.1%}" for share in measured["recovered"]],
            "tokens": measured["tokens"],
            "tokens of a window": measured["seqlen"],
            "window start": measured["window_start"],
        }
    )
    caption = "Perplexity of the model at each stage, with 95 % intervals over the windows; lower is better"
    drawn = _figure("perplexity", caption, figures.perplexity_dots(measured))
    return Section(
        title, [], [drawn], [_table("Perplexity", shown, numbers={"perplexity", "95 % interval", "gap recovered"})]
    )


def _flips(events: Sequence[Event], config: PruneConfig, found: dict[str, pd.DataFrame]) -> Section:
    title, flips = "Mask flips", found["mask_flips"]
    if flips.empty:
        return Section(title, [NOT_REBUILT if config.refined else NO_REBUILD], [], [])
    sentences = [frames.describe_refits(found["refits"])] if not found["refits"].empty else []
    drawn = []
    if flips["grown"].any() or flips["cut"].any():
        drawn = [
            _figure("flips", "Share of the mask that the rebuild changed, by matrix", figures.flip_heatmap(flips)),
            _figure("flips-by-layer", "Weights grown and cut, by layer", figures.flip_bars(flips, "layer")),
            _figure("flips-by-module", "Weights grown and cut, by module", figures.flip_bars(flips, "module")),
        ]
    else:
        sentences.append("The rebuilt mask of every weight matrix equals the initial one.")
    errors = figures.sub_block_errors(found["sub_blocks"])
    drawn.append(_figure("errors", "Output error of each sub-block, with its initial mask and at the end", errors))
    return Section(title, sentences, drawn, [])


def _saliency(run: RunDirectory, events: Sequence[Event], config: PruneConfig, flips: pd.DataFrame) -> Section:
    title = "Saliency"
    if flips.empty:
        return Section(title, [NOT_REBUILT if config.refined else NO_REBUILD], [], [])
    layer, name = frames.most_changed(flips)
    bins, zeros = frames.saliency(events, layer, name), frames.without_saliency(events, layer, name)
    matrix = f"layer {layer}, {name}"
    histogram = saliency.figure(bins, zeros, saliency.BY_FATE, saliency.Scale.SHARE)
    drawn = [_figure("saliency", f"Saliency of the weights of {matrix}", histogram)]
    if masks := matrices.read(run, layer, name):
        caption = f"The share of changed mask bits in {matrix}, in blocks of weights"
        drawn.append(_figure("mask", caption, matrix_figures.density(matrices.overview(masks), "changed")))
    return Section(title, ["The matrix whose mask changed most. The tables have the bins of all matrices."], drawn, [])


def _choices(config: PruneConfig, found: dict[str, pd.DataFrame]) -> Section:
    title, chosen = "Choices", found["choices"]
    if chosen.empty:
        why = "This run chose no swaps by validation error." if config.barber else NO_REBUILD
        return Section(title, [why], [], [])
    drawn = [
        _figure("rounds", "Validation error of each sub-block after each round", choices.rounds_figure(chosen)),
    ]
    tried = found["candidates"]
    layer, block = choices.most_improved(chosen)
    first = tried[(tried["layer"] == layer) & (tried["sub_block"] == block) & (tried["round"] == 1)]
    if not first.empty:
        caption = f"The swaps that the first round tried in layer {layer}, {block}, the most improved sub-block"
        drawn.append(_figure("choices", caption, choices.curve_figure(first)))
    return Section(title, [], drawn, [])


def _texts(model: str, written: pd.DataFrame) -> list[tuple[str, list[Text]]]:
    """Each prompt with its continuations."""
    found = []
    for prompt, rows in written.groupby("prompt", sort=False):
        columns = []
        for row in rows.itertuples():
            remark = stories.read(prompt, row.text).remark if model == STORYTELLER else ""
            remark = "" if columns and remark == stories.UNKNOWN_PROMPT else remark  # that one only once
            columns.append(Text(Stage(row.stage), figures.STAGE_LABEL[Stage(row.stage)], row.text, remark))
        found.append((prompt, columns))
    return found


def _short(environment: pd.DataFrame) -> pd.DataFrame:
    """The environment without the hashes and the configuration of the model."""
    return environment[~environment["fact"].str.startswith(DETAILS)]


def _figure(name: str, caption: str, figure: go.Figure) -> Figure:
    data = json.loads(figure.to_json()) | {"config": saving(name)}
    text = json.dumps(data, separators=(",", ":"))
    return Figure(name, caption, _script_data(text), figure.layout.height)


def _script_data(text: str) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _table(title: str, frame: pd.DataFrame, numbers: frozenset[str] | set[str] = frozenset()) -> Table:
    """numbers: columns of text that hold numbers."""
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) or name in numbers for name in frame]
    shown = frame.head(MOST_ROWS).astype(object)
    rows = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    return Table(title, [str(name).replace("_", " ") for name in frame], numeric, rows, len(frame))


def _cell(value: Any) -> str:
    """A value as text: numbers with at most five significant digits, nothing for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def _interval(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{format_perplexity(low)} to {format_perplexity(high)}"


def _hash(script: str) -> str:
    """The source of a script in a policy for content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
