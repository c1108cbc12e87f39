"""prune(): a run as a stream of events, in the order of the algorithm of LLM-Barber (arXiv 2408.10631).

First all layers get initial masks, each on the sparse stream of the pruned layers before it. Then the stream restarts
at the first layer, and each attention and MLP sub-block is rebuilt against its target (see
config.Target). In one pass, each sub-block gets its initial mask just before its rebuild.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping

from transformers import PreTrainedModel

from barber.config import Order, PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event, Notice, RunFinished, RunStarted
from barber.kernels.masks import check_pattern, zero_count
from barber.models.decoder import DecoderView, State, check_finite
from barber.models.inspection import inspect
from barber.models.wrappers import check_differentiable
from barber.pruning.context import PruningContext
from barber.pruning.notices import run_notices
from barber.pruning.schedule import GIVEN, Schedule, Tally
from barber.registry import INITIAL_MASKS


def prune(
    model: PreTrainedModel,
    calibration: CalibrationSet | None,
    config: PruneConfig,
    initial: Mapping[int, State] | None = None,
    context: PruningContext | None = None,
) -> Generator[Event, None, None]:
    """Prune a model in place, as a stream of events.

    model: a decoder model of transformers. calibration: needed by every method but magnitude and random, and by the
    rebuild. initial: with method "masks", layer -> (name -> mask, name -> updated weight), as returned by
    runs.directory.read_masks. context: of a model that `inspect` and a request that `check_request` has checked; None
    for a model in memory on one device.
    The run assigns new tensors to the model's weights and does not modify the old ones: DenseWeights made before the
    run restore them. A run that is stopped or fails restores them itself.
    Raises UserError for an unsupported model or setting, before any change.
    """
    check_differentiable(model)
    notices: list[Notice] = []
    if context is None:
        context = PruningContext.of(model)
        inspection = inspect(context.view, context.provider)
        check_request(context.view, config, initial)
        sentences = [inspection.describe(config.sparsity.ratio), context.view.coverage.describe()]
        notices = [Notice(sentence) for sentence in sentences if sentence]
    if config.needs_calibration and calibration is None:
        raise UserError(
            f"Method {config.method} with rebuild={config.refined} and allocation {config.allocation} needs "
            "calibration data: give a set."
        )
    if config.refined:
        config.split_sizes(len(calibration.tokens))
    begun = any(isinstance(event, RunStarted) for event in context.resumed)
    if not begun:
        yield describe(context, calibration, config)
    yield from notices
    started = time.monotonic()
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    tally = Tally()
    finished = False
    try:
        for event in context.resumed:
            tally.add(event)
        schedule = Schedule(context, calibration, config, initial, tally)
        for event in schedule.one_pass() if config.order is Order.ONE_PASS else schedule.paper():
            tally.add(event)
            yield event
        yield from (notice for notice in run_notices(tally, config) if notice not in context.resumed)
        weights, zeros = (sum(column) for column in zip(*tally.counts.values(), strict=True))
        finished = True
        if not any(isinstance(event, RunFinished) for event in context.resumed):
            counted = sum(tally.zero_valued.values()) if len(tally.zero_valued) == len(context.view.layers) else None
            yield RunFinished(weights, zeros, tally.swaps, time.monotonic() - started, counted)
    finally:
        if not finished:
            context.provider.restore()
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def describe(context: PruningContext, calibration: CalibrationSet | None, config: PruneConfig) -> RunStarted:
    """The first event of a run."""
    return RunStarted(
        model=context.name,
        config=config.to_dict(),
        calibration=calibration.describe() if config.needs_calibration else {},
        modules=context.view.describe(),
        device=str(context.provider.device),
        dtype=str(context.view.dtype).removeprefix("torch."),
    )


def check_request(view: DecoderView, config: PruneConfig, initial: Mapping[int, State] | None) -> None:
    """UserError unless weights are finite, and pattern and initial masks fit the model."""
    check_finite(view.model)
    view.check_width(config.sparsity.m)
    if config.method == GIVEN:
        _check_initial(view, initial or {}, config)
        return
    within = INITIAL_MASKS[config.method].within
    shapes = [weight.view.shape for layer in view.layers for weight in layer.weights]
    if not any(zero_count(rows, columns, config.sparsity, within) for rows, columns in shapes):
        raise UserError(
            f"Sparsity {config.sparsity} prunes no weight of this model, since no {within} that "
            f"{config.method} compares is long enough: give a larger ratio."
        )


def _check_initial(view: DecoderView, initial: Mapping[int, State], config: PruneConfig) -> None:
    """UserError unless every weight has a mask of its shape and of the pattern, and the sparsity of all is right.

    Methods round the count per matrix, row or block of columns, by less than one zero per row.
    """
    zeros = weights = rows = 0
    for layer in view.layers:
        masks = initial.get(layer.index, ({}, {}))[0]
        for weight in layer.weights:
            name, mask = f"layers.{layer.index}.{weight.name}", masks.get(weight.name)
            if mask is None or mask.shape != weight.view.shape:
                found = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
                raise UserError(
                    f"The initial masks have {found} for {name} {tuple(weight.view.shape)}: give masks of this model."
                )
            check_pattern(mask, config.sparsity, name)
            if config.reconstruct and bool(mask.all()):
                raise UserError(
                    f"The initial masks keep no weight of {name}, so there is nothing to refit: give others."
                )
            zeros, weights, rows = zeros + int(mask.count_nonzero()), weights + mask.numel(), rows + len(mask)
    if abs(zeros - config.sparsity.ratio * weights) > rows:
        raise UserError(
            f"The initial masks prune {zeros / weights:.2%} of the weights, but the sparsity given is {config.sparsity}"
            ": give the sparsity of the masks."
        )
