"""Jobs worth seeing without any choice made."""

from __future__ import annotations

from barber.config import AUTO, Granularity, PruneConfig, Sparsity
from barber.job_spec import JobSpec
from barber.storyteller import documents

PROMPT = documents("prompts", 3)[2]  # of the first ten, where the rebuilt model goes on right as long as in the mean
FIRST_LOOK = JobSpec(
    prune=PruneConfig(Sparsity.parse("60%"), "wanda", granularity=Granularity.BLOCK, threshold=AUTO),
    calibration="storyteller",
    evaluation=("storyteller",),
    nsamples=64,
    seqlen=256,
    eval_windows=64,
    prompts=(PROMPT,),
)
