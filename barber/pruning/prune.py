"""prune(): the run as a stream of events, in the order of the paper's algorithm.

The whole model gets its initial mask first, each layer on the stream that the pruned layers before it produce. Then
the stream starts again, and every attention and MLP sub-block is rebuilt against its dense self. In one pass, each
sub-block gets its initial mask just before it is rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from barber.config import Order, PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Event, Notice, RunFinished, RunStarted
from barber.kernels.masks import check_pattern
from barber.models.decoder import DecoderView, State, check_finite
from barber.models.inspection import inspect
from barber.models.providers import ResidentProvider
from barber.models.wrappers import check_differentiable
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.initial_masks import needs_calibration
from barber.pruning.problem import split_sequences
from barber.pruning.schedule import Recorded, Run


def prune(
    model: nn.Module,
    calibration: CalibrationSet | None,
    config: PruneConfig,
    *,
    initial: Mapping[int, State] | None = None,
    context: PruningContext | None = None,
    recorded: Recorded | None = None,
    kept: Sequence[Event] = (),
    name: str = "",
) -> Iterator[Event]:
    """Prune a model in place and tell about it.

    model: a decoder model of transformers. calibration: needed by every method but magnitude and random, and by the
    rebuild. initial: with method "masks", layer -> (name -> mask, name -> updated weight), as runs.read_masks gives
    them. context: how to go about it; without, the model is on one device with all its layers.
    recorded: gives back what an event said of a layer's masks and values, once the consumer has it; without, they are
    kept in memory. kept: the events of the same run, if it was begun before, that need not come again: the layers that
    they finished are taken from `recorded`.
    The model's weights get new tensors, those that it had stay as they are: DenseWeights taken before put them back. A
    run that is stopped or fails does so itself.
    Raises UserError for what the model or the settings do not allow, before anything is changed.
    """
    view = context.view if context else DecoderView(model)
    check_differentiable(model)
    check_finite(model)
    if context is None:  # a job inspects its model itself
        context = PruningContext(view, ResidentProvider(view), ActivationStore(view.device))
        inspect(view, context.provider)
    view.check_width(config.sparsity.m)
    if config.method == "masks":
        check_initial(view, initial or {}, config)
    calibrated = needs_calibration(config)
    if calibrated and calibration is None:
        raise UserError(
            f"Method {config.method} with rebuild={config.refined} and allocation {config.allocation} needs "
            "calibration data: give a set."
        )
    if config.refined:
        split_sequences(len(calibration.tokens), config)
    if not any(isinstance(event, RunStarted) for event in kept):
        yield describe(context, calibration, config, name or type(model).__name__)
    started = time.monotonic()
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    run = Run(context, calibration, config, initial, recorded)
    finished = False
    try:
        for event in kept:
            run.see(event)
        for event in run.one_pass() if config.order is Order.ONE_PASS else run.paper():
            run.see(event)
            yield event
        if run.candidates and not run.swaps:
            yield Notice(_no_swaps(config))
        if run.diverged:
            yield Notice(
                f"Re-fitting the kept weights went astray in {', '.join(run.diverged)} and went back to the best state."
            )
        weights, zeros = (sum(column) for column in zip(*run.counts.values(), strict=True))
        finished = True
        if not any(isinstance(event, RunFinished) for event in kept):
            yield RunFinished(weights=weights, zeros=zeros, swaps=run.swaps, seconds=time.monotonic() - started)
    finally:
        if not finished:
            context.provider.restore()
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def describe(context: PruningContext, calibration: CalibrationSet | None, config: PruneConfig, name: str) -> RunStarted:
    """The first event of a run."""
    return RunStarted(
        model=name,
        config=config.to_dict(),
        calibration=calibration.describe() if needs_calibration(config) else {},
        modules=context.view.describe(),
        device=str(context.provider.device),
        dtype=str(context.view.dtype).removeprefix("torch."),
    )


def _no_swaps(config: PruneConfig) -> str:
    """Why a rebuild that had candidates changed nothing."""
    if config.auto or config.most_rounds > 1:
        return "No weights changed places: no swap that was tried lowers the error on the sequences that judge."
    return (
        f"No weights changed places: threshold {config.threshold:g} of the few gaining pairs in each "
        f"{config.granularity} group rounds down to none; try a larger threshold, granularity block, or auto."
    )


def check_initial(view: DecoderView, initial: Mapping[int, State], config: PruneConfig) -> None:
    """UserError unless there is a mask of the right shape and pattern for every weight, and zeros as asked in all.

    Methods count per matrix, row or block of columns, which loses less than one zero a row.
    """
    zeros = weights = rows = 0
    for layer in view.layers:
        masks = initial.get(layer.index, ({}, {}))[0]
        for weight in layer.weights:
            name, mask = f"layers.{layer.index}.{weight.name}", masks.get(weight.name)
            if mask is None or mask.shape != weight.view.shape:
                found = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
                raise UserError(
                    f"The initial masks hold {found} for {name} {tuple(weight.view.shape)}: give masks of this model."
                )
            check_pattern(mask, config.sparsity, name)
            if config.reconstruct and bool(mask.all()):
                raise UserError(
                    f"The initial masks keep no weight of {name}, so there is nothing to re-fit: give others."
                )
            zeros, weights, rows = zeros + int(mask.count_nonzero()), weights + mask.numel(), rows + len(mask)
    if abs(zeros - config.sparsity.ratio * weights) > rows:
        raise UserError(
            f"The initial masks prune {zeros / weights:.2%} of the weights, but {config.sparsity} was asked: give the "
            "sparsity that they have."
        )
