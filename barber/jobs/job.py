"""A whole job as one stream: load, calibrate, evaluate, prune, rebuild, evaluate again, save.

The command line and the app both consume `run_job`; what differs between them is only how they show its events.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

from barber.atomic_files import check_room, write_json
from barber.data.token_sets import CalibrationSet, EvaluationSet
from barber.errors import UserError
from barber.evaluation import zero_shot
from barber.evaluation.generation import check_prompt, generate
from barber.evaluation.perplexity import perplexity, perplexity_by_layer
from barber.events import (
    Event,
    JobPlanned,
    Notice,
    PerplexityMeasured,
    Progress,
    RunStarted,
    Saved,
    Stage,
    StageReached,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.job_spec import JobSpec
from barber.jobs.costs import costs
from barber.jobs.data import choose_seqlen, load_data
from barber.jobs.outputs import check_outputs, save_calibration
from barber.jobs.setup import JobSetup, set_up_job
from barber.memory import is_out_of_memory
from barber.models.decoder import check_finite
from barber.models.loading import LoadedModel
from barber.models.saving import save_model
from barber.pruning.distributed import Ranks
from barber.pruning.problem import split_sequences
from barber.pruning.prune import check_initial, describe, prune
from barber.runs import resume
from barber.runs.directory import RunDirectory, read_masks
from barber.runs.environment import describe_environment, model_hash
from barber.runs.recorder import create, record

TEXT_TOKENS = 120


def run_job(
    spec: JobSpec, loaded: LoadedModel | None = None, *, resumed: bool = False, ranks: Ranks | None = None
) -> Generator[Event, None, None]:
    """Do a job. The model is dense again, bit for bit, when the stream ends, however it ends.

    loaded: the model of spec.model, if it is in memory already. resumed: spec.run_dir holds this very job, which was
    begun before; what it finished comes again as events, and is not done again. ranks: the processes that share it.
    All user errors that can be seen before the work are raised before it.
    """
    try:
        with ExitStack() as stack:
            yield from _Job(spec, ranks or Ranks(), stack, resumed).run(loaded)
    except Exception as error:  # what runs out of memory raises what it likes
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{spec.model} does not fit into this device's memory with {spec.nsamples} sequences: give fewer or "
            "shorter ones, --stream, a smaller model, or --device cpu."
        ) from None


@dataclass
class _Job:
    """One job at work. kept: the events of the run that it goes on with, if it was begun before."""

    spec: JobSpec
    ranks: Ranks
    stack: ExitStack
    resumed: bool
    kept: list[Event] = field(default_factory=list)

    def run(self, loaded: LoadedModel | None) -> Iterator[Event]:
        if not self.ranks.writes:  # the first rank evaluates and writes for all
            self.spec = replace(self.spec, prompts=(), zeroshot_tasks=(), save_model=None, save_data=None)
        spec = self.spec
        self._check()
        initial = read_masks(spec.prune.initial_masks) if spec.prune and spec.prune.initial_masks else None
        yield Progress("load", 0, 1, spec.model)
        means = set_up_job(spec, loaded, self.ranks, self.stack, self.resumed)
        loaded, view = means.loaded, means.context.view
        if means.streamed and spec.prompts:
            yield Notice("No texts are written: the model is read layer by layer, which takes too long for each word.")
            self.spec = spec = replace(spec, prompts=())
        if loaded.tokenizer is None and (spec.prompts or spec.zeroshot_tasks):
            raise UserError(
                f"Model {spec.model!r} has no tokenizer, which texts and zero-shot tasks need: add it or skip them."
            )
        if spec.prune:
            check_finite(loaded.model)
            view.check_width(spec.prune.sparsity.m)
            if initial:
                check_initial(view, initial, spec.prune)
        seqlen, notice = choose_seqlen(spec.seqlen, loaded)
        yield from [notice] if notice else []
        yield Progress("data", 0, 1, ", ".join(spec.evaluation))
        calibration, evaluations = load_data(spec, loaded, seqlen)
        evaluations = evaluations if self.ranks.writes else []
        for prompt in spec.prompts:
            check_prompt(loaded.model, loaded.tokenizer, prompt)
        if spec.prune:
            self.ranks.same(
                str(describe(means.context, calibration, spec.prune, spec.model)), means.context.provider.device
            )
        if spec.save_data and calibration:
            save_calibration(calibration, spec.save_data)
            yield Saved("calibration", str(spec.save_data))
        means = means.estimate(spec, calibration, seqlen)
        if means.needs:
            yield means.told()
        yield JobPlanned(costs(spec, len(view.layers), evaluations))
        events = self._work(means, calibration, evaluations, initial)
        if means.folder and spec.prune:
            if spec.run_dir and self.ranks.writes:
                check_room(means.folder, view.packed_bytes * (2 if spec.prune.refined else 1))
            skip = self._reopen(means, calibration)
            events = record(means.folder, events, skip)
        with closing(events):
            yield from events

    def _check(self) -> None:
        """What can be refused before a model is loaded."""
        spec = self.spec
        outputs = {"save_model": spec.save_model, "run_dir": spec.run_dir, "save_data": spec.save_data}
        if self.resumed:
            done = RunDirectory(spec.run_dir).events() if (spec.run_dir / "config.json").exists() else []
            saved = any(isinstance(event, Saved) and event.what == "model" for event in done)
            outputs = {flag: path for flag, path in outputs.items() if flag == "save_model" and not saved}
        if self.ranks.writes:
            check_outputs(outputs)
        if spec.run_dir and spec.prune is None:
            raise UserError(
                "--run_dir records a pruning run, but no pruning was asked: add it, or leave --run_dir out."
            )
        if spec.zeroshot_tasks:
            zero_shot.check_tasks(spec.zeroshot_tasks)
        if spec.prune and spec.prune.refined:
            split_sequences(spec.nsamples, spec.prune)

    def _reopen(self, means: JobSetup, calibration: CalibrationSet | None) -> int:
        """Make the run directory or go on in it; how many events it has."""
        if not self.resumed:
            create(means.folder, self.spec)
            return 0
        if not self.ranks.writes:  # goes on in a copy of what the first rank has put in order
            self.ranks.wait()
            shutil.copytree(self.spec.run_dir, means.folder)
        before = RunDirectory(means.folder).environment if (means.folder / "config.json").exists() else {}
        if before and before["model_hash"] != model_hash(means.context.provider, means.context.view):
            raise UserError(
                f"{self.spec.model} does not have the weights that the run in {means.folder} was begun with: give back "
                "that model, or start a new run."
            )
        started = describe(means.context, calibration, self.spec.prune, self.spec.model)
        finished = resume.reopen(means.folder, started)
        if self.ranks.writes:
            self.ranks.wait()
        self.kept = [*finished.before, *finished.events]
        return finished.recorded

    def _work(
        self,
        means: JobSetup,
        calibration: CalibrationSet | None,
        evaluations: list[EvaluationSet],
        initial: dict | None,
    ) -> Iterator[Event]:
        spec = self.spec
        yield from self.kept
        if spec.prune is None:
            yield from self._evaluate(means, evaluations, Stage.DENSE)
            yield from self._save(means, Stage.DENSE)
            return
        if any(isinstance(event, RunStarted) for event in self.kept):
            yield from self._evaluate(means, evaluations, Stage.DENSE)
        provider = means.context.provider
        try:
            events = prune(
                means.loaded.model,
                calibration,
                spec.prune,
                initial=initial,
                context=means.context,
                recorded=means.recorded,
                kept=self.kept,
                name=spec.model,
            )
            with closing(events):
                for event in events:
                    if not (isinstance(event, StageReached) and event in self.kept):
                        yield event
                    if isinstance(event, RunStarted):
                        if spec.run_dir and self.ranks.writes:
                            environment = describe_environment(provider, means.context.view, spec.seed, event)
                            write_json(means.folder / "environment.json", environment)
                        yield from self._evaluate(means, evaluations, Stage.DENSE)
                    if isinstance(event, StageReached):
                        yield from self._evaluate(means, evaluations, Stage(event.stage))
                        if event.stage == Stage.REBUILT or not spec.prune.refined:
                            yield from self._save(means, Stage(event.stage))
        finally:
            provider.restore()

    def _evaluate(self, means: JobSetup, evaluations: list[EvaluationSet], stage: Stage) -> Iterator[Event]:
        """Perplexities, texts and zero-shot tasks of the model as it is at a stage, as far as they are missing."""
        spec, loaded = self.spec, means.loaded
        there = [event for event in self.kept if getattr(event, "stage", None) == stage]
        known = {event.dataset for event in there if isinstance(event, PerplexityMeasured)}
        told = {event.prompt for event in there if isinstance(event, TextGenerated)}
        total = sum(len(data.tokens) for data in evaluations)
        before = 0
        for data in evaluations:
            if data.dataset in known:
                continue
            if means.streamed:
                state = None if stage == Stage.DENSE else lambda layer: means.recorded(layer, stage)
                yield from perplexity_by_layer(means.context, data, stage, state)
                continue
            for event in perplexity(loaded.model, data, stage):
                yield replace(event, done=event.done + before, total=total) if isinstance(event, Progress) else event
            before += len(data.tokens)
        for index, prompt in enumerate(spec.prompts):
            if prompt not in told:
                yield from generate(
                    loaded.model, loaded.tokenizer, prompt, stage, max_new_tokens=TEXT_TOKENS, seed=spec.seed
                )
            yield Progress(f"text {stage}", index + 1, len(spec.prompts))
        done = {event.task for event in self.kept if isinstance(event, ZeroShotSkipped)}
        done |= {event.task for event in there if isinstance(event, ZeroShotMeasured)}
        if tasks := tuple(task for task in spec.zeroshot_tasks if task not in done):
            yield from zero_shot.zero_shot(loaded.model, loaded.tokenizer, stage, tasks, limit=spec.zeroshot_limit)

    def _save(self, means: JobSetup, stage: Stage) -> Iterator[Event]:
        spec = self.spec
        if spec.save_model and Saved("model", str(spec.save_model)) not in self.kept:
            if means.streamed:
                means.streamed.save(spec.save_model, lambda layer: means.final(layer, stage))
            else:
                save_model(means.loaded, spec.save_model)
            yield Saved("model", str(spec.save_model))
