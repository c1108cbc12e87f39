"""Markdown tables of the runs of a benchmark, averaged over seeds, with the best of several settings."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import date

import pandas as pd
import torch

DENSE, INITIAL, PUBLISHED = "dense", "initial", "published"
INPUTS = ["model", "calibration", "evaluation", "sequences", "seqlen", "windows"]  # the same in all rows of a CSV
CASE = ["pattern", "method"]
RUN = [*CASE, "seed", "treatment"]


def fold(frame: pd.DataFrame) -> pd.DataFrame:
    """A line per case, seed and treatment: its best setting, and the time of all its settings.

    ratio: that time as a multiple of one fixed-threshold rebuild of the same case and seed.
    """
    best = frame.sort_values("perplexity", kind="stable").groupby(RUN).head(1).set_index(RUN).sort_index()
    best["cpu_seconds"] = frame.groupby(RUN)["cpu_seconds"].sum()
    single = frame[frame["treatment"] == PUBLISHED].groupby(RUN[:-1])["cpu_seconds"].mean()
    best["ratio"] = best["cpu_seconds"] / single.reindex(best.index.droplevel("treatment")).to_numpy()
    return best.reset_index()


def spread(runs: pd.DataFrame) -> str:
    """Mean and sample standard deviation over seeds; of a single seed, its value."""
    return f"{runs['perplexity'].mean():.3f}" + (f" ± {runs['perplexity'].std():.3f}" if len(runs) > 1 else "")


def duration(runs: pd.DataFrame) -> str:
    ratio = runs["ratio"].mean()
    return f"{runs['cpu_seconds'].mean():.1f} s" + (f" ({ratio:.1f}x)" if pd.notna(ratio) else "")


def share(runs: pd.DataFrame) -> str:
    return f"{runs['gap_recovered'].mean():.0%}"


def table(frame: pd.DataFrame, titles: Mapping[str, str], cell: Callable[[pd.DataFrame], str]) -> str:
    """A line per pattern and initial mask, a column per treatment."""
    best = dict(list(fold(frame).groupby([*CASE, "treatment"])))
    lines = [["pattern", "initial mask", *titles.values()]]
    lines.append(["---"] * len(lines[0]))
    for case in frame[CASE].drop_duplicates().itertuples(index=False, name=None):
        lines.append([*case, *(cell(best[*case, name]) if (*case, name) in best else "-" for name in titles)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(frame: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """What was run, on what, and all tables. titles: of the treatments, in the order of the columns."""
    row, shown = frame.iloc[0], {name: title for name, title in titles.items() if name in set(frame["treatment"])}
    treated = frame[frame["treatment"] != INITIAL].groupby("treatment", sort=False)["seed"]
    seeds = treated.agg(lambda own: ", ".join(map(str, sorted(set(own)))))
    told = "; ".join(f"{own} for {', '.join(group)}" for own, group in seeds.groupby(seeds).groups.items())
    dense = frame[frame["treatment"] == INITIAL].assign(treatment=DENSE, perplexity=frame["dense"])
    parts = [
        f"- command: `{shlex.join(['python', 'benchmarks/quality.py', *sys.argv[1:]])}`\n"
        f"- model: {row['model']}\n"
        f"- calibration: {row['sequences']} sequences of {row['seqlen']} tokens of {row['calibration']}, seeds {told}\n"
        f"- evaluation: {row['windows']} windows of {row['seqlen']} tokens of {row['evaluation']}\n"
        f"- machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} of them used, torch {torch.__version__}; {date.today().isoformat()}",
        "Perplexity, mean ± standard deviation over the seeds:",
        table(pd.concat([dense, frame]), {name: name for name in (DENSE, INITIAL)} | shown, spread),
        "Share of the log-perplexity gap between the initial masks and the dense model that is recovered, mean:",
        table(frame, shown, share),
        "Processor time and, in brackets, how many fixed-threshold rebuilds that is, mean:",
        table(frame, shown, duration),
    ]
    if PUBLISHED in shown:
        title = shown[PUBLISHED]
        parts.append(f"The granularity and threshold behind “{title}”, seed by seed:")
        parts.append(table(frame, {PUBLISHED: title}, lambda runs: ", ".join(runs["setting"])))
    return "\n\n".join(parts) + "\n"
