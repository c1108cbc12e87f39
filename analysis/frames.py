"""The events of a run as pandas frames. Every function accepts the events of an unfinished run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from barber.events import (
    Event,
    Fate,
    Histogram,
    LayerInitialised,
    PerplexityMeasured,
    RunFinished,
    RunStarted,
    Stage,
    SubBlockRebuilt,
    TextGenerated,
)
from barber.jobs.report import gap_recovered


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Module name -> its last part where that is unique, "self_attn.q_proj" -> "q_proj", else the name itself."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: tail if last.count(tail) == 1 else name for name, tail in zip(names, last, strict=True)}


def modules(events: Sequence[Event]) -> pd.DataFrame:
    """One row per prunable weight, in the model's order.

    Columns: layer, sub_block, kind, name, shape (out, in), module (short name), weights (their number).
    """
    rows = [module.to_dict() for event in events if isinstance(event, RunStarted) for module in event.modules]
    frame = pd.DataFrame(rows, columns=["layer", "sub_block", "kind", "name", "shape"])
    frame["module"] = frame["name"].map(short_names(list(dict.fromkeys(frame["name"]))))
    frame["weights"] = [math.prod(shape) for shape in frame["shape"]]
    return frame


def masked(events: Sequence[Event]) -> pd.DataFrame:
    """The rows of `modules` that have a mask in the run so far."""
    kinds = LayerInitialised | SubBlockRebuilt
    have = {(event.layer, name) for event in events if isinstance(event, kinds) for name in event.modules}
    frame = modules(events)
    return frame[[place in have for place in zip(frame["layer"], frame["name"], strict=True)]]


def config(events: Sequence[Event]) -> dict:
    """The configuration of the pruning as a dict (see config.PruneConfig), {} before it has begun."""
    return next((event.config for event in events if isinstance(event, RunStarted)), {})


def flips(events: Sequence[Event]) -> pd.DataFrame:
    """The mask bits that the rebuild changed, one row per layer and module.

    grown: weights pruned by the initial mask and kept by the rebuilt one; cut: kept by the initial mask and pruned by
    the rebuilt one; share: both as a share of the module's weights; gain: relative rise of the kept weights' saliency.
    """
    names = short_names(list(dict.fromkeys(modules(events)["name"])))
    rows = [
        {
            "layer": event.layer,
            "sub_block": event.sub_block,
            "name": name,
            "module": names.get(name, name),
            "weights": module.weights,
            "zeros": module.zeros,
            "grown": module.grown,
            "cut": module.cut,
            "share": (module.grown + module.cut) / module.weights,
            "gain": _rise(module.saliency_before, module.saliency_after),
        }
        for event in events
        if isinstance(event, SubBlockRebuilt)
        for name, module in event.modules.items()
    ]
    columns = ["layer", "sub_block", "name", "module", "weights", "zeros", "grown", "cut", "share", "gain"]
    return pd.DataFrame(rows, columns=columns)


def most_changed(flips: pd.DataFrame) -> tuple[int, str]:
    """Layer and name of the module with the largest share of weights both grown and cut."""
    both = flips[["grown", "cut"]].min(axis=1) / flips["weights"]
    row = flips.loc[(both + flips["share"] / 1000).idxmax()]
    return int(row["layer"]), row["name"]


def describe_swaps(events: Sequence[Event]) -> str:
    """Why the swaps of the rounds are more than the weights that are grown in the end; empty without swaps."""
    swaps, grown = int(sub_blocks(events)["swaps"].sum()), int(flips(events)["grown"].sum())
    if not swaps:
        return ""
    if swaps == grown:
        return f"The rebuild made {swaps:,} swaps: each grew one weight and cut another."
    return (
        f"The rounds made {swaps:,} swaps, and each grew one weight and cut another. A later round may cut a weight "
        f"that an earlier one grew, or grow one that it cut: in the end {grown:,} weights are grown, and as many cut."
    )


def sub_blocks(events: Sequence[Event]) -> pd.DataFrame:
    """Output error of each sub-block before and after the rebuild, in the order of the run."""
    rows = [
        {
            "layer": event.layer,
            "sub_block": event.sub_block,
            "kind": event.kind,
            "before": event.error_before,
            "after": event.error_after,
            "change": _rise(event.error_before, event.error_after),
            "candidates": event.candidates,
            "swaps": event.swaps,
            "seconds": event.seconds,
            "peak_memory": event.peak_memory,
        }
        for event in events
        if isinstance(event, SubBlockRebuilt)
    ]
    columns = ["layer", "sub_block", "kind", "before", "after", "change", "candidates", "swaps"]
    return pd.DataFrame(rows, columns=[*columns, "seconds", "peak_memory"])


def refits(events: Sequence[Event]) -> pd.DataFrame:
    """Validation error of each sub-block before and after the refit of its kept weights, where there was one.

    diverged: whether the refit went back to its best state, since an epoch ended with a larger error than the first.
    """
    rows = [
        {
            "layer": event.layer,
            "sub_block": event.sub_block,
            "kind": event.kind,
            "before": event.refit.error_before,
            "after": event.refit.error_after,
            "change": _rise(event.refit.error_before, event.refit.error_after),
            "steps": event.refit.steps,
            "diverged": event.refit.diverged,
        }
        for event in events
        if isinstance(event, SubBlockRebuilt) and event.refit
    ]
    columns = ["layer", "sub_block", "kind", "before", "after", "change", "steps", "diverged"]
    return pd.DataFrame(rows, columns=columns)


def describe_refits(refits: pd.DataFrame) -> str:
    """What the refit changed, in one or two sentences; empty without a refit."""
    if refits.empty:
        return ""
    better = refits[refits["change"] < 0]
    text = f"The refit of the kept weights lowered the validation error of {len(better)} of {len(refits)} sub-blocks"
    text += f", by a median of {-100 * better['change'].median():.0f}\N{NO-BREAK SPACE}%." if len(better) else "."
    diverged = [f"layer {row.layer} {row.kind}" for row in refits[refits["diverged"].astype(bool)].itertuples()]
    return f"{text} In {', '.join(diverged)} it diverged and went back to its best weights." if diverged else text


def saliency(events: Sequence[Event], layer: int, name: str) -> pd.DataFrame:
    """Histogram of log10 saliency of one weight: left and right edge of each bin, and the count of each fate."""
    histogram = _histogram(events, layer, name)
    if not histogram:
        return pd.DataFrame(columns=["left", "right", *map(str, Fate)])
    edges = {"left": histogram.edges[:-1], "right": histogram.edges[1:]}
    return pd.DataFrame(edges | {str(fate): histogram.of(fate) for fate in Fate})


def without_saliency(events: Sequence[Event], layer: int, name: str) -> dict[str, int]:
    """Fate -> how many of the weights have saliency zero and are in no bin, where there are any.

    Runs of older versions have only their total, under the fate "".
    """
    histogram = _histogram(events, layer, name)
    zeros = histogram.zeros if histogram else {}
    return {str(fate): zeros[fate] for fate in ("", *Fate) if zeros.get(fate)}


def _histogram(events: Sequence[Event], layer: int, name: str) -> Histogram | None:
    for event in events:
        if isinstance(event, SubBlockRebuilt) and event.layer == layer and name in event.modules:
            return event.modules[name].histogram
    return None


def perplexities(events: Sequence[Event]) -> pd.DataFrame:
    """One row per dataset and stage, with the share of the gap recovered on the rows of the rebuilt stage.

    low, high: the 95 % interval, NaN where it is unknown. window_start: see events.PerplexityMeasured.
    """
    rows = [
        {
            "dataset": event.dataset,
            "stage": str(event.stage),
            "perplexity": event.perplexity,
            "seqlen": event.seqlen,
            "tokens": event.tokens,
            "window_start": event.window_start,
            "low": event.low,
            "high": event.high,
            "seconds": event.seconds,
        }
        for event in events
        if isinstance(event, PerplexityMeasured)
    ]
    columns = ["dataset", "stage", "perplexity", "seqlen", "tokens", "window_start", "low", "high", "seconds"]
    frame = pd.DataFrame(rows, columns=columns).astype({"low": float, "high": float})
    value = {(row.dataset, row.stage): row.perplexity for row in frame.itertuples()}
    frame["recovered"] = [
        recovered(*(value.get((row.dataset, str(stage)), math.nan) for stage in Stage))
        if row.stage == Stage.REBUILT
        else math.nan
        for row in frame.itertuples()
    ]
    return frame


def recovered(dense: float, initial: float, rebuilt: float) -> float:
    """Share of the gap in log perplexity that the rebuild closed; NaN where the gap is zero or not finite.

    1 is the perplexity of the dense model, 0 that of the initial mask, and below 0 the rebuild raised it.
    """
    share = gap_recovered(dense, initial, rebuilt)
    return share if share is not None and math.isfinite(share) else math.nan


def texts(events: Sequence[Event]) -> pd.DataFrame:
    """The continuations of the run's prompts: prompt, stage, text; the last event of each pair holds the whole text."""
    last = {(event.prompt, str(event.stage)): event.text for event in events if isinstance(event, TextGenerated)}
    rows = [{"prompt": prompt, "stage": stage, "text": text} for (prompt, stage), text in last.items()]
    return pd.DataFrame(rows, columns=["prompt", "stage", "text"])


def agreement(text: str, other: str) -> int:
    """How many characters at the start of `text` are, in whole words, the start of `other`."""
    count = 0
    for word, match in zip(re.findall(r"\s*\S+", text), re.findall(r"\s*\S+", other), strict=False):
        if word != match:
            break
        count += len(word)
    return count


def summary(events: Sequence[Event]) -> dict:
    """The run in one dict of plain values: model, config, weights, zeros, swaps, seconds, perplexities, flips."""
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    finished = next((event for event in reversed(events) if isinstance(event, RunFinished)), None)
    measured, moved = perplexities(events), flips(events)
    return {
        "model": started.model if started else None,
        "config": started.config if started else {},
        "finished": finished is not None,
        "weights": finished.weights if finished else 0,
        "zeros": finished.zeros if finished else 0,
        "swaps": int(sub_blocks(events)["swaps"].sum()),
        "seconds": finished.seconds if finished else math.nan,
        "perplexity": measured.drop(columns="seconds").astype(object).where(measured.notna(), None).to_dict("records"),
        "flips": moved[["layer", "name", "weights", "zeros", "grown", "cut"]].to_dict("records"),
    }


def _rise(before: float, after: float) -> float:
    return after / before - 1 if before else math.nan
