"""Write the tables of the tournament on real models into docs/quality.md and README.md, from the CSV of real.py.

python benchmarks/real_tables.py [CSV]
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd

from barber.jobs.report import format_bytes, format_duration
from benchmarks.real import CASE, REBUILDS, REFITS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "quality" / "real.csv"
KEYS = CASE[:-1]  # all but the seed
PATTERNS = ("50%", "60%", "70%", "2:4", "4:8")
TREATMENTS = {
    (rebuild, refit): ", then ".join(part for part in (rebuild, refit) if part != "none") or "initial"
    for refit in REFITS
    for rebuild in ("none", *(name for name in REBUILDS if name != "none"))
}
UNKNOWN = "-"


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows model by model, and by pattern, initial mask and treatment as the tables list them."""
    places = {name: place for place, name in enumerate(PATTERNS)}
    titles = list(TREATMENTS.values())
    frame = frame.assign(treatment=[TREATMENTS[pair] for pair in frame[["rebuild", "refit"]].itertuples(index=False)])
    return frame.sort_values(
        ["model", "pattern", "method", "treatment", "seed"],
        key=lambda column: (
            column.map(lambda name: places.get(name, len(places)))
            if column.name == "pattern"
            else column.map(titles.index)
            if column.name == "treatment"
            else column.map(list(dict.fromkeys(frame[column.name])).index)
        ),
        kind="stable",
    )


def perplexity(rows: pd.DataFrame, name: str = "perplexity", interval: bool = False) -> str:
    """The mean of some seeds with their sample deviation; of one, its value, with its interval if asked for."""
    mean, text = rows[name].mean(), f"{rows[name].mean():.2f}"
    if len(rows) > 1:
        return f"{text} ± {rows[name].std():.2f}"
    low, high = rows[f"{name}_low"].iloc[0], rows[f"{name}_high"].iloc[0]
    return f"{text} ({low:.{digits(mean)}f}-{high:.{digits(mean)}f})" if interval else text


def recovered(rows: pd.DataFrame) -> str:
    """The mean share of the gap that is recovered, where there is a gap."""
    share = rows["gap_recovered"].mean()
    return f"{round(share, 2) + 0.0:.0%}" if pd.notna(share) else UNKNOWN  # + 0.0 makes of -0.0 no "-0%"


def digits(value: float) -> int:
    """Decimals of the ends of an interval."""
    return 1 if value < 1000 else 0


def table(lines: list[list[str]]) -> str:
    """Lines of cells as Markdown; the first is the head."""
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def matrix(frame: pd.DataFrame) -> str:
    """A line for each pattern and initial mask of a model, a column for each treatment: perplexity (gap recovered)."""
    titles = [title for title in TREATMENTS.values() if title in set(frame["treatment"]) - {"initial"}]
    lines = [["pattern", "initial mask", "initial", *titles]]
    for (pattern, method), rows in frame.groupby(["pattern", "method"], sort=False):
        own = dict(list(rows.groupby("treatment")))
        first = next(iter(own.values()))
        cells = [f"{perplexity(own[title])} ({recovered(own[title])})" if title in own else UNKNOWN for title in titles]
        lines.append([pattern, method, perplexity(first, "initial"), *cells])
    return table(lines)


def details(frame: pd.DataFrame) -> str:
    """A line for each job of one model, averaged over the seeds."""
    lines = [["pattern", "initial mask", "then", "initial, 95 %", "perplexity, 95 %", "gap recovered", "zeros",
              "swapped", "time", "memory", "seeds"]]  # fmt: skip
    for (pattern, method, treatment), rows in frame.groupby(["pattern", "method", "treatment"], sort=False):
        memory = rows["peak_memory"].max()
        lines.append(
            [
                pattern,
                method,
                treatment,
                perplexity(rows, "initial", interval=True),
                perplexity(rows, interval=True),
                recovered(rows),
                f"{rows['zeros'].sum() / rows['weights'].sum():.2%}",
                f"{rows['swaps'].sum() / rows['zeros'].sum():.2%}",
                format_duration(rows["seconds"].mean()),
                format_bytes(memory) if pd.notna(memory) else UNKNOWN,
                ", ".join(map(str, sorted(set(rows["seed"])))),
            ]
        )
    return table(lines)


def told(frame: pd.DataFrame) -> str:
    """What was run, on what, as a list."""
    row = frame.iloc[0]
    calibrated = [source for source in frame["calibration"].dropna() if source]
    source = calibrated[0] if calibrated else UNKNOWN
    options = {
        "model": row["model"],
        "calibration": source.split(" (")[0],
        "evaluation": row["evaluation"].split(" (")[0],
        "sequences": row["sequences"],
        "windows": row["windows"],
        "seqlen": row["seqlen"],
        "dtype": row["dtype"],
        **{
            f"{name}s": ",".join(map(str, dict.fromkeys(frame[name])))
            for name in ("method", "rebuild", "refit", "pattern", "seed")
        },
        "runs": "runs",
        "csv": "real.csv",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    machines = "; ".join(dict.fromkeys(frame["machine"]))
    return "\n".join(
        (
            f"- command: `{shlex.join(['python', 'benchmarks/real.py', *words])}`, of which the lines below have run",
            f"- model: {row['model']}, {row['dtype']}, dense perplexity {perplexity(frame.head(1), 'dense', True)}",
            f"- calibration: {row['sequences']} sequences of {row['seqlen']} tokens of {source}",
            f"- evaluation: {row['windows']} windows of {row['seqlen']} tokens of {row['evaluation']}, "
            f"start of a window: {row['window_start']}",
            f"- machine: {machines}; {', '.join(dict.fromkeys(frame['date']))}",
        )
    )


def pages(frame: pd.DataFrame) -> dict[Path, str]:
    """The text of docs/quality.md and README.md with their tables."""
    frame = ordered(frame)
    models = dict(list(frame.groupby("model", sort=False)))
    parts = [
        "\n\n".join((f"### {model}", told(rows), matrix(rows), "Every job:", details(rows)))
        for model, rows in models.items()
    ]
    first = next(iter(models.values()))
    row, seeds = first.iloc[0], [str(seed) for seed in sorted(set(first["seed"]))]
    of_seeds = f"{'mean of seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"
    caption = (
        f"Perplexity of {row['model']} (dense {perplexity(first.head(1), 'dense')}) on {row['evaluation']}, "
        f"{row['windows']} windows of {row['seqlen']} tokens, from {row['sequences']} calibration sequences, in "
        f"{row['dtype']}, {of_seeds}. In brackets is the share of the log-perplexity gap between the initial mask and "
        "the dense model that is recovered; a dash is a combination that has not run:"
    )
    return {
        ROOT / "docs" / "quality.md": "\n\n".join(parts),
        ROOT / "README.md": f"{textwrap.fill(caption, 120)}\n\n{matrix(first)}",
    }


def replaced(text: str, part: str) -> str:
    """A page with the part between its marks made again."""
    begin, end = "<!-- real models: made by benchmarks/real_tables.py -->", "<!-- end of real models -->"
    found, number = re.subn(
        f"{re.escape(begin)}\n.*?{re.escape(end)}", lambda _: f"{begin}\n\n{part}\n\n{end}", text, flags=re.DOTALL
    )
    assert number == 1, "the page does not have the marks of its table once"
    return found


def read(path: Path = RESULTS) -> pd.DataFrame:
    """The rows of a CSV of real.py."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def main(path: Path = RESULTS) -> None:
    for page, part in pages(read(path)).items():
        page.write_text(replaced(page.read_text("utf-8"), part), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
