"""The effect of matrix products in lower precision on masks and perplexity, compared with fp32.

python benchmarks/precision.py [--model PATH --data FILE] [--markdown FILE]

The same job runs with fp32 weights and fp32 products, with fp32 weights and bfloat16 products, and with bfloat16
weights. Agreement is the share of mask bits that equal those of the first run. On a CUDA device, a line for
TensorFloat-32 is added. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from barber.config import AUTO, PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import LayerInitialised, PerplexityMeasured, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.jobs.presets import FIRST_LOOK
from benchmarks.measure import machine, this_command, write

RUNS = {  # title -> dtype, compute
    "fp32": ("float32", "native"),
    "fp32, bfloat16 products": ("float32", "bfloat16"),
    "bfloat16": ("bfloat16", "native"),
}
TF32 = {"fp32, TF32 products": ("float32", "tf32")}


def measure(spec: JobSpec) -> dict:
    """Masks, (stage, layer, name) -> bool (out, in); perplexities by stage."""
    masks, perplexities = {}, {}
    for event in run_job(spec):
        if isinstance(event, LayerInitialised | SubBlockRebuilt):
            stage = "initial" if isinstance(event, LayerInitialised) else "rebuilt"
            masks |= {(stage, event.layer, name): mask.cpu() for name, mask in event.masks.items()}
        if isinstance(event, PerplexityMeasured):
            perplexities[event.stage] = event.perplexity
    return {"masks": masks, **perplexities}


def agreement(masks: dict, others: dict, stage: str) -> float:
    """Share of equal bits at a stage."""
    pairs = [(mask, others[key]) for key, mask in masks.items() if key[0] == stage]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def table(results: dict[str, dict]) -> str:
    first = next(iter(results.values()))
    lines = [
        "| run | same initial bits | same rebuilt bits | dense | initial | rebuilt |",
        "|" + " --- |" * 6,
    ]
    for title, result in results.items():
        same = [agreement(first["masks"], result["masks"], stage) for stage in ("initial", "rebuilt")]
        cells = [title, *(f"{share:.3%}" for share in same)]
        cells += [f"{result[stage]:.4f}" for stage in ("dense", "initial", "rebuilt")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=FIRST_LOOK.model, help="hub id or folder (default: the bundled one)")
    parser.add_argument(
        "--data", default="storyteller", help="text for calibration and evaluation; of a file, one half each"
    )
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--threshold", default="0.1", help="a number, or auto")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path, help="where to write the table, instead of stdout")
    options = parser.parse_args()
    try:
        threshold = AUTO if options.threshold == AUTO else float(options.threshold)
        config = PruneConfig(Sparsity.parse(options.pattern), options.method, granularity="block", threshold=threshold)
        data = {"calibration": options.data, "evaluation": (options.data,), "nsamples": options.sequences}
        spec = replace(FIRST_LOOK, model=options.model, prune=config, device=options.device, prompts=(), **data)
        runs = RUNS | (TF32 if torch.cuda.is_available() and options.device != "cpu" else {})
        results = {t: measure(replace(spec, dtype=dtype, compute=compute)) for t, (dtype, compute) in runs.items()}
    except (UserError, ValueError) as error:
        parser.error(str(error))
    write(f"{this_command('precision.py')}\n{machine()}\n\n{table(results)}\n", options.markdown)


if __name__ == "__main__":
    main()
