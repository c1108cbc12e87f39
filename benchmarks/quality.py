"""Compare refiners that start from the same initial masks: perplexity, share of the gap recovered, time.

python benchmarks/quality.py [--model PATH --data FILE] [--csv FILE] [--markdown FILE]

Every single run is a row, a dict of plain values, appended to the CSV as it is made and folded over the seeds into
markdown tables. A CSV that is there already is added to: its runs are not made again. See docs/quality.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch

from barber.calibration import CalibrationSet, EvaluationSet
from barber.config import AUTO, METHODS, PruneConfig, Refiner, Sparsity
from barber.errors import UserError
from barber.evaluate import perplexity
from barber.events import LayerInitialised
from barber.inputs import choose_seqlen, load_data
from barber.load import LoadedModel, load
from barber.model import DecoderView, DenseWeights
from barber.presets import STORYTELLER
from barber.prune import prune
from barber.summary import gap_recovered

DENSE, INITIAL, PUBLISHED = "dense", "initial", "published"
TREATMENTS: dict[str, dict[str, dict]] = {  # treatment -> setting -> what it gives PruneConfig
    PUBLISHED: {
        f"{granularity} {threshold}": {"granularity": granularity, "threshold": threshold}
        for granularity, threshold in product(("block", "layer", "output1"), (0.1, 0.01))
    },
    "auto": {"auto": {"threshold": AUTO}},
    "one-swap": {"one-swap": {"refiner": Refiner.ONE_SWAP}},
    "dsnot": {"dsnot": {"refiner": Refiner.DSNOT}},
    "auto+re-fit": {"auto+re-fit": {"threshold": AUTO, "reconstruct": True}},
}
TITLES = {PUBLISHED: f"published, best of {len(TREATMENTS[PUBLISHED])}", "auto+re-fit": "auto + re-fit"}
INPUTS = ["model", "calibration", "evaluation", "sequences", "seqlen", "windows"]  # the same in all rows of a CSV
CASE = ["pattern", "method"]
RUN = [*CASE, "seed", "treatment"]


@dataclass(frozen=True)
class Bench:
    """A model, the text that it is measured on, and its dense weights."""

    loaded: LoadedModel
    evaluation: EvaluationSet
    weights: DenseWeights

    def measure(self) -> float:
        """Perplexity of the model as it is."""
        *_, measured = perplexity(self.loaded.model, self.evaluation, "benchmark")
        return measured.perplexity

    def run(self, calibration: CalibrationSet, config: PruneConfig, initial: dict | None = None) -> tuple[dict, dict]:
        """Prune, measure and restore: layer -> (initial masks, updated weights), and what a row says of the result.

        The last event, RunFinished, tells the wall seconds; cpu_seconds are the processor's. Evaluation is in neither.
        """
        layers, started = {}, time.process_time()
        for event in prune(self.loaded.model, calibration, config, initial=initial, dense=self.weights):
            if isinstance(event, LayerInitialised):
                layers[event.layer] = (event.masks, event.weights)
        result = asdict(event) | {"cpu_seconds": time.process_time() - started, "perplexity": self.measure()}
        self.weights.restore()
        return layers, result

    def case(self, calibration: CalibrationSet, pattern: str, method: str, treatments: dict) -> Iterator[dict]:
        """The initial masks of a method, then every setting of the treatments from these masks."""
        sparsity = Sparsity.parse(pattern)
        dense = self.measure()
        masks, result = self.run(calibration, PruneConfig(sparsity, method, barber=False))
        initial = result["perplexity"]
        updated = any(weights for _, weights in masks.values())  # SparseGPT: refiners go on from its weights
        common = {"pattern": pattern, "method": method, "seed": calibration.seed, "dense": dense, "initial": initial}
        yield common | {"treatment": INITIAL, "setting": INITIAL, "gap_recovered": 0.0} | result
        for treatment, settings in treatments.items():
            for setting, given in settings.items():
                config = PruneConfig(sparsity, "masks", initial_masks=method, retain_reconstruction=updated, **given)
                _, result = self.run(calibration, config, masks)
                share = gap_recovered(dense, initial, result["perplexity"])
                yield common | {"treatment": treatment, "setting": setting, "gap_recovered": share} | result


def rows(options: argparse.Namespace, known: list[dict]) -> Iterator[dict]:
    """All runs that are asked for and not known, seed by seed."""
    loaded = load(options.model, options.device)
    for pattern in options.patterns:
        DecoderView(loaded.model).check_width(Sparsity.parse(pattern).m)
    seqlen, _ = choose_seqlen(options.seqlen, loaded)
    spec = replace(
        STORYTELLER,
        calibration=options.calibration or options.data,
        evaluation=(options.evaluation or options.data,),
        nsamples=options.sequences,
        eval_windows=options.windows,
    )
    done = {tuple(row[column] for column in [*RUN, "setting"]) for row in known}
    for seed in options.seeds:
        calibration, (evaluation,) = load_data(replace(spec, seed=seed), loaded, seqlen)
        sizes = (len(calibration.tokens), seqlen, len(evaluation.tokens))
        inputs = dict(zip(INPUTS, (options.model, calibration.source, evaluation.dataset, *sizes), strict=True))
        if any(inputs[column] != row[column] for row in known for column in INPUTS):
            raise UserError(f"{options.csv} holds runs of another model or other data: give another file.")
        bench = Bench(loaded, evaluation, DenseWeights(DecoderView(loaded.model)))
        for pattern, method in product(options.patterns, options.methods):
            here = (pattern, method, seed)
            missing = {
                name: {s: given for s, given in TREATMENTS[name].items() if (*here, name, s) not in done}
                for name in options.treatments
            }
            for row in bench.case(calibration, pattern, method, missing) if any(missing.values()) else ():
                if (*here, row["treatment"], row["setting"]) not in done:
                    yield inputs | row


def tell(row: dict) -> None:
    """A line of progress."""
    what = row["setting"] if row["setting"] in (INITIAL, row["treatment"]) else f"{row['treatment']} {row['setting']}"
    where = f"{row['pattern']} {row['method']}, seed {row['seed']}, {what}"
    print(f"{where}: perplexity {row['perplexity']:.3f}, {row['seconds']:.1f} s", file=sys.stderr, flush=True)


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


def table(frame: pd.DataFrame, names: Iterable[str], cell: Callable[[pd.DataFrame], str]) -> str:
    """A line per pattern and initial mask, a column per treatment."""
    best = dict(list(fold(frame).groupby([*CASE, "treatment"])))
    lines = [["pattern", "initial mask", *(TITLES.get(name, name) for name in names)]]
    lines.append(["---"] * len(lines[0]))
    for case in frame[CASE].drop_duplicates().itertuples(index=False, name=None):
        lines.append([*case, *(cell(best[*case, name]) if (*case, name) in best else "-" for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(frame: pd.DataFrame) -> str:
    """What was run, on what, and all tables."""
    row, names = frame.iloc[0], [name for name in TREATMENTS if name in set(frame["treatment"])]
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
        table(pd.concat([dense, frame]), [DENSE, INITIAL, *names], spread),
        "Share of the log-perplexity gap between the initial masks and the dense model that is recovered, mean:",
        table(frame, names, share),
        "Processor time and, in brackets, how many fixed-threshold rebuilds that is, mean:",
        table(frame, names, duration),
    ]
    if PUBLISHED in names:
        parts.append(f"The granularity and threshold behind “{TITLES[PUBLISHED]}”, seed by seed:")
        parts.append(table(frame, [PUBLISHED], lambda runs: ", ".join(runs["setting"])))
    return "\n\n".join(parts) + "\n"


def listed(*allowed: str) -> Callable[[str], list[str]]:
    """A parser of values with commas between them."""

    def parse(text: str) -> list[str]:
        values = [value.strip() for value in text.split(",")]
        if unknown := [value for value in values if allowed and value not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose from {', '.join(allowed)}")
        return values

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=STORYTELLER.model, help="hub id or folder (default: the bundled one)")
    parser.add_argument("--data", default="storyteller", help="text for both; a file is halved")
    parser.add_argument("--calibration", help="text for calibration, instead of --data")
    parser.add_argument("--evaluation", help="text for evaluation, instead of --data")
    parser.add_argument("--methods", type=listed(*METHODS), default="magnitude,wanda")
    parser.add_argument("--patterns", type=listed(), default="50%,60%,70%,2:4,4:8")
    parser.add_argument("--treatments", type=listed(*TREATMENTS), default=",".join(TREATMENTS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default="0,1,2")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens of each")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", type=Path, help="a line per single run; added to, if it exists")
    parser.add_argument("--markdown", type=Path, help="where to write the tables, instead of stdout")
    options = parser.parse_args()

    made = pd.read_csv(options.csv).to_dict("records") if options.csv and options.csv.exists() else []
    try:
        for row in rows(options, made.copy()):
            tell(row)
            if options.csv:
                pd.DataFrame([row]).to_csv(options.csv, mode="a", header=not options.csv.exists(), index=False)
            made.append(row)
    except UserError as error:
        parser.error(str(error))
    text = markdown(pd.DataFrame(made))
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
