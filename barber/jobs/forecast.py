"""Estimate a job before it starts, from the configuration of its model: no weights are read."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from barber.config import MASKS
from barber.events import Estimated
from barber.job_spec import MOST_SEQUENCES, JobSpec
from barber.jobs.costs import costs
from barber.jobs.data import choose_seqlen
from barber.jobs.setup import RESIDENT, activation_place, as_event, fitting, memory_limit, model_sizes, other_bytes
from barber.jobs.speed import assume_speed
from barber.models.checkpoint_files import empty_model
from barber.models.loading import LoadedModel, cache_if_unreachable, explained, find_source, max_seqlen
from barber.pruning.context import PruningContext
from barber.pruning.prune import check_request

MODELS = 32  # of which the outline is kept
EVALUATION_TOKENS = 2**18  # assumed of an evaluation text, about as many as the test split of WikiText-2 has


def forecast(spec: JobSpec) -> Estimated | None:
    """Return the expected memory and time of a pruning job; None for a job without calibration, which takes seconds.

    Raises UserError for a model that cannot be pruned, a pattern or a sequence length that does not fit it, and for a
    job that does not fit into memory.
    """
    loaded, device = _outline(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
    context = PruningContext.of(loaded.model)
    if spec.prune and spec.prune.method != MASKS:
        check_request(context.view, spec.prune, None)
    seqlen, _ = choose_seqlen(spec.seqlen, loaded)
    if spec.prune is None or not spec.prune.needs_calibration:
        return None
    limit = memory_limit(spec.max_memory, device)
    parameters = list(loaded.model.parameters())
    layerwise = spec.stream or RESIDENT * sum(parameter.nbytes for parameter in parameters) > limit
    inside = {id(parameter) for layer in context.view.layers for parameter in layer.module.parameters()}
    counted = [parameter for parameter in parameters if not (layerwise and id(parameter) in inside)]
    sizes = model_sizes(context.view, other_bytes(context.view, counted))
    batch = min(context.batch_of(seqlen, spec.prune), spec.nsamples)
    _, needs = fitting(sizes, spec, spec.nsamples, seqlen, batch, not layerwise, limit)
    speed = assume_speed(sizes, device, context.view.dtype, seqlen)
    windows = [min(spec.eval_windows or MOST_SEQUENCES, max(1, EVALUATION_TOKENS // seqlen)) for _ in spec.evaluation]
    seconds = sum(costs(spec, sizes, speed, seqlen, windows).values())
    return as_event(needs, seconds, device, activation_place(needs, device, limit), layerwise)


def settled(spec: JobSpec) -> JobSpec:
    """Return the job with the sequence length that it will have. Raises UserError as `forecast` does."""
    loaded, _ = _outline(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
    return replace(spec, seqlen=choose_seqlen(spec.seqlen, loaded)[0])


@lru_cache(MODELS)
def _outline(
    name: str, device: str, dtype: str, cache_dir: str | None, trust_remote_code: bool
) -> tuple[LoadedModel, torch.device]:
    """Return the model on the meta device, without tokenizer, and the device that a run uses."""
    source = find_source(name, device, dtype, cache_dir, trust_remote_code)
    with cache_if_unreachable(source.path), explained(name):
        return LoadedModel(name, empty_model(source), None, max_seqlen(source.config)), source.device
