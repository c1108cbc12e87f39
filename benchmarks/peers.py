"""Barber and llm-compressor side by side on one model: time of pruning, memory, perplexity, zeros.

python benchmarks/peers.py --model FOLDER --calibration FILE --evaluation FILE --environment FOLDER [--install]

Both make the initial masks of Wanda and SparseGPT from the same tokens, without a rebuild. Each run is a process of
its own (peer_run.py), and the tools take turns. llm-compressor needs other versions of its libraries, so it has an
environment of its own, which --install makes. See docs/peers.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from barber.config import Sparsity
from barber.data.token_sets import EvaluationSet, load_calibration, load_evaluation
from barber.errors import UserError
from barber.evaluation.perplexity import perplexity
from barber.models.decoder import DecoderView
from barber.models.loading import DTYPES, find_source, load
from benchmarks.measure import gib, machine, measured, table, this_command, write

PACKAGE = "llmcompressor==0.14.0.1"
OURS, THEIRS = "Barber", "llm-compressor"
CASE = ["dtype", "method", "pattern"]


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_environment(folder: Path, install: bool) -> Path:
    """The interpreter of the environment with llm-compressor in a folder, which is made if `install` is given."""
    python = python_of(folder)
    known = "from importlib.metadata import version; print('llmcompressor==' + version('llmcompressor'))"
    if python.exists():
        found = subprocess.run([python, "-I", "-c", known], capture_output=True, text=True)
        if found.stdout.strip() == PACKAGE:
            return python
    if not install:
        raise UserError(
            f"{folder} has no environment with {PACKAGE}: add --install to make one there, which downloads about 1 GB."
        )
    venv.create(folder, with_pip=True)
    torch_version = torch.__version__.partition("+")[0]  # the same for both tools
    for packages in ([f"torch=={torch_version}"], [PACKAGE]):  # torch first, so that the build for CPUs satisfies both
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *packages]).returncode:
            raise UserError(f"pip could not install {packages[0]} into {folder}: see its messages above.")
    return python


def place(model: str) -> str:
    """The absolute path of a model, or its hub id."""
    path = Path(find_source(model, "cpu").path)
    return str(path.resolve() if path.is_dir() else path)


def run(python: Path, tool: str, case: dict, options: argparse.Namespace, tokens: Path, out: Path) -> dict:
    """Prune once in a process; the pruned weights are in `out`. Memory is that of the whole process."""
    worker = ["-I", Path(__file__).with_name("peer_run.py"), tool, place(options.model), tokens, *case.values()]
    used = measured([str(part) for part in (python, *worker, options.threads, out)])
    if used.code:
        raise UserError(f"{tool} ended with exit code {used.code} on {' '.join(case.values())}: {used.last}")
    result = pd.read_json(out / "result.json", typ="series").to_dict()
    versions = ", ".join(f"{name} {version}" for name, version in result.pop("versions").items())
    return case | {"tool": tool} | result | {"peak_bytes": used.peak, "versions": versions}


def quality(model: PreTrainedModel, folder: Path, evaluation: EvaluationSet, sparsity: Sparsity) -> dict:
    """Perplexity and zeros of a model with the pruned weights of a folder."""
    missing, _ = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    weights = [weight.view for layer in DecoderView(model).layers for weight in layer.weights]
    if set(missing) & {name for name, _ in model.named_parameters()}:
        raise UserError(f"{folder} lacks weights of the model, such as {missing[0]}.")
    return {"perplexity": perplexity_of(model, evaluation)} | count(weights, sparsity)


def perplexity_of(model: PreTrainedModel, evaluation: EvaluationSet) -> float:
    *_, event = perplexity(model, evaluation, "pruned")
    return event.perplexity


def count(weights: list[torch.Tensor], sparsity: Sparsity) -> dict:
    """Zeros of weights (out, in); for n:m, the share of groups of m consecutive inputs that have n zeros or more."""
    zeros = [weight == 0 for weight in weights]
    counted = {"weights": sum(zero.numel() for zero in zeros), "zeros": sum(int(zero.sum()) for zero in zeros)}
    if sparsity.m:
        groups = torch.cat([zero.unflatten(1, (-1, sparsity.m)).sum(-1).flatten() for zero in zeros])
        counted["groups"] = (groups >= sparsity.n).double().mean().item()
    return counted


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each case, repetition and tool; the tools take turns. Quality is that of the first repetition."""
    theirs = find_environment(options.environment.absolute(), options.install)  # processes run in the project's root
    loaded = load(options.model, "cpu", "float32")  # as exact as can be; pruning has the dtypes that are asked for
    calibration = load_calibration(options.calibration, loaded.tokenizer, options.samples, options.seqlen, options.seed)
    evaluation = load_evaluation(options.evaluation, loaded.tokenizer, options.seqlen, windows=options.windows)
    cases = [dict(zip(CASE, values, strict=True)) for values in product(
        options.dtypes.split(","), options.methods.split(","), options.patterns.split(",")
    )]  # fmt: skip
    sparsities = {pattern: Sparsity.parse(pattern) for pattern in options.patterns.split(",")}
    known: dict[tuple, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.npy"
        np.save(tokens, calibration.tokens.numpy())
        dense = perplexity_of(loaded.model, evaluation)
        for repetition, case, (tool, python) in product(
            range(options.repeat), cases, ((OURS, Path(sys.executable)), (THEIRS, theirs))
        ):
            row = run(python, tool, case, options, tokens, Path(scratch))
            key = (tool, *case.values())
            if key not in known:
                known[key] = quality(loaded.model, Path(scratch), evaluation, sparsities[case["pattern"]])
            yield row | {"repetition": repetition, "dense": dense} | known[key]


def tables(frame: pd.DataFrame) -> str:
    """Two tables, a line per case: medians of the cost with their ratio, and the quality of both results."""
    cost, result = [], []
    for case, group in frame.groupby(CASE, sort=False):
        by_tool = group.groupby("tool")
        median = by_tool[["seconds", "processor_seconds", "peak_bytes"]].median()
        ours, theirs = median.loc[OURS], median.loc[THEIRS]
        cells = [f"{each['seconds']:.1f} s, {each['processor_seconds']:.1f} s" for each in (ours, theirs)]
        cells += [f"{theirs[name] / ours[name]:.1f}" for name in ("seconds", "processor_seconds")]
        cost.append([*case, str(len(group) // 2), *cells, gib(ours["peak_bytes"]), gib(theirs["peak_bytes"])])
        first = by_tool.first()
        cells = [f"{first.loc[tool, 'perplexity']:.2f}" for tool in (OURS, THEIRS)]
        share = {tool: f"{first.loc[tool, 'zeros'] / first.loc[tool, 'weights']:.4%}" for tool in (OURS, THEIRS)}
        if Sparsity.parse(case[-1]).m:
            share = {tool: f"{text} ({first.loc[tool, 'groups']:.2%} of groups)" for tool, text in share.items()}
        result.append([*case, *cells, *share.values()])
    head = ["dtype", "method", "pattern"]
    titles = [*head, "runs of each", f"{OURS}: wall, processor", f"{THEIRS}: wall, processor", "ratio of wall times"]
    return "\n\n".join(
        [
            table([*titles, "of processor times", f"{OURS}, peak", f"{THEIRS}, peak"], cost),
            table(
                [*head, f"{OURS}, perplexity", f"{THEIRS}, perplexity", f"{OURS}, zeros", f"{THEIRS}, zeros"], result
            ),
        ]
    )


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    versions = frame.groupby("tool")["versions"].first()
    lines = [
        this_command("peers.py"),
        f"- model: {Path(options.model).name}, dense perplexity {frame['dense'][0]:.2f}; {options.samples} sequences "
        f"of {options.seqlen} tokens; perplexity on {options.windows} windows of {options.seqlen} tokens, in float32",
        *(f"- {tool}: {versions[tool]}; {options.threads} threads" for tool in (OURS, THEIRS)),
        machine(),
    ]
    return "\n".join(lines) + f"\n\n{tables(frame)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder of a decoder model")
    parser.add_argument("--calibration", required=True, help="calibration text: a file, or a name of a data set")
    parser.add_argument("--evaluation", required=True, help="evaluation text, likewise")
    parser.add_argument("--environment", type=Path, required=True, help="folder of llm-compressor's environment")
    parser.add_argument("--install", action="store_true", help="make that environment if it is not there")
    parser.add_argument("--methods", default="wanda,sparsegpt")
    parser.add_argument("--patterns", default="50%,2:4")
    parser.add_argument("--dtypes", default="bfloat16", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens of each sequence, and of a window")
    parser.add_argument("--windows", type=int, default=64, help="evaluation windows at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process")
    parser.add_argument("--csv", type=Path, help="a line per run, written after each")
    parser.add_argument("--markdown", type=Path, help="where to write the tables, instead of stdout")
    options = parser.parse_args()
    made = []
    try:
        for row in rows(options):
            made.append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, file=sys.stderr)
            if options.csv:
                pd.DataFrame(made).to_csv(options.csv, index=False)
    except UserError as error:
        parser.error(str(error))
    write(markdown(pd.DataFrame(made), options), options.markdown)


if __name__ == "__main__":
    main()
