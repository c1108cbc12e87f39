"""Perplexity of initial and rebuilt masks, method by method and pattern by pattern, as a markdown table.

python benchmarks/quality.py [--model PATH --data FILE] [--granularity block --threshold 0.1]
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from barber.config import METHODS, PruneConfig, Sparsity
from barber.events import PerplexityMeasured
from barber.job import run_job
from barber.load import load
from barber.presets import STORYTELLER
from barber.summary import gap_recovered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=STORYTELLER.model)
    parser.add_argument("--data", default="storyteller", help="calibration and evaluation data")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--patterns", default="50%,60%,2:4")
    parser.add_argument("--granularity", default="block")
    parser.add_argument("--threshold", type=float, default=0.1)
    options = parser.parse_args()

    loaded = load(options.model)
    spec = replace(STORYTELLER, model=options.model, calibration=options.data, evaluation=(options.data,), prompts=())
    print(f"{spec.nsamples} calibration sequences and {spec.eval_windows} windows of {spec.seqlen} tokens;")
    print(f"{options.granularity}, threshold {options.threshold:g}; {platform.machine()}, {platform.system()}")
    print("\n| pattern | initial mask | dense | initial | rebuilt | gap recovered |\n|---|---|---|---|---|---|")
    for pattern in options.patterns.split(","):
        for method in options.methods.split(","):
            config = PruneConfig(
                Sparsity.parse(pattern), method, granularity=options.granularity, threshold=options.threshold
            )
            events = run_job(replace(spec, prune=config), loaded)
            value = {event.stage: event.perplexity for event in events if isinstance(event, PerplexityMeasured)}
            share = gap_recovered(**value)
            shown = " | ".join(f"{value[stage]:.3f}" for stage in ("dense", "initial", "rebuilt"))
            print(f"| {pattern} | {method} | {shown} | {'-' if share is None else f'{share:.0%}'} |", flush=True)


if __name__ == "__main__":
    main()
