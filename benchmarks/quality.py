"""Compare refiners that start from the same initial masks: perplexity, share of the gap recovered, time.

python benchmarks/quality.py [--model PATH --data FILE] [--csv FILE] [--markdown FILE]

Every run is a row, a dict of plain values, which is appended to the CSV at once and averaged over the seeds in Markdown
tables. Runs that the CSV already has are not repeated. See docs/quality.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd

from barber.config import AUTO, Allocation, Order, PruneConfig, Sparsity, Target
from barber.data.token_sets import CalibrationSet, EvaluationSet, drain
from barber.errors import UserError
from barber.evaluation.perplexity import perplexity
from barber.events import LayerInitialised
from barber.jobs.data import choose_seqlen, load_data
from barber.jobs.presets import FIRST_LOOK
from barber.jobs.report import gap_recovered
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.loading import LoadedModel, load
from barber.pruning.prune import prune
from barber.registry import INITIAL_MASKS
from benchmarks.tables import INITIAL, INPUTS, PUBLISHED, RUN, markdown


@dataclass(frozen=True)
class Treatment:
    """The work after the initial masks, with one setting or with several, of which the best is shown.

    title: of its column. settings: name -> what it gives PruneConfig. own_masks: it changes the
    initial masks, so it makes its own with the same method. unstructured: not possible with n:m patterns.
    """

    title: str
    settings: dict[str, dict]
    own_masks: bool = False
    unstructured: bool = False

    def fits(self, sparsity: Sparsity) -> bool:
        return not (self.unstructured and sparsity.m)

    def config(self, given: dict, sparsity: Sparsity, method: str, updated: bool) -> PruneConfig:
        """The run of one setting. updated: whether it starts from the weights that the method updated."""
        start = {"method": method} if self.own_masks else {"method": "masks", "initial_masks": method}
        return PruneConfig(sparsity, retain_reconstruction=updated, **start, **given)


FIXED = {
    f"{granularity} {threshold}": {"granularity": granularity, "threshold": threshold}
    for granularity, threshold in product(("block", "layer", "output1"), (0.1, 0.01))
}
TREATMENTS = {
    PUBLISHED: Treatment(f"published, best of {len(FIXED)}", FIXED),
    "auto-1": Treatment("auto, 1 round", {"auto-1": {"threshold": AUTO, "rounds": 1}}),
    "auto-2": Treatment("auto, 2 rounds", {"auto-2": {"threshold": AUTO, "rounds": 2}}),
    "auto": Treatment("auto", {"auto": {"threshold": AUTO}}),
    "auto-8": Treatment("auto, 8 rounds", {"auto-8": {"threshold": AUTO, "rounds": 8}}),
    "auto-dense-stream": Treatment(
        "auto, dense-stream", {"auto-dense-stream": {"threshold": AUTO, "target": Target.DENSE_STREAM}}
    ),
    "auto-owl": Treatment(
        "auto, owl", {"auto-owl": {"threshold": AUTO, "allocation": Allocation.OWL}}, own_masks=True, unstructured=True
    ),
    "auto-saliency": Treatment(
        "auto, saliency",
        {"auto-saliency": {"threshold": AUTO, "allocation": Allocation.SALIENCY}},
        own_masks=True,
        unstructured=True,
    ),
    "block-0.1": Treatment("block 0.1", {"block-0.1": {"granularity": "block", "threshold": 0.1}}),
    "block-0.1-one-pass": Treatment(
        "block 0.1, one pass",
        {"block-0.1-one-pass": {"granularity": "block", "threshold": 0.1, "order": Order.ONE_PASS}},
        own_masks=True,
    ),
    "auto-one-pass": Treatment(
        "auto, one pass", {"auto-one-pass": {"threshold": AUTO, "order": Order.ONE_PASS}}, own_masks=True
    ),
    "one-swap": Treatment("one-swap", {"one-swap": {"refiner": "one-swap"}}),
    "dsnot": Treatment("dsnot", {"dsnot": {"refiner": "dsnot"}}),
    "auto+re-fit": Treatment("auto + refit", {"auto+re-fit": {"threshold": AUTO, "reconstruct": True}}),
}
GROUPS = {
    "default": [PUBLISHED, "auto", "one-swap", "dsnot", "auto+re-fit"],
    "rounds": ["auto-1", "auto-2", "auto", "auto-8"],
    "orders": ["block-0.1", "block-0.1-one-pass", "auto", "auto-one-pass"],
    "options": ["auto", "auto-dense-stream", "auto-owl", "auto-saliency"],
}


@dataclass(frozen=True)
class Bench:
    """A model, the text that it is measured on, and its dense weights."""

    loaded: LoadedModel
    evaluation: EvaluationSet
    weights: DenseWeights

    def measure(self) -> float:
        """Perplexity of the model with its current weights."""
        *_, measured = perplexity(self.loaded.model, self.evaluation, "benchmark")
        return measured.perplexity

    def run(self, calibration: CalibrationSet, config: PruneConfig, initial: dict | None = None) -> tuple[dict, dict]:
        """Prune, measure and restore: layer -> (initial masks, updated weights), and the columns of the result.

        Wall seconds are those of RunFinished, cpu_seconds those of the processor; both without evaluation.
        """
        layers, started = {}, time.process_time()
        for event in prune(self.loaded.model, calibration, config, initial=initial):
            if isinstance(event, LayerInitialised):
                layers[event.layer] = (event.masks, event.weights)
        result = asdict(event) | {"cpu_seconds": time.process_time() - started, "perplexity": self.measure()}
        self.weights.restore()
        return layers, result

    def case(self, calibration: CalibrationSet, pattern: str, method: str, missing: dict) -> Iterator[dict]:
        """The initial masks of a method, then the missing settings of every treatment: name -> (setting -> given)."""
        sparsity = Sparsity.parse(pattern)
        dense = self.measure()
        masks, result = self.run(calibration, PruneConfig(sparsity, method, barber=False))
        initial = result["perplexity"]
        updated = any(weights for _, weights in masks.values())  # SparseGPT: refiners start from its weights
        common = {"pattern": pattern, "method": method, "seed": calibration.seed, "dense": dense, "initial": initial}
        yield common | {"treatment": INITIAL, "setting": INITIAL, "gap_recovered": 0.0} | result
        for name, settings in missing.items():
            for setting, given in settings.items():
                config = TREATMENTS[name].config(given, sparsity, method, updated)
                _, result = self.run(calibration, config, masks)
                share = gap_recovered(dense, initial, result["perplexity"])
                yield common | {"treatment": name, "setting": setting, "gap_recovered": share} | result


def rows(options: argparse.Namespace, known: list[dict]) -> Iterator[dict]:
    """All requested runs that the CSV does not have, seed by seed, without those that a pattern does not allow."""
    grid = product(options.treatments, map(Sparsity.parse, options.patterns))
    if not any(TREATMENTS[name].fits(sparsity) for name, sparsity in grid):
        raise UserError("n:m patterns fix the ratio of every layer: give an unstructured pattern or other treatments.")
    loaded = load(options.model, options.device)
    for pattern in options.patterns:
        DecoderView(loaded.model).check_width(Sparsity.parse(pattern).m)
    seqlen, _ = choose_seqlen(options.seqlen, loaded)
    spec = replace(
        FIRST_LOOK,
        calibration=options.calibration or options.data,
        evaluation=(options.evaluation or options.data,),
        window_start="none",  # as all tables of docs/quality.md were made
        nsamples=options.sequences,
        eval_windows=options.windows,
    )
    done = {tuple(row[column] for column in [*RUN, "setting"]) for row in known}
    for seed in options.seeds:
        calibration, (evaluation,) = drain(load_data(replace(spec, seed=seed), loaded, seqlen))
        sizes = (len(calibration.tokens), seqlen, len(evaluation.tokens))
        inputs = dict(zip(INPUTS, (options.model, calibration.source, evaluation.dataset, *sizes), strict=True))
        if any(inputs[column] != row[column] for row in known for column in INPUTS):
            raise UserError(f"{options.csv} holds runs of another model or other data: give another file.")
        bench = Bench(loaded, evaluation, DenseWeights(DecoderView(loaded.model)))
        for pattern, method in product(options.patterns, options.methods):
            here = (pattern, method, seed)
            missing = {
                name: {s: given for s, given in TREATMENTS[name].settings.items() if (*here, name, s) not in done}
                for name in options.treatments
                if TREATMENTS[name].fits(Sparsity.parse(pattern))
            }
            for row in bench.case(calibration, pattern, method, missing) if any(missing.values()) else ():
                if (*here, row["treatment"], row["setting"]) not in done:
                    yield inputs | row


def report(row: dict) -> None:
    """A line of progress."""
    what = row["setting"] if row["setting"] in (INITIAL, row["treatment"]) else f"{row['treatment']} {row['setting']}"
    where = f"{row['pattern']} {row['method']}, seed {row['seed']}, {what}"
    print(f"{where}: perplexity {row['perplexity']:.3f}, {row['seconds']:.1f} s", file=sys.stderr, flush=True)


def listed(*allowed: str) -> Callable[[str], list[str]]:
    """A parser of values with commas between them."""

    def parse(text: str) -> list[str]:
        values = [value.strip() for value in text.split(",")]
        if unknown := [value for value in values if allowed and value not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown: choose from {', '.join(allowed)}")
        return values

    return parse


def named(text: str) -> list[str]:
    """Treatments by their names or the names of groups, each once."""
    parts = listed(*GROUPS, *TREATMENTS)(text)
    return list(dict.fromkeys(name for part in parts for name in GROUPS.get(part, [part])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=FIRST_LOOK.model, help="hub id or folder (default: the bundled one)")
    parser.add_argument(
        "--data", default="storyteller", help="text for calibration and evaluation; of a file, one half each"
    )
    parser.add_argument("--calibration", help="text for calibration, instead of --data")
    parser.add_argument("--evaluation", help="text for evaluation, instead of --data")
    parser.add_argument("--methods", type=listed(*INITIAL_MASKS), default="magnitude,wanda")
    parser.add_argument("--patterns", type=listed(), default="50%,60%,70%,2:4,4:8")
    parser.add_argument("--treatments", type=named, default="default", help=f"of {', '.join([*GROUPS, *TREATMENTS])}")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default="0,1,2")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens of each sequence or window")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", type=Path, help="a line per run; an existing file is continued")
    parser.add_argument("--markdown", type=Path, help="where to write the tables, instead of stdout")
    options = parser.parse_args()

    made = pd.read_csv(options.csv).to_dict("records") if options.csv and options.csv.exists() else []
    try:
        for row in rows(options, made.copy()):
            report(row)
            if options.csv:
                pd.DataFrame([row]).to_csv(options.csv, mode="a", header=not options.csv.exists(), index=False)
            made.append(row)
    except UserError as error:
        parser.error(str(error))
    text = markdown(pd.DataFrame(made), {name: treatment.title for name, treatment in TREATMENTS.items()})
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
