"""What a whole job is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from barber.config import PruneConfig
from barber.load import BUNDLED


@dataclass(frozen=True)
class JobSpec:
    """What to do from beginning to end.

    model, device, dtype, cache_dir, trust_remote_code: see load.load.
    prune: the pruning, or None to evaluate the dense model only.
    calibration, evaluation: data specs (see calibration.load_calibration); nsamples sequences of seqlen tokens, drawn
    with seed. seqlen None takes the published 2048, or the model's own maximum where that is smaller.
    eval_windows: at most so many perplexity windows per data set, None for all of it.
    prompts: continued greedily at each stage. zeroshot_tasks, zeroshot_limit: lm-eval tasks, items per task.
    run_dir, save_model, save_data: where to write the run, the final model and the calibration tokens (.npy).
    """

    model: str = BUNDLED
    prune: PruneConfig | None = None
    calibration: str = "c4"
    evaluation: tuple[str, ...] = ("wikitext2",)
    nsamples: int = 128
    seqlen: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    eval_windows: int | None = None
    prompts: tuple[str, ...] = ()
    zeroshot_tasks: tuple[str, ...] = ()
    zeroshot_limit: int | None = None
    run_dir: Path | None = None
    save_model: Path | None = None
    save_data: Path | None = None
    cache_dir: str | None = None
    datasets_cache_dir: str | None = None
    trust_remote_code: bool = False
