"""Predefined jobs: one for a first run, which needs no settings, and prunings to start from."""

from __future__ import annotations

from dataclasses import replace

from barber.config import AUTO, Allocation, Granularity, PruneConfig, Sparsity
from barber.job_spec import JobSpec
from barber.storyteller import documents

PROMPT = documents("prompts", 3)[2]  # the rebuilt model's correct text has average length (of the first 10 prompts)
FIRST_LOOK = JobSpec(
    prune=PruneConfig(Sparsity.parse("60%"), "wanda", granularity=Granularity.BLOCK, threshold=AUTO),
    calibration="storyteller",
    evaluation=("storyteller",),
    nsamples=64,
    seqlen=256,
    eval_windows=64,
    prompts=(PROMPT,),
)
PAPER_SAMPLES = 128
PRUNINGS = {  # title -> pruning; of the paper, its Wanda experiment
    "First look": FIRST_LOOK.prune,
    "Paper": PruneConfig(Sparsity.parse("50%"), "wanda", granularity=Granularity.OUTPUT, threshold=0.01),
    "2:4": PruneConfig(Sparsity.parse("2:4"), "wanda", threshold=AUTO),
    "High sparsity": PruneConfig(Sparsity.parse("70%"), "wanda", allocation=Allocation.OWL, threshold=AUTO),
}


def preset(title: str, model: str) -> JobSpec:
    """Return the job of a preset. "First look" is always of the bundled model; the others keep the model."""
    if title == "First look":
        return FIRST_LOOK
    base = FIRST_LOOK if model == FIRST_LOOK.model else JobSpec(model)
    return replace(base, prune=PRUNINGS[title], nsamples=PAPER_SAMPLES)
