"""A predefined job for a first run, which needs no settings."""

from __future__ import annotations

from barber.config import AUTO, Granularity, PruneConfig, Sparsity
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
