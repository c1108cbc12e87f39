"""Estimated cost of large models, by `barber.jobs.estimate` from given rates, without a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import pandas as pd

from barber.config import Order, PruneConfig, Sparsity
from barber.jobs.estimate import Model, estimate, passes
from barber.pruning.context import CALIBRATION_BATCH_TOKENS
from benchmarks import synthetic
from benchmarks.measure import GIB, table, this_command

SAMPLES, SEQLEN, ELEMENT = 128, 2048, 2  # Wanda's published calibration; bf16
READS = {Order.ONE_PASS: 1, Order.PAPER: 2}  # of every layer: one in each pass over the layers
BESIDE = 4  # further ones: for the hash of the model, and one perplexity of each stage
TITLES = [
    "model", "ranks", "order", "weights", "whole in memory", "streamed, a rank", "activations, a rank",
    "masks on disk", "passes", "arithmetic", "reading",
]  # fmt: skip


def model(shape: str) -> Model:
    """The sizes of a shape, as barber.jobs.setup.sizes gives them for a loaded model."""
    if shape not in synthetic.SHAPES:
        synthetic.config(shape)  # raises UserError
    sizes = synthetic.SHAPES[shape]
    hidden, middle = sizes.hidden, sizes.intermediate
    keys = hidden * sizes.groups // sizes.heads
    attention, mlp = 2 * hidden * (hidden + keys), 3 * hidden * middle
    norms = (2 * sizes.layers + 1) * hidden
    return Model(
        layers=sizes.layers,
        hidden=hidden,
        layer_parameters=attention + mlp,
        block_parameters=max(attention, mlp),
        width=max(hidden, middle),
        spread=max(2 * (hidden + hidden) + 2 * (hidden + keys), 3 * (hidden + middle)),
        other_bytes=ELEMENT * (2 * sizes.vocabulary * hidden + norms),
        element=ELEMENT,
    )


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each model, number of ranks and order."""
    shapes, devices = options.estimate.split(","), [int(ranks) for ranks in options.devices.split(",")]
    for shape, ranks, order in product(shapes, devices, (Order.ONE_PASS, Order.PAPER)):
        sizes, config = model(shape), PruneConfig(Sparsity(0.5), "wanda", order=order)
        prunable, batch = sizes.layers * sizes.layer_parameters, max(1, CALIBRATION_BATCH_TOKENS // SEQLEN)
        rate = options.tflops * 1e12
        whole, streamed = (estimate(sizes, config, SAMPLES, SEQLEN, batch, rate, w, ranks) for w in (True, False))
        model_bytes = prunable * ELEMENT
        yield {
            "shape": shape,
            "ranks": ranks,
            "order": str(order),
            "weights_bytes": model_bytes + sizes.other_bytes,
            "whole_bytes": whole.least,
            "streamed_bytes": streamed.least,
            "activations_bytes": streamed.activations,
            "masks_bytes": 2 * prunable / 8,
            "passes": passes(config, SAMPLES),
            "arithmetic_seconds": streamed.seconds,
            "reading_seconds": (READS[order] + BESIDE) * model_bytes / (options.disk * 1e9),
        }


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    lines = [
        this_command("scaling.py"),
        f"- estimated, not measured: {options.tflops:g} x 10^12 operations a second on each device, {options.disk:g} x "
        f"10^9 bytes a second from disk; Wanda and one round of the rebuild at 50 %, {SAMPLES} sequences of {SEQLEN} "
        "tokens, bfloat16",
    ]
    cells = [
        [
            *(row["shape"], f"{row['ranks']}", row["order"]),
            *(size(row[name]) for name in ("weights_bytes", "whole_bytes", "streamed_bytes", "activations_bytes")),
            *(size(row["masks_bytes"]), f"{row['passes']:.2f}"),
            *(time(row[name]) for name in ("arithmetic_seconds", "reading_seconds")),
        ]
        for row in frame.to_dict("records")
    ]
    return "\n".join([*lines, "", table(TITLES, cells)]) + "\n"


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
