"""The cost of pruning in forward passes: F, each phase in F, tokens a second, peak memory.

python benchmarks/speed.py [--shape 26m] [--samples 16 --seqlen 512] [--csv FILE] [--markdown FILE]

F is one forward pass of the calibration set through the decoder layers without gradients, in the same process, dtype
and batches; it is measured before and after each run, and the run is divided by the mean of both. The model is a
Llama of random weights. With --layerwise, each layer is made when it is opened, so that any size can run. See
docs/performance.md.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch
from transformers import LlamaForCausalLM

from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import LayerInitialised, SubBlockRebuilt
from barber.models.decoder import DecoderView
from barber.models.loading import DTYPES, pick_device
from barber.models.providers import ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.prune import prune
from benchmarks import synthetic
from benchmarks.measure import gib, machine, this_command, write

CASES = [(method, order, granularity) for method, order, granularity in product(
    ("wanda", "sparsegpt"), ("one-pass", "paper"), ("block", "output1")
)]  # fmt: skip


def build(options: argparse.Namespace) -> PruningContext:
    """The model of the shape, in memory or layerwise, and the context of its runs."""
    device, dtype = torch.device(pick_device(options.device)), DTYPES[options.dtype]
    if options.layerwise:
        provider = synthetic.streamed(options.shape, device, dtype, options.layers)
        view = provider.reader.view
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(synthetic.config(options.shape, options.layers)).to(device, dtype)
        view = DecoderView(model.eval().requires_grad_(False))
        provider = ResidentProvider(view)
    return PruningContext(view, provider, ActivationStore(device, host=options.host), batch=options.batch)


def sequences(options: argparse.Namespace, vocabulary: int) -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (options.samples, options.seqlen), generator=generator)
    return CalibrationSet(tokens, "random tokens", 0)


def forward_seconds(context: PruningContext, calibration: CalibrationSet, config: PruneConfig) -> float:
    """F: wall seconds of the layers alone, without the time to make them."""
    stream, seconds = context.feed(calibration, config), 0.0
    for layer in context.view.layers:
        context.provider.open(layer.index)
        started = now(context)
        for batch in range(len(stream)):
            stream.advance(layer, batch)
        seconds += now(context) - started
        context.provider.close(layer.index)
    return seconds


def now(context: PruningContext) -> float:
    if context.provider.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run(context: PruningContext, calibration: CalibrationSet, config: PruneConfig) -> dict:
    """Wall seconds of a whole run and of its phases, and peak memory."""
    device = context.provider.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    phases = {"initial": 0.0, "rebuild": 0.0}
    started = now(context)
    for event in prune(context.view.model, calibration, config, context=context):
        if isinstance(event, LayerInitialised):
            phases["initial"] += event.seconds
        if isinstance(event, SubBlockRebuilt):
            phases["rebuild"] += event.seconds
    seconds = now(context) - started
    context.provider.restore()
    return {
        "seconds": seconds,
        **phases,
        "device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each case and repetition, the cases in turn within each repetition."""
    context = build(options)
    calibration = sequences(options, context.view.model.config.vocab_size)
    forward_seconds(context, calibration, PruneConfig(Sparsity(0.5)))  # once to warm up
    for repetition, (method, order, granularity) in product(range(options.repeat), CASES):
        if method not in options.methods or order not in options.orders or granularity not in options.granularities:
            continue
        config = PruneConfig(Sparsity(0.5), method, granularity=granularity, threshold=options.threshold, order=order)
        before = forward_seconds(context, calibration, config)
        result = run(context, calibration, config)
        forward = (before + forward_seconds(context, calibration, config)) / 2
        row = {"method": method, "order": order, "granularity": granularity, "repetition": repetition, "F": forward}
        yield (
            row
            | result
            | {
                "run in F": result["seconds"] / forward,
                "initial in F": result["initial"] / forward,
                "rebuild in F": result["rebuild"] / forward,
                "tokens/s": calibration.tokens.numel() / result["seconds"],
            }
        )


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    """Medians over the repetitions."""
    names = ["F", "seconds", "run in F", "initial in F", "rebuild in F", "tokens/s", "device_bytes", "host_bytes"]
    table = frame.groupby(["method", "order", "granularity"], sort=False)[names].median().reset_index()
    lines = [
        this_command("speed.py"),
        f"- model: Llama {options.shape}, random weights, {options.dtype}; {options.samples} sequences of "
        f"{options.seqlen} tokens; median of {options.repeat}",
        machine(torch.device(pick_device(options.device))),
        "",
        "| method | order | swaps in | F | run | run in F | initial mask in F | rebuild in F | tokens/s "
        "| peak device | peak host, so far |",
        "|" + " --- |" * 11,
    ]
    for row in table.to_dict("records"):
        cells = [row["method"], row["order"], row["granularity"], f"{row['F']:.2f} s", f"{row['seconds']:.2f} s"]
        cells += [f"{row[name]:.2f}" for name in ("run in F", "initial in F", "rebuild in F")]
        cells += [f"{row['tokens/s']:.0f}", gib(row["device_bytes"]), gib(row["host_bytes"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="26m", help=f"one of {', '.join(synthetic.SHAPES)}")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens of each sequence")
    parser.add_argument("--methods", default="wanda,sparsegpt")
    parser.add_argument("--orders", default="one-pass,paper")
    parser.add_argument("--granularities", default="block,output1")
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, help="sequences of a forward pass (default: by their tokens)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--host", action="store_true", help="keep activations in the host's memory")
    parser.add_argument("--layerwise", action="store_true", help="make each layer when it is opened")
    parser.add_argument("--csv", type=Path, help="a line per run")
    parser.add_argument("--markdown", type=Path, help="where to write the table, instead of stdout")
    options = parser.parse_args()
    made = []
    try:
        for row in rows(options):
            made.append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, file=sys.stderr)
    except UserError as error:
        parser.error(str(error))
    frame = pd.DataFrame(made)
    if options.csv:
        frame.to_csv(options.csv, index=False)
    write(markdown(frame, options), options.markdown)


if __name__ == "__main__":
    main()
