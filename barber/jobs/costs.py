"""Computational cost of the phases of a job: in forward passes of the calibration set, and in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from barber.config import AUTO_ROUNDS, Allocation, Order, PruneConfig, Target
from barber.evaluation.zero_shot import REQUESTS, UNKNOWN
from barber.events import Event, LayerInitialised, PerplexityMeasured, Stage, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.jobs.estimate import Model
from barber.jobs.measurement import TEXT_TOKENS
from barber.jobs.speed import Speed
from barber.pruning.rebuild import FRACTIONS, GRANULARITIES
from barber.pruning.refit import BATCH, EPOCHS
from barber.registry import BARBER, INITIAL_MASKS, REFINERS, Work

BACKWARD = 1.31  # relative to a forward pass: gradients of all weights, and of the inputs of all linears but the first
ALLOCATION = {Allocation.UNIFORM: 0.0, Allocation.OWL: 2.0, Allocation.SALIENCY: 5 + BACKWARD}

GRAM = Work(products=1)  # for as many rows as there are tokens
MASKED = Work(sorts=0.1, calls=20)  # weights under a mask, assigned
CHANGE = Work(sorts=1, calls=200)  # histograms and sums of a rebuilt weight
SALIENCY = Work(sorts=1, calls=20)  # squares of gradients, saliency and its check
PAIRING = Work(sorts=4, calls=100)  # pairs of pruned and kept weights in one granularity
SWAP = Work(sorts=0.5, calls=150)  # of a share of the pairs
STEP = Work(sorts=1, calls=30)  # of the refit's optimiser
TOKEN = Work(calls=500)  # of a written token, beside the layers
ROUNDS = 0.8  # of those of auto at most: later ones are often not needed


def initial_passes(config: PruneConfig) -> float:
    """Cost of the initial masks in forward passes of the calibration set through all layers, without the weights."""
    method = INITIAL_MASKS.get(config.method)
    return method.passes if method else 0.0


def refined_passes(config: PruneConfig, samples: int) -> float:
    """Cost of the rebuild and the refit in forward passes of the calibration set, without the work on weights."""
    if not config.refined:
        return 0.0
    train, validation = (part / samples for part in config.split_sizes(samples))
    own = 2 + BACKWARD  # forward passes for initial outputs and dense outputs, and the backward pass
    if config.auto:
        proposals = len(FRACTIONS) * len(GRANULARITIES) + 1
        own = 2 + (config.rounds or AUTO_ROUNDS) * ((2 + BACKWARD) * train + proposals * validation)
    elif not config.barber or config.refiner != BARBER:
        own = 2.0
    elif config.most_rounds > 1:
        own = 2 + config.most_rounds * (2 + BACKWARD + 1)
    if config.reconstruct:
        own += EPOCHS * (train * (2 + BACKWARD) + validation)
    return own + 1  # plus the forward pass for the final outputs


def passes(config: PruneConfig, samples: int) -> float:
    """Return the cost of a run in forward passes of the calibration set through all layers, without work on weights."""
    alone = config.order is Order.ONE_PASS  # its statistic is measured with the rebuild
    return ALLOCATION[config.allocation] + (0 if alone else initial_passes(config)) + refined_passes(config, samples)


def costs(
    spec: JobSpec, model: Model, speed: Speed, seqlen: int, windows: Sequence[int], ranks: int = 1
) -> dict[str, float]:
    """Return phase -> expected seconds, in the order of the job.

    windows: number of windows of each evaluation set. ranks: processes that share the calibration.
    """
    run = _Run(spec, model, speed, seqlen, spec.nsamples / ranks)
    stages = [Stage.DENSE]
    found: dict[str, float] = {}
    if spec.prune:
        stages += [Stage.INITIAL, Stage.REBUILT] if spec.prune.refined else [Stage.INITIAL]
    for stage in stages:
        if stage == Stage.INITIAL:
            found["allocation"] = run.allocation(spec.prune)
            if spec.prune.order is Order.PAPER:
                found["initial mask"] = run.initial(spec.prune)
            else:  # the initial masks and the rebuild are computed in one pass, before either stage is evaluated
                found["rebuild"] = run.masks(spec.prune) + run.refined(spec.prune)
        if stage == Stage.REBUILT and spec.prune.order is Order.PAPER:
            found["rebuild"] = run.refined(spec.prune)
        found[f"perplexity {stage}"] = run.perplexity(windows)
        found[f"text {stage}"] = run.texts()
        found[f"zero-shot {stage}"] = run.tasks()
    return {phase: cost for phase, cost in found.items() if cost}


@dataclass(frozen=True)
class _Run:
    """The expected seconds of the parts of a job.

    samples: calibration sequences of this process.
    """

    spec: JobSpec
    model: Model
    speed: Speed
    seqlen: int
    samples: float

    @property
    def forward(self) -> float:
        """A forward pass of the calibration set through all layers."""
        return self.model.layers * self.samples * self.speed.layer

    @property
    def opening(self) -> float:
        """Reading all layers once."""
        return self.model.layers * self.speed.opening

    def work(self, *works: Work) -> float:
        """Work on all weights."""
        return sum(self.speed.of(work, *shape) for work in works for block in self.model.blocks for shape in block)

    def grams(self) -> float:
        """The gram matrices of all inputs; the last weight of a sub-block has inputs of its own."""
        tokens, blocks = round(self.samples * self.seqlen), self.model.blocks
        widths = [width for block in blocks for width in (*{columns for _, columns in block[:-1]}, block[-1][1])]
        return sum(self.speed.of(GRAM, tokens, width) for width in widths)

    def allocation(self, config: PruneConfig) -> float:
        if config.allocation is Allocation.UNIFORM:
            return 0.0
        scores = self.work(SALIENCY) + (self.masks(config) if config.allocation is Allocation.SALIENCY else 0)
        return ALLOCATION[config.allocation] * self.forward + scores + self.opening

    def initial(self, config: PruneConfig) -> float:
        """Initial masks of the whole model, in a pass of their own."""
        return initial_passes(config) * self.forward + self.masks(config) + self.work(MASKED) + self.opening

    def masks(self, config: PruneConfig) -> float:
        """The initial masks alone, and the statistic that they need."""
        method = INITIAL_MASKS.get(config.method)
        if method is None:
            return self.work(MASKED)
        return self.work(method.work) + (self.grams() if method.statistic == "gram" else 0)

    def refined(self, config: PruneConfig) -> float:
        """The rebuild and the refit."""
        if not config.refined:
            return 0.0
        target = config.target is Target.DENSE_STREAM
        seconds = (refined_passes(config, self.spec.nsamples) + target) * self.forward + self.opening
        works = [CHANGE, MASKED, MASKED]
        if config.auto:
            shares = len(FRACTIONS) * len(GRANULARITIES)
            each = [SALIENCY, *[PAIRING] * len(GRANULARITIES), *[SWAP, MASKED] * shares, REFINERS["one-swap"].work]
            seconds += self.grams() + ROUNDS * config.most_rounds * self.work(*each)
        elif config.barber and config.refiner == BARBER:
            seconds += config.most_rounds * self.work(SALIENCY, PAIRING, SWAP, MASKED)
        elif config.barber:
            refiner = REFINERS[config.refiner]
            seconds += self.work(refiner.work) + (self.grams() if refiner.statistic == "gram" else 0)
        if config.reconstruct:
            seconds += EPOCHS * self.samples / BATCH * self.work(STEP)
        return seconds + self.work(*works)

    def perplexity(self, windows: Sequence[int]) -> float:
        each = self.model.layers * self.speed.layer + self.speed.head
        return sum(windows) * each + len(windows) * self.opening

    def texts(self) -> float:
        """Texts of full length, token by token."""
        each = self._tokens(1, self.speed.token) + self.speed.of(TOKEN, 0, 0)
        return len(self.spec.prompts) * TEXT_TOKENS * each

    def tasks(self) -> float:
        """Zero-shot tasks: the tokens of all their requests."""
        seconds = 0.0
        for task in self.spec.zeroshot_tasks:
            items, choices, length = REQUESTS.get(task, UNKNOWN)
            number = min(items, self.spec.zeroshot_limit or items) * choices * length
            seconds += self._tokens(number, self.speed.layer / self.seqlen)
        return seconds

    def _tokens(self, number: int, layer: float) -> float:
        """A number of tokens through the whole model. layer: seconds of one in a layer."""
        return number * (self.model.layers * layer + self.speed.head / self.seqlen)


def finished_shares(phases: Iterable[str], events: Sequence[Event], model: Model, datasets: int) -> dict[str, float]:
    """Return phase -> the share of it that is done. events: of an interrupted run, and known measurements."""
    initial = {event.layer for event in events if isinstance(event, LayerInitialised)}
    rebuilt = sum(isinstance(event, SubBlockRebuilt) for event in events)
    shares = {"initial mask": len(initial) / model.layers, "rebuild": rebuilt / len(model.blocks)}
    shares["allocation"] = float(bool(initial))
    for stage in Stage:
        known = {event.dataset for event in events if isinstance(event, PerplexityMeasured) and event.stage == stage}
        shares[f"perplexity {stage}"] = len(known) / max(datasets, 1)
    return {phase: shares[phase] for phase in phases if shares.get(phase)}
