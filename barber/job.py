"""A whole job as one stream: load, calibrate, evaluate, prune, rebuild, evaluate again, save.

The command line and the app both consume `run_job`; what differs between them is only how they show its events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from barber import runs, zeroshot
from barber.allocation import COSTS
from barber.calibration import CalibrationSet, EvaluationSet
from barber.environment import describe_environment
from barber.errors import UserError
from barber.evaluate import check_prompt, generate, perplexity
from barber.events import Event, JobPlanned, Progress, RunStarted, Saved, Stage, StageReached
from barber.initialise import METHODS
from barber.inputs import choose_seqlen, load_data
from barber.load import LoadedModel, load
from barber.model import DecoderView, DenseWeights
from barber.problem import hold_out
from barber.prune import check_initial, prune
from barber.refine import steps
from barber.save import check_outputs, save_calibration, save_model
from barber.spec import JobSpec

TEXT_TOKENS = 120
REBUILD_COST = 2  # forward passes of one sequence through a layer, in a step of the rebuild of its sub-blocks
ZERO_SHOT_SAMPLES = 500  # a guess at a task's size, for the ETA alone


def run_job(spec: JobSpec, loaded: LoadedModel | None = None) -> Iterator[Event]:
    """Do a job. The model is dense again, bit for bit, when the stream ends, however it ends.

    loaded: the model of spec.model, if it is in memory already. All user errors that can be seen before the work are
    raised before it.
    """
    try:
        yield from _job(spec, loaded)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{spec.model} does not fit into this device's memory with {spec.nsamples} sequences: give fewer or "
            "shorter ones, a smaller model, or --device cpu."
        ) from None


def _job(spec: JobSpec, loaded: LoadedModel | None) -> Iterator[Event]:
    check_outputs({"save_model": spec.save_model, "run_dir": spec.run_dir, "save_data": spec.save_data})
    if spec.run_dir and spec.prune is None:
        raise UserError("--run_dir records a pruning run, but no pruning was asked: add it, or leave --run_dir out.")
    if spec.zeroshot_tasks:
        zeroshot.check_tasks(spec.zeroshot_tasks)
    if spec.prune and spec.prune.refined:
        hold_out(spec.nsamples, spec.prune)
    initial = runs.read_masks(spec.prune.initial_masks) if spec.prune and spec.prune.initial_masks else None
    if loaded is None:
        yield Progress("load", 0, 1, spec.model)
        loaded = load(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
    if loaded.tokenizer is None and (spec.prompts or spec.zeroshot_tasks):
        raise UserError(
            f"Model {spec.model!r} has no tokenizer, which texts and zero-shot tasks need: add it or skip them."
        )
    view = DecoderView(loaded.model)
    if spec.prune:
        view.check_finite()
        view.check_width(spec.prune.sparsity.m)
        if initial:
            check_initial(view, initial, spec.prune)
    seqlen, notice = choose_seqlen(spec.seqlen, loaded)
    if notice:
        yield notice
    yield Progress("data", 0, 1, ", ".join(spec.evaluation))
    calibration, evaluations = load_data(spec, loaded, seqlen)
    for prompt in spec.prompts:
        check_prompt(loaded.model, loaded.tokenizer, prompt)
    if spec.save_data and calibration:
        save_calibration(calibration, spec.save_data)
        yield Saved("calibration", str(spec.save_data))
    yield JobPlanned(_costs(spec, len(view.layers), evaluations))

    events = _work(spec, loaded, view, calibration, evaluations, initial)
    if spec.run_dir:
        events = runs.record(runs.create(spec.run_dir), events)
    with closing(events):
        yield from events


def _work(
    spec: JobSpec,
    loaded: LoadedModel,
    view: DecoderView,
    calibration: CalibrationSet | None,
    evaluations: list[EvaluationSet],
    initial: dict | None,
) -> Iterator[Event]:
    yield from _evaluate(spec, loaded, evaluations, Stage.DENSE)
    if spec.prune is None:
        yield from _save(spec, loaded)
        return
    dense = DenseWeights(view)
    try:
        events = prune(loaded.model, calibration, spec.prune, initial=initial, dense=dense, name=spec.model)
        with closing(events):
            for event in events:
                if isinstance(event, RunStarted) and spec.run_dir:
                    environment = describe_environment(dense, spec.seed, event)
                    runs.write_json(spec.run_dir / "environment.json", environment)
                yield event
                if isinstance(event, StageReached):
                    yield from _evaluate(spec, loaded, evaluations, event.stage)
                    if event.stage == Stage.REBUILT or not spec.prune.refined:
                        yield from _save(spec, loaded)
    finally:
        dense.restore()


def _evaluate(spec: JobSpec, loaded: LoadedModel, evaluations: list[EvaluationSet], stage: Stage) -> Iterator[Event]:
    """Perplexities, texts and zero-shot tasks of the model as it is at a stage."""
    total = sum(len(data.tokens) for data in evaluations)
    before = 0
    for data in evaluations:
        for event in perplexity(loaded.model, data, stage):
            yield replace(event, done=event.done + before, total=total) if isinstance(event, Progress) else event
        before += len(data.tokens)
    for index, prompt in enumerate(spec.prompts):
        yield from generate(loaded.model, loaded.tokenizer, prompt, stage, max_new_tokens=TEXT_TOKENS, seed=spec.seed)
        yield Progress(f"text {stage}", index + 1, len(spec.prompts))
    if spec.zeroshot_tasks:
        yield from zeroshot.zero_shot(
            loaded.model, loaded.tokenizer, stage, spec.zeroshot_tasks, limit=spec.zeroshot_limit
        )


def _save(spec: JobSpec, loaded: LoadedModel) -> Iterator[Event]:
    if spec.save_model:
        save_model(loaded, spec.save_model)
        yield Saved("model", str(spec.save_model))


def _costs(spec: JobSpec, layers: int, evaluations: list[EvaluationSet]) -> dict[str, float]:
    """Phases and their cost in sequence-layers, for the ETA."""
    stages = [Stage.DENSE]
    costs: dict[str, float] = {}
    if spec.prune:
        stages += [Stage.INITIAL, Stage.REBUILT] if spec.prune.refined else [Stage.INITIAL]
    windows = sum(len(data.tokens) for data in evaluations)
    for stage in stages:
        if stage == Stage.INITIAL:
            costs["allocation"] = layers * spec.nsamples * COSTS.get(spec.prune.allocation, 0)
            calibrated = spec.prune.method in METHODS and METHODS[spec.prune.method].statistic is not None
            costs["initial mask"] = layers * (2 * spec.nsamples if calibrated else 1)
        if stage == Stage.REBUILT:
            costs["rebuild"] = layers * REBUILD_COST * steps(*map(len, hold_out(spec.nsamples, spec.prune)), spec.prune)
        costs[f"perplexity {stage}"] = layers * windows
        costs[f"text {stage}"] = layers * len(spec.prompts)
        costs[f"zero-shot {stage}"] = layers * len(spec.zeroshot_tasks) * (spec.zeroshot_limit or ZERO_SHOT_SAMPLES)
    return {phase: cost for phase, cost in costs.items() if cost}
