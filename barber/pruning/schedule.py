"""The two orders in which a run makes and rebuilds its masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial

from barber.config import Allocation, PruneConfig, Target
from barber.data.token_sets import CalibrationSet
from barber.events import Event, LayerInitialised, Progress, Stage, StageReached, SubBlockRebuilt
from barber.models.decoder import Layer, State, assign_values
from barber.models.providers import ResidentProvider
from barber.models.replay import tapping
from barber.progress import counting
from barber.pruning.activations import ActivationStream, halving
from barber.pruning.allocation import Plan, allocate
from barber.pruning.context import PruningContext
from barber.pruning.initial_masks import METHODS, gather, initialise_weights
from barber.pruning.sub_block import Pass, refine_layer, steps

Recorded = Callable[[int, Stage], State]


class Run:
    """A run at work: what its events have said so far, and its two orders."""

    def __init__(
        self,
        context: PruningContext,
        calibration: CalibrationSet | None,
        config: PruneConfig,
        initial: Mapping[int, State] | None,
        recorded: Recorded | None,
    ) -> None:
        self.context, self.calibration, self.config, self.given = context, calibration, config, initial
        self.recorded = recorded or self._remembered
        self._memory: dict[tuple[int, Stage], State] | None = None if recorded else {}
        self.counts: dict[tuple[int, str], tuple[int, int]] = {}  # (layer, name) -> weights, zeros
        self.refined: dict[int, int] = {}  # layer -> how many of its sub-blocks are final
        self.swaps = self.candidates = 0
        self.diverged: list[str] = []

    def see(self, event: Event) -> None:
        """Fold an event into what is known."""
        if isinstance(event, LayerInitialised | SubBlockRebuilt):
            stage = Stage.INITIAL if isinstance(event, LayerInitialised) else Stage.REBUILT
            self.counts |= {(event.layer, n): (m["weights"], m["zeros"]) for n, m in event.modules.items()}
            if self._memory is not None:
                masks, values = self._memory.setdefault((event.layer, stage), ({}, {}))
                masks |= event.masks
                values |= event.weights
        if isinstance(event, SubBlockRebuilt):
            self.refined[event.layer] = self.refined.get(event.layer, 0) + 1
            self.swaps, self.candidates = self.swaps + event.swaps, self.candidates + event.candidates
            self.diverged += [f"layer {event.layer} {event.kind}"] * event.reconstruction.get("diverged", False)

    def _remembered(self, layer: int, stage: Stage) -> State:
        return self._memory[layer, stage]

    def is_initialised(self, layer: Layer) -> bool:
        return all((layer.index, weight.name) in self.counts for weight in layer.weights)

    def is_final(self, layer: Layer) -> bool:
        return self.refined.get(layer.index, 0) == len(layer.sub_blocks)

    def paper(self) -> Iterator[Event]:
        """Initialise the whole model, then rebuild it."""
        yield from self._initialise()
        yield StageReached(Stage.INITIAL)
        if self.config.refined:
            yield from self._refine(lambda layer: self.recorded(layer, Stage.INITIAL), None)
            yield StageReached(Stage.REBUILT)

    def one_pass(self) -> Iterator[Event]:
        """Initialise and rebuild sub-block by sub-block; both stages are there to be looked at in the end."""
        plan = yield from self._allocate()
        yield from self._refine(None, plan)
        for stage in (Stage.INITIAL, Stage.REBUILT):
            self.show(stage)
            yield StageReached(stage)

    def show(self, stage: Stage) -> None:
        """Let the layers that are in memory have the weights of a stage."""
        provider = self.context.provider
        if isinstance(provider, ResidentProvider):
            for layer in self.context.view.layers:
                layer.assign(provider.dense(layer.index, layer.weights), *self.recorded(layer.index, stage))

    def _allocate(self) -> Generator[Event, None, Plan | None]:
        if self.config.allocation is Allocation.UNIFORM:
            return None
        return (yield from allocate(self.context, self.calibration, self.config))

    def _initialise(self) -> Iterator[Event]:
        """Initial masks layer by layer, by what the layer's dense weights see on the sparse stream, as published."""
        layers, provider = self.context.view.layers, self.context.provider
        if all(map(self.is_initialised, layers)):
            self.show(Stage.INITIAL)
            return
        plan = yield from self._allocate()
        method = METHODS.get(self.config.method)
        stream = self.context.feed(self.calibration, self.config) if method and method.statistic else None
        each = 2 * len(stream) if stream else 1
        progress = counting("initial mask", each, each * len(layers))
        for layer in layers:
            provider.open(layer.index)
            steps = next(progress)
            if not self.is_initialised(layer):
                attempt = partial(self._initialise_layer, layer, stream, plan, steps)
                yield from halving([stream], self.context.ranks, attempt) if stream else attempt()
            layer.assign(provider.dense(layer.index, layer.weights), *self.recorded(layer.index, Stage.INITIAL))
            for batch in range(len(stream) if stream else 0):
                stream.advance(layer, batch)
                yield Progress("initial mask", (layer.index + 1) * each, each * len(layers), f"layer {layer.index}")
            provider.close(layer.index)

    def _initialise_layer(
        self,
        layer: Layer,
        stream: ActivationStream | None,
        plan: Plan | None,
        progress: Callable[[str], Iterator[Progress]],
    ) -> Generator[Event, None, None]:
        """From an open, dense layer to its LayerInitialised."""
        started, method, steps = time.monotonic(), METHODS.get(self.config.method), progress(f"layer {layer.index}")
        if method is None:
            given = self.given[layer.index]
            masks, updates = (
                {weight.name: part[weight.name] for weight in layer.weights if weight.name in part} for part in given
            )
        else:
            sums = gather(method)
            for batch in range(len(stream) if stream else 0):
                with tapping({weight.name: weight.module for weight in layer.weights}) as taps:
                    layer.replay(stream.call(layer.index, batch))
                sums.add(taps)
                del taps
                yield next(steps)
            values = sums.values if sums else {}
            self.context.ranks.sum(list(values.values()))
            masks, updates = initialise_weights(layer.index, layer.weights, method, values, self.config.sparsity, plan)
        if not stream:
            yield next(steps)
        counts = {name: {"weights": mask.numel(), "zeros": int(mask.count_nonzero())} for name, mask in masks.items()}
        yield LayerInitialised(layer.index, counts, time.monotonic() - started, masks=masks, weights=updates)

    def _refine(self, initial: Callable[[int], State] | None, plan: Plan | None) -> Iterator[Event]:
        """Refine all layers; those that are final already only move the streams on."""
        layers, provider, config = self.context.view.layers, self.context.provider, self.config
        stream = self.context.feed(self.calibration, config)
        wanted = stream.fork() if config.target is Target.DENSE_STREAM else None
        budget = steps(len(stream.fit), len(stream.held), config)
        each = budget * len(layers[0].sub_blocks) + len(stream)
        progress = counting("rebuild", each, each * len(layers))
        run = Pass(self.context, config, initial, plan)
        for layer in layers:
            provider.open(layer.index)
            steps_of = next(progress)
            if self.is_final(layer):
                dense = provider.dense(layer.index, layer.weights)
                if wanted:
                    assign_values(layer.weights, dense)
                    for batch in range(len(wanted)):
                        wanted.advance(layer, batch)
                layer.assign(dense, *self.recorded(layer.index, Stage.REBUILT))
                for batch, step in zip(range(len(stream)), steps_of(f"layer {layer.index} again"), strict=False):
                    stream.advance(layer, batch)
                    yield step
            else:
                yield from refine_layer(run, layer, stream, wanted, steps_of)
            provider.close(layer.index)
