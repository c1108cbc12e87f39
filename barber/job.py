"""A whole job as one stream: load, calibrate, evaluate, prune, rebuild, evaluate again, save.

The command line and the app both consume `run_job`; what differs between them is only how they show its events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from barber import runs, zeroshot
from barber.calibration import CalibrationSet, EvaluationSet, load_calibration, load_evaluation
from barber.config import PruneConfig
from barber.environment import describe_environment
from barber.errors import UserError
from barber.evaluate import check_prompt, generate, perplexity
from barber.events import Event, JobPlanned, Notice, Progress, RunStarted, Saved, Stage, StageReached
from barber.initialise import METHODS, needs_calibration
from barber.load import BUNDLED, LoadedModel, load
from barber.model import DecoderView, DenseWeights
from barber.prune import prune
from barber.save import check_outputs, save_calibration, save_model

DEFAULT_SEQLEN = 2048  # as published, where the model has that many positions
TEXT_TOKENS = 120
REBUILD_COST = 6  # forward passes of one sequence through a layer, for its rebuild
ZERO_SHOT_SAMPLES = 500  # a guess at a task's size, for the ETA alone


@dataclass(frozen=True)
class JobSpec:
    """What to do from beginning to end.

    model, device, dtype, cache_dir, trust_remote_code: see load.load.
    prune: the pruning, or None to evaluate the dense model only.
    calibration, evaluation: data specs (see calibration.load_calibration); nsamples sequences of seqlen tokens, drawn
    with seed. seqlen None takes the published 2048, or the model's own maximum where that is smaller.
    eval_windows: at most so many perplexity windows per data set, None for all of it.
    prompts: continued greedily at each stage. zeroshot_tasks, zeroshot_limit: lm-eval tasks, items per task.
    run_dir, save_model, save_data: where to write the run, the final model and the calibration tokens (.npy).
    """

    model: str = BUNDLED
    prune: PruneConfig | None = None
    calibration: str = "c4"
    evaluation: tuple[str, ...] = ("wikitext2",)
    nsamples: int = 128
    seqlen: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    eval_windows: int | None = None
    prompts: tuple[str, ...] = ()
    zeroshot_tasks: tuple[str, ...] = ()
    zeroshot_limit: int | None = None
    run_dir: Path | None = None
    save_model: Path | None = None
    save_data: Path | None = None
    cache_dir: str | None = None
    datasets_cache_dir: str | None = None
    trust_remote_code: bool = False


def run_job(spec: JobSpec, loaded: LoadedModel | None = None) -> Iterator[Event]:
    """Do a job. The model is dense again, bit for bit, when the stream ends, however it ends.

    loaded: the model of spec.model, if it is in memory already. All user errors that can be seen before the work are
    raised before it.
    """
    check_outputs({"save_model": spec.save_model, "run_dir": spec.run_dir, "save_data": spec.save_data})
    if spec.run_dir and spec.prune is None:
        raise UserError("--run_dir records a pruning run, but no pruning was asked: add it, or leave --run_dir out.")
    if spec.zeroshot_tasks:
        zeroshot.check_tasks(spec.zeroshot_tasks)
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
    seqlen, notice = choose_seqlen(spec.seqlen, loaded)
    if notice:
        yield notice
    yield Progress("data", 0, 1, ", ".join(spec.evaluation))
    calibration, evaluations = _load_data(spec, loaded, seqlen)
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
                    last = event.stage == Stage.REBUILT or not spec.prune.barber
                    yield from _evaluate(spec, loaded, evaluations, event.stage, last)
                    if last:
                        yield from _save(spec, loaded)
    finally:
        dense.restore()


def _evaluate(
    spec: JobSpec, loaded: LoadedModel, evaluations: list[EvaluationSet], stage: Stage, last: bool = True
) -> Iterator[Event]:
    """Perplexities and texts at every stage; zero-shot, which is slow, on the dense and the final model."""
    total = sum(len(data.tokens) for data in evaluations)
    before = 0
    for data in evaluations:
        for event in perplexity(loaded.model, data, stage):
            yield replace(event, done=event.done + before, total=total) if isinstance(event, Progress) else event
        before += len(data.tokens)
    for index, prompt in enumerate(spec.prompts):
        yield from generate(loaded.model, loaded.tokenizer, prompt, stage, max_new_tokens=TEXT_TOKENS, seed=spec.seed)
        yield Progress(f"text {stage}", index + 1, len(spec.prompts))
    if spec.zeroshot_tasks and last:
        yield from zeroshot.zero_shot(
            loaded.model, loaded.tokenizer, stage, spec.zeroshot_tasks, limit=spec.zeroshot_limit
        )


def _save(spec: JobSpec, loaded: LoadedModel) -> Iterator[Event]:
    if spec.save_model:
        save_model(loaded, spec.save_model)
        yield Saved("model", str(spec.save_model))


def choose_seqlen(seqlen: int | None, loaded: LoadedModel) -> tuple[int, Notice | None]:
    """The sequence length to use, and a notice where the default had to bend; UserError for one beyond the model's."""
    if seqlen is not None and seqlen > loaded.max_seqlen:
        raise UserError(
            f"Sequence length {seqlen} is beyond the {loaded.max_seqlen} positions of {loaded.name}: make it shorter."
        )
    if seqlen is None and loaded.max_seqlen < DEFAULT_SEQLEN:
        message = (
            f"Sequence length {loaded.max_seqlen}: the published default is {DEFAULT_SEQLEN}, the model has no more."
        )
        return loaded.max_seqlen, Notice(message)
    return DEFAULT_SEQLEN if seqlen is None else seqlen, None


def _load_data(spec: JobSpec, loaded: LoadedModel, seqlen: int) -> tuple[CalibrationSet | None, list[EvaluationSet]]:
    calibration = None
    if spec.prune and needs_calibration(spec.prune):
        calibration = load_calibration(
            spec.calibration,
            loaded.tokenizer,
            spec.nsamples,
            seqlen,
            spec.seed,
            evaluation=spec.evaluation,
            cache_dir=spec.datasets_cache_dir,
        )
    evaluations = [
        load_evaluation(
            source,
            loaded.tokenizer,
            seqlen,
            calibration=spec.calibration if calibration else None,
            windows=spec.eval_windows,
            cache_dir=spec.datasets_cache_dir,
        )
        for source in dict.fromkeys(spec.evaluation)
    ]
    sets = [(spec.calibration, calibration.tokens)] if calibration else []
    evaluations = _distinct(evaluations, spec.evaluation)
    check_vocabulary(loaded, [*sets, *((data.dataset, data.tokens) for data in evaluations)])
    return calibration, evaluations


def _distinct(evaluations: list[EvaluationSet], specs: Iterable[str]) -> list[EvaluationSet]:
    """Data sets with names of their own: files of one name are told apart by their whole path."""
    names = [data.dataset for data in evaluations]
    return [
        replace(data, dataset=f"{spec}: {data.dataset}") if names.count(data.dataset) > 1 else data
        for data, spec in zip(evaluations, dict.fromkeys(specs), strict=True)
    ]


def check_vocabulary(loaded: LoadedModel, sets: Iterable[tuple[str, torch.Tensor]]) -> None:
    """UserError if any token id is beyond the model's embedding, as ids made with another tokenizer are."""
    size = loaded.model.get_input_embeddings().num_embeddings
    for source, tokens in sets:
        if tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"{source} holds token id {int(tokens.max())}, but {loaded.name} knows {size} tokens: give ids "
                "made with this model's tokenizer."
            )


def _costs(spec: JobSpec, layers: int, evaluations: list[EvaluationSet]) -> dict[str, float]:
    """Phases and their cost in sequence-layers, for the ETA."""
    stages = [Stage.DENSE]
    costs: dict[str, float] = {}
    if spec.prune:
        stages += [Stage.INITIAL, Stage.REBUILT] if spec.prune.barber else [Stage.INITIAL]
    windows = sum(len(data.tokens) for data in evaluations)
    for stage in stages:
        if stage == Stage.INITIAL:
            calibrated = spec.prune.method in METHODS and METHODS[spec.prune.method].statistic is not None
            costs["initial mask"] = layers * (2 * spec.nsamples if calibrated else 1)
        if stage == Stage.REBUILT:
            costs["rebuild"] = layers * spec.nsamples * REBUILD_COST
        costs[f"perplexity {stage}"] = layers * windows
        costs[f"text {stage}"] = layers * len(spec.prompts)
        if spec.zeroshot_tasks and stage in (Stage.DENSE, stages[-1]):
            costs[f"zero-shot {stage}"] = layers * len(spec.zeroshot_tasks) * (spec.zeroshot_limit or ZERO_SHOT_SAMPLES)
    return {phase: cost for phase, cost in costs.items() if cost}
