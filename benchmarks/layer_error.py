"""Relative output error of single weight matrices after pruning, ||(W - V) X||^2 / ||W X||^2, and processor time.

python benchmarks/layer_error.py [--model PATH --data FILE] [--layers 0,15,29] [--csv FILE --markdown FILE]

X are the inputs of each weight matrix in the dense model on calibration text. Errors are not passed on to later layers,
so this compares methods on the objective of layer-wise pruning, not the pruned models: see docs/quality.md for those.
Work that weight matrices with the same inputs share is counted with the first of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch
from torch import Tensor

from barber.bundled import STORYTELLER
from barber.config import Sparsity
from barber.data.token_sets import load_calibration
from barber.errors import UserError
from barber.kernels import alps, sparsegpt
from barber.kernels.masks import initial_mask
from barber.kernels.one_swap import SHORTLIST, one_swap
from barber.kernels.scores import wanda
from barber.models.decoder import DecoderView, Weight
from barber.models.loading import LoadedModel, load
from barber.models.taps import tapping
from barber.pruning.statistics import StatisticSums
from benchmarks.measure import machine, table, this_command, write

LONG_SHORTLIST = 64
BATCH = 4  # sequences of a forward pass

Pruned = Callable[[Tensor, Sparsity], Tensor]  # (weight (out, in), sparsity) -> the pruned weight


def _wanda(weight: Tensor, total: Tensor, sparsity: Sparsity) -> Tensor:
    return initial_mask(wanda(weight, total.diagonal()), sparsity, "row")


def by_wanda(total: Tensor) -> Pruned:
    return lambda weight, sparsity: weight.masked_fill(_wanda(weight, total, sparsity), 0)


def by_one_swap(total: Tensor, shortlist: int) -> Pruned:
    def prune(weight: Tensor, sparsity: Sparsity) -> Tensor:
        mask = _wanda(weight, total, sparsity)
        return weight.masked_fill(one_swap(mask, weight, weight, total, sparsity.m, shortlist), 0)

    return prune


def by_refit(total: Tensor) -> Pruned:
    curvature = alps.ScaledGram.of(total)
    return lambda weight, sparsity: alps.refit_on_support(weight, _wanda(weight, total, sparsity), curvature)


def by_sparsegpt(total: Tensor) -> Pruned:
    curvature = sparsegpt.InverseHessian.of(total)
    return lambda weight, sparsity: sparsegpt.sparsegpt(weight, curvature, sparsity)[0]


def by_alps(total: Tensor) -> Pruned:
    curvature = alps.ScaledGram.of(total)
    return lambda weight, sparsity: alps.alps(weight, curvature, sparsity)[0]


WANDA = "Wanda"
METHODS: dict[
    str, Callable[[Tensor], Pruned]
] = {  # title -> gram matrix (in, in) -> function that prunes a weight of these inputs
    WANDA: by_wanda,
    f"Wanda, one-swap of {LONG_SHORTLIST}": lambda total: by_one_swap(total, LONG_SHORTLIST),
    f"Wanda, one-swap of {SHORTLIST}": lambda total: by_one_swap(total, SHORTLIST),
    "Wanda, weights refitted": by_refit,
    "SparseGPT": by_sparsegpt,
    "ALPS": by_alps,
}


@torch.no_grad()
def gather(loaded: LoadedModel, weights: dict[str, Weight], tokens: Tensor) -> dict[str, Tensor]:
    """Gram matrices (in, in) of the inputs of the weights, name -> sum over the tokens (sequences, seqlen)."""
    sums, device = StatisticSums("gram"), next(loaded.model.parameters()).device
    for batch in tokens.split(BATCH):
        with tapping(weights) as taps:
            loaded.model(batch.to(device), use_cache=False, logits_to_keep=1)
        sums.add(taps)
    return sums.values


def output_energy(weight: Tensor, total: Tensor) -> float:
    """||W X||^2 of W (out, in), in double precision."""
    weight = weight.double()
    return ((weight @ total.double()) * weight).sum().item()


def measure(weights: dict[str, Weight], grams: dict[str, Tensor], patterns: Sequence[str]) -> Iterator[dict]:
    """A row for each weight, pattern and method: its error and the processor seconds it took."""
    for title, prepare in METHODS.items():
        for pattern in patterns:
            sparsity, known = Sparsity.parse(pattern), {}
            for name, weight in weights.items():
                dense, total = weight.view.float(), grams[name]
                begin = time.process_time()
                if id(total) not in known:
                    known[id(total)] = prepare(total)
                pruned = known[id(total)](dense, sparsity)
                seconds = time.process_time() - begin
                share = output_energy(dense - pruned, total) / output_energy(dense, total)
                yield {"weight": name, "pattern": pattern, "method": title, "error": share, "seconds": seconds}


def summary(frame: pd.DataFrame) -> str:
    """A line per pattern and method, over all weights; the ratio to Wanda's error is their geometric mean."""
    frame = frame.assign(ratio=frame["error"] / frame.groupby(["pattern", "weight"])["error"].transform("first"))
    rows = []
    for (pattern, method), group in frame.groupby(["pattern", "method"], sort=False):
        ratio = torch.tensor(group["ratio"].to_numpy()).log().mean().exp().item()
        rows.append([pattern, method, f"{group['error'].mean():.3%}", f"{ratio:.3f}", f"{group['seconds'].sum():.2f}"])
    rows.sort(key=lambda row: frame["pattern"].unique().tolist().index(row[0]))
    return table(["pattern", "method", "error, mean", "of Wanda's, geometric mean", "seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=STORYTELLER, help="hub id or folder (default: the bundled one)")
    parser.add_argument("--data", default=STORYTELLER, help="calibration text")
    parser.add_argument("--layers", help="numbers of layers (default: the first, the middle and the last)")
    parser.add_argument("--patterns", default="50%,60%,2:4")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", type=Path, help="where to write a row for each weight")
    parser.add_argument("--markdown", type=Path, help="where to write the table, instead of stdout")
    options = parser.parse_args()
    try:
        patterns = options.patterns.split(",")
        loaded = load(options.model, options.device)
        view = DecoderView(loaded.model)
        depth = len(view.layers)
        chosen = sorted({0, depth // 2, depth - 1} if options.layers is None else map(int, options.layers.split(",")))
        if not 0 <= chosen[0] <= chosen[-1] < depth:
            raise UserError(f"The model has layers 0 to {depth - 1}: {options.layers} names another.")
        for m in {Sparsity.parse(pattern).m for pattern in patterns}:
            view.check_width(m)
        data = load_calibration(options.data, loaded.tokenizer, options.sequences, options.seqlen, options.seed)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    weights = {f"layers.{i}.{weight.name}": weight for i in chosen for weight in view.layers[i].weights}
    with torch.no_grad():
        frame = pd.DataFrame(measure(weights, gather(loaded, weights, data.tokens), patterns))
    if options.csv:
        frame.to_csv(options.csv, index=False)
    drawn = f"- calibration: {options.sequences} sequences of {options.seqlen} tokens of {data.source}"
    layers = f"- model: {Path(options.model).name}, layers {', '.join(map(str, chosen))}"
    write(f"{this_command('layer_error.py')}\n{layers}\n{drawn}\n{machine()}\n\n{summary(frame)}\n", options.markdown)


if __name__ == "__main__":
    main()
