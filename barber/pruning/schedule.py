"""The two orders of initial masks and rebuilds in a run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from barber.config import Allocation, PruneConfig, Target
from barber.data.token_sets import CalibrationSet
from barber.events import Event, LayerInitialised, Stage, StageReached, SubBlockRebuilt
from barber.models.decoder import Layer, State, assign_values
from barber.models.providers import ResidentProvider
from barber.progress import TICK, Phase, Steps
from barber.pruning.activations import ActivationStream, halving
from barber.pruning.allocation import allocate
from barber.pruning.context import PruningContext
from barber.pruning.initial_masks import InitialMasks, ZeroPlan, initialise
from barber.pruning.sub_block import dense_outputs, initialised_event, refine_sub_block, sub_block_steps
from barber.registry import INITIAL_MASKS

GIVEN = "masks"  # method: the masks of an earlier run


@dataclass
class Tally:
    """Totals over the events of a run so far.

    Attributes:
        counts: (layer, name) -> weights and zeros of each weight that has a mask.
        rebuilt: layer -> number of its final sub-blocks.
        swaps: number of swapped pairs.
        changes: of each final sub-block whose error was not zero, the logarithm of error after / error before.
        diverged: sub-blocks whose refit went back to its best state.
        starved: experts with initial masks by magnitude, since too few tokens reached them.
        zero_valued: layer -> number of its prunable weights that are zero, pruned or not.
    """

    counts: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    rebuilt: dict[int, int] = field(default_factory=dict)
    swaps: int = 0
    changes: list[float] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    zero_valued: dict[int, int] = field(default_factory=dict)
    starved: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        if isinstance(event, LayerInitialised | SubBlockRebuilt):
            self.counts |= {(event.layer, name): (m.weights, m.zeros) for name, m in event.modules.items()}
        if isinstance(event, LayerInitialised):
            self.starved += [f"layers.{event.layer}.{name}" for name in event.starved]
        if isinstance(event, SubBlockRebuilt):
            self.rebuilt[event.layer] = self.rebuilt.get(event.layer, 0) + 1
            self.swaps += event.swaps
            if event.error_before > 0 and event.error_after > 0:
                self.changes.append(math.log(event.error_after / event.error_before))
            if event.refit and event.refit.diverged:
                self.diverged.append(f"layer {event.layer} {event.kind}")

    @property
    def rise(self) -> float:
        """The relative change of the sub-blocks' errors, their geometric mean; 0 without errors."""
        return math.expm1(statistics.fmean(self.changes)) if self.changes else 0.0

    def is_initialised(self, layer: Layer) -> bool:
        return all((layer.index, weight.name) in self.counts for weight in layer.weights)

    def is_final(self, layer: Layer) -> bool:
        return self.rebuilt.get(layer.index, 0) == len(layer.sub_blocks)


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, in order.

    Attributes:
        context, calibration, config: as `prune` takes them.
        given: with method "masks", layer -> its initial masks and values.
        done: totals of the events of a resumed run; its finished layers are skipped.
    """

    context: PruningContext
    calibration: CalibrationSet | None
    config: PruneConfig
    given: Mapping[int, State] | None
    done: Tally

    def paper(self) -> Iterator[Event]:
        """Initialise the whole model, then rebuild it, as published."""
        yield from self._initialise()
        yield StageReached(Stage.INITIAL)
        if self.config.refined:
            yield from self._refine(one_pass=False, plan=None)
            yield StageReached(Stage.REBUILT)

    def one_pass(self) -> Iterator[Event]:
        """Initialise and rebuild sub-block by sub-block; then assign and report both stages in turn."""
        plan = yield from self._allocate()
        yield from self._refine(one_pass=True, plan=plan)
        for stage in (Stage.INITIAL, Stage.REBUILT):
            self._show(stage)
            yield StageReached(stage)

    def _show(self, stage: Stage) -> None:
        """Assign layers in memory their weights of a stage."""
        provider = self.context.provider
        if isinstance(provider, ResidentProvider):
            for layer in self.context.view.layers:
                dense = provider.dense(layer.index, layer.weights)
                layer.assign(dense, *self.context.states.load(layer.index, stage))

    def _allocate(self) -> Generator[Event, None, ZeroPlan | None]:
        if self.config.allocation is Allocation.UNIFORM:
            return None
        return (yield from allocate(self.context, self.calibration, self.config))

    def _initialise(self) -> Iterator[Event]:
        """Initial masks layer by layer, from inputs of the layer's dense weights on the sparse stream, as published."""
        context, config = self.context, self.config
        layers, provider, states = context.view.layers, context.provider, context.states
        if all(map(self.done.is_initialised, layers)):
            self._show(Stage.INITIAL)
            return
        plan = yield from self._allocate()
        calibrated = config.method != GIVEN and INITIAL_MASKS[config.method].calibrated
        stream = context.feed(self.calibration, config) if calibrated else None
        phase = Phase("initial mask", 2 * len(stream) if stream else 1, len(layers))
        for layer in layers:
            provider.open(layer.index)
            if not self.done.is_initialised(layer):
                started = time.monotonic()
                attempt = partial(self._initialise_layer, layer, stream, plan)
                work = halving([stream], context.ranks, attempt) if stream else attempt()
                made = yield from phase.follow(layer.index, "", work)
                states.save(layer.index, Stage.INITIAL, made.state)
                yield initialised_event(layer.index, made, time.monotonic() - started)
            layer.assign(provider.dense(layer.index, layer.weights), *states.load(layer.index, Stage.INITIAL))
            self.done.zero_valued[layer.index] = layer.zeros()
            yield from phase.follow(layer.index, "", stream.advance_all(layer) if stream else _tick())
            provider.close(layer.index)

    def _initialise_layer(
        self, layer: Layer, stream: ActivationStream | None, plan: ZeroPlan | None
    ) -> Steps[InitialMasks]:
        """The initial masks and updated values of an open, dense layer."""
        if self.config.method == GIVEN:
            masks, updates = self.given[layer.index]
            names = [weight.name for weight in layer.weights]
            given = {name: updates[name] for name in names if name in updates}
            return InitialMasks({name: masks[name] for name in names}, given)

        def run(batch: int) -> None:
            layer.replay(stream.call(layer.index, batch))

        batches = range(len(stream) if stream else 0)
        ranks = self.context.ranks
        return (yield from initialise(layer.index, layer.weights, self.config, batches, run, ranks, plan))

    def _refine(self, one_pass: bool, plan: ZeroPlan | None) -> Iterator[Event]:
        """Refine all layers; final layers only advance the streams."""
        context, config, states = self.context, self.config, self.context.states
        layers, provider = context.view.layers, context.provider
        stream = context.feed(self.calibration, config)
        dense_stream = stream.fork() if config.target is Target.DENSE_STREAM else None
        streams = [stream, dense_stream] if dense_stream else [stream]
        each = sub_block_steps(len(stream.train), len(stream.validation), config)
        per_layer = each * max(len(layer.sub_blocks) for layer in layers) + len(stream) * (2 if dense_stream else 1)
        phase = Phase("rebuild", per_layer, len(layers))
        for layer in layers:
            provider.open(layer.index)
            final = self.done.is_final(layer)
            if dense_stream:
                assign_values(layer.weights, provider.dense(layer.index, layer.weights))
                if not final:
                    attempt = partial(dense_outputs, layer, stream, dense_stream)
                    yield from phase.follow(layer.index, "dense", halving(streams, context.ranks, attempt))
                for batch in range(len(dense_stream)):
                    dense_stream.advance(layer, batch)
            if final:
                layer.assign(provider.dense(layer.index, layer.weights), *states.load(layer.index, Stage.REBUILT))
                self.done.zero_valued[layer.index] = layer.zeros()
                yield from phase.follow(layer.index, "again", stream.advance_all(layer))
                provider.close(layer.index)
                continue
            initial = None if one_pass else states.load(layer.index, Stage.INITIAL)
            for block in layer.sub_blocks:
                refine = partial(refine_sub_block, context, config, layer, block, stream, initial, plan)
                result = yield from phase.follow(layer.index, block.kind, halving(streams, context.ranks, refine))
                provider.release_dense(layer.index, [weight.name for weight in block.weights])
                for event, stage in ((result.initialised, Stage.INITIAL), (result.rebuilt, Stage.REBUILT)):
                    if event:
                        states.save(layer.index, stage, (event.masks, event.weights))
                        yield event
            yield from phase.follow(layer.index, "output", stream.advance_all(layer, layer.sub_blocks))
            stream.outputs.clear()
            self.done.zero_valued[layer.index] = layer.zeros()
            provider.close(layer.index)


def _tick() -> Steps[None]:
    yield TICK
