"""prune(): the run as a stream of events, in the order of the paper's algorithm.

The whole model gets its initial mask first, each layer on the stream that the pruned layers before it produce. Then
the stream starts again, and every attention and MLP sub-block is rebuilt against its dense self.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from barber.allocation import allocate
from barber.calibration import CalibrationSet
from barber.config import Allocation, PruneConfig
from barber.errors import UserError
from barber.events import (
    Event,
    LayerInitialised,
    Notice,
    Progress,
    RunFinished,
    RunStarted,
    Stage,
    StageReached,
    SubBlockRebuilt,
)
from barber.initialise import METHODS, Statistics, initialise_layer, needs_calibration
from barber.masks import check_pattern
from barber.model import DecoderView, DenseWeights
from barber.problem import hold_out
from barber.refine import refine_model
from barber.stream import Stream

Masks = dict[str, Tensor]


def prune(
    model: nn.Module,
    calibration: CalibrationSet | None,
    config: PruneConfig,
    *,
    initial: Mapping[int, tuple[Masks, Masks]] | None = None,
    dense: DenseWeights | None = None,
    name: str = "",
) -> Iterator[Event]:
    """Prune a model in place and tell about it.

    model: a decoder model of transformers, on one device. calibration: needed by every method but magnitude, and by
    the rebuild. initial: with method "masks", layer -> (name -> mask, name -> updated weight), as runs.read_masks
    gives them. dense: a copy of the dense weights, if the caller has one.
    A run that is stopped or fails leaves the model dense, bit for bit.
    Raises UserError for what the model or the settings do not allow, before anything is changed.
    """
    view = DecoderView(model)
    view.check_finite()
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
        hold_out(len(calibration.tokens), config)
    yield RunStarted(
        model=name or type(model).__name__,
        config=config.to_dict(),
        calibration=calibration.describe() if calibrated else {},
        modules=view.describe(),
        device=str(view.device),
        dtype=str(view.dtype).removeprefix("torch."),
    )
    started = time.monotonic()
    dense = dense or DenseWeights(view)
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    swaps, finished = 0, False
    try:
        masks: dict[int, Masks] = {}
        for event in _initialise(view, calibration, config, initial):
            if isinstance(event, LayerInitialised):
                masks[event.layer] = event.masks
            yield event
        yield StageReached(Stage.INITIAL)
        if config.refined:
            candidates, diverged = 0, []
            for event in refine_model(view, _feed(view, calibration), dense, masks, config):
                if isinstance(event, SubBlockRebuilt):
                    masks[event.layer] = masks[event.layer] | event.masks
                    swaps, candidates = swaps + event.swaps, candidates + event.candidates
                    diverged += [f"layer {event.layer} {event.kind}"] * event.reconstruction.get("diverged", False)
                yield event
            if candidates and not swaps:
                yield Notice(_no_swaps(config))
            if diverged:
                yield Notice(
                    f"Re-fitting the kept weights went astray in {', '.join(diverged)} and went back to the best state."
                )
            yield StageReached(Stage.REBUILT)
        counts = [(mask.numel(), int(mask.sum())) for layer in masks.values() for mask in layer.values()]
        weights, zeros = (sum(column) for column in zip(*counts, strict=True))
        finished = True
        yield RunFinished(weights=weights, zeros=zeros, swaps=swaps, seconds=time.monotonic() - started)
    finally:
        if not finished:
            dense.restore()
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _no_swaps(config: PruneConfig) -> str:
    """Why a rebuild that had candidates changed nothing."""
    if config.auto or config.most_rounds > 1:
        return "No weights changed places: no swap that was tried lowers the error on the sequences that judge."
    return (
        f"No weights changed places: threshold {config.threshold:g} of the few gaining pairs in each "
        f"{config.granularity} group rounds down to none; try a larger threshold, granularity block, or auto."
    )


def check_initial(view: DecoderView, initial: Mapping[int, tuple[Masks, Masks]], config: PruneConfig) -> None:
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
            zeros, weights, rows = zeros + int(mask.sum()), weights + mask.numel(), rows + len(mask)
    if abs(zeros - config.sparsity.ratio * weights) > rows:
        raise UserError(
            f"The initial masks prune {zeros / weights:.2%} of the weights, but {config.sparsity} was asked: give the "
            "sparsity that they have."
        )


def _feed(view: DecoderView, calibration: CalibrationSet) -> Stream:
    stream = Stream(view.model, [layer.module for layer in view.layers])
    for row in calibration.tokens.to(view.device):
        stream.feed(row[None])
    return stream


def _initialise(
    view: DecoderView,
    calibration: CalibrationSet | None,
    config: PruneConfig,
    initial: Mapping[int, tuple[Masks, Masks]] | None,
) -> Iterator[Event]:
    """Initial masks layer by layer; statistics are of the layer's dense weights on the sparse stream, as published."""
    method, plan = METHODS.get(config.method), None
    if config.allocation is not Allocation.UNIFORM:
        plan = yield from allocate(view, _feed(view, calibration), config)
    stream = _feed(view, calibration) if method and method.statistic else None
    steps = 2 * len(stream) if stream else 1
    total = steps * len(view.layers)
    for layer in view.layers:
        started = time.monotonic()
        progress = _steps("initial mask", layer.index * steps, total, f"layer {layer.index}")
        statistics = Statistics(layer, method)
        for sequence in range(len(stream) if stream else 0):
            statistics.add(stream.call(layer.index, sequence))
            yield next(progress)
        if method:
            masks, updates = initialise_layer(layer, method, statistics.sums, config.sparsity, plan)
        else:
            masks, updates = initial[layer.index]
            masks = {weight.name: masks[weight.name].to(weight.view.device) for weight in layer.weights}
        layer.apply(masks, updates)
        for sequence in range(len(stream) if stream else 0):
            stream.advance(layer.index, sequence)
            yield next(progress)
        if not stream:
            yield next(progress)
        counts = {name: {"weights": mask.numel(), "zeros": int(mask.sum())} for name, mask in masks.items()}
        yield LayerInitialised(layer.index, counts, time.monotonic() - started, masks=masks, weights=updates)


def _steps(phase: str, done: int, total: int, where: str) -> Iterator[Progress]:
    """Progress events that count on from `done`."""
    while True:
        done += 1
        yield Progress(phase, done, total, where)
