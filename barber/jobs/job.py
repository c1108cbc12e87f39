"""Run a whole job as one stream of events: load, calibrate, evaluate, prune, rebuild, evaluate again, save.

The command line and the app both iterate over `run_job`; they differ only in how they display its events.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from barber.atomic_files import check_room
from barber.data.token_sets import CalibrationSet, EvaluationSet
from barber.errors import UserError
from barber.evaluation import zero_shot
from barber.evaluation.generation import check_prompt
from barber.events import Event, JobPlanned, Notice, Progress, RunFinished, RunStarted, Saved, Stage, StageReached
from barber.job_spec import JobSpec
from barber.jobs.card import History
from barber.jobs.comparison import Comparison
from barber.jobs.costs import costs, finished_shares
from barber.jobs.data import choose_seqlen, load_data
from barber.jobs.measurement import DensePerplexities, Measurement
from barber.jobs.outputs import check_model_room, check_outputs, save_calibration, save_gains
from barber.jobs.resumption import open_recording
from barber.jobs.setup import JobSetup, set_up_job, sizes
from barber.jobs.speed import measure_speed
from barber.memory import is_out_of_memory
from barber.models.decoder import State
from barber.models.loading import LoadedModel
from barber.pruning.distributed import Ranks
from barber.pruning.prune import check_request, describe, prune
from barber.runs.directory import read_masks
from barber.runs.recorder import record
from barber.runs.resume import is_saved
from barber.runs.saved_model import is_noted
from barber.runs.writer_lock import one_writer


def run_job(
    spec: JobSpec,
    loaded: LoadedModel | None = None,
    *,
    resumed: bool = False,
    ranks: Ranks | None = None,
    notices: Sequence[str] = (),
    dense: DensePerplexities | None = None,
) -> Generator[Event, None, None]:
    """Run a job. The dense weights of the model are restored, bit for bit, when the stream ends, even after an error.

    loaded: the model of spec.model, if it is already in memory. resumed: spec.run_dir contains an interrupted run of
    this job; the events of its finished parts are yielded again, but these parts are not repeated. ranks: the processes
    that share the calibration sequences. notices: sentences about the settings, which begin the stream. dense: the
    perplexities of this dense model that earlier jobs measured, which are not measured again; new ones are added.
    UserErrors that can be detected before the computation are raised before it.
    """
    yield from map(Notice, notices)
    try:
        with ExitStack() as stack:
            spec = spec if resumed else spec.absolute()
            yield from _job_events(spec, loaded, ranks or Ranks(), stack, resumed, {} if dense is None else dense)
    except Exception as error:  # running out of memory raises errors of several types
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{spec.model} does not fit into this device's memory with {spec.nsamples} sequences: give fewer or "
            "shorter ones, --stream, a smaller model, or --device cpu."
        ) from None


def _job_events(
    spec: JobSpec,
    loaded: LoadedModel | None,
    ranks: Ranks,
    stack: ExitStack,
    resumed: bool,
    dense: DensePerplexities,
) -> Iterator[Event]:
    """Check and load everything before the first forward pass, with notices, and then run the job."""
    if not ranks.writes:  # only the first rank evaluates and writes
        spec = replace(spec, prompts=(), zeroshot_tasks=(), save_model=None, save_data=None)
    started = time.monotonic()
    _check_before_loading(spec, ranks, resumed)
    if resumed:
        yield from _lock(spec, ranks, stack)
    initial = read_masks(spec.prune.initial_masks) if spec.prune and spec.prune.initial_masks else None
    yield Progress("load", 0, 1, spec.model)
    setup = set_up_job(spec, loaded, ranks, stack, resumed)
    if setup.layerwise and spec.prompts:
        yield Notice("No texts are generated: the model is read layer by layer, which takes too long for each word.")
        spec = replace(spec, prompts=())
    _check_loaded(spec, setup, initial)
    said = [setup.inspection.describe(spec.prune.sparsity.ratio if spec.prune else None)]
    said += [setup.context.view.coverage.describe()] if spec.prune else []
    yield from map(Notice, filter(None, said))
    seqlen, notice = choose_seqlen(spec.seqlen, setup.loaded)
    yield from [notice] if notice else []
    yield Progress("data", 0, 1, ", ".join(spec.evaluation))
    calibration, evaluations = yield from load_data(spec, setup.loaded, seqlen)
    evaluations = evaluations if ranks.writes else []
    for prompt in spec.prompts:
        check_prompt(setup.loaded.model, setup.loaded.tokenizer, prompt)
    if spec.prune:
        ranks.same(str(describe(setup.context, calibration, spec.prune)), setup.context.provider.device)
    if spec.save_data and calibration:
        yield Saved("calibration", str(save_calibration(calibration, spec.save_data)))
    elif spec.save_data:
        yield Notice(f"--save_data writes no tokens to {spec.save_data}: this job needs no calibration sequences.")
    check_model_room(setup.loaded, spec.save_model)
    setup = setup.estimated(spec, calibration, seqlen)
    done: Sequence[Event] = ()
    if spec.prune and setup.folder:
        if spec.run_dir and ranks.writes:
            check_room(setup.folder, setup.context.view.packed_bytes * (2 if spec.prune.refined else 1))
        if not resumed:
            yield from _lock(spec, ranks, stack)
        done = open_recording(spec, setup, calibration, evaluations, resumed)
    known = [dense[data.fingerprint] for data in evaluations if data.fingerprint in dense]
    yield from _plan(spec, setup, calibration, seqlen, evaluations, [*done, *known], started)
    if spec.prune is None:
        measurement, history = Measurement(spec, setup, evaluations, dense=dense), History()
        yield from history.follow(measurement.measure(Stage.DENSE))
        yield from measurement.save(Stage.DENSE, history)
        return
    setup = replace(setup, context=replace(setup.context, resumed=done))
    events = _prune(setup, calibration, initial, Measurement(spec, setup, evaluations, done, dense))
    events = record(setup.folder, events, len(done)) if setup.folder else events
    if spec.save_data and spec.save_data.suffix != ".npy":
        events = save_gains(events, spec.save_data)
    with closing(events):
        yield from events


def _plan(
    spec: JobSpec,
    setup: JobSetup,
    calibration: CalibrationSet | None,
    seqlen: int,
    evaluations: Sequence[EvaluationSet],
    done: Sequence[Event],
    started: float,
) -> Iterator[Event]:
    """Yield the phases with their expected seconds, after the expected time and memory of a job that has calibration.

    done: events of a resumed run, and known measurements. started: time.monotonic() at the start of the job.
    """
    context, model = setup.context, sizes(setup)
    known = [calibration.tokens] if calibration else [data.tokens for data in evaluations]
    tokens = known[0] if known else torch.zeros(1, 2, dtype=torch.int64)
    batch = min(context.batch_of(seqlen, spec.prune) if spec.prune else 1, len(tokens))
    speed = measure_speed(context, tokens, batch, head=bool(evaluations or spec.prompts or spec.zeroshot_tasks))
    phases = costs(spec, model, speed, seqlen, [len(data.tokens) for data in evaluations], context.ranks.world)
    finished = finished_shares(phases, done, model, len(evaluations))
    if setup.needs:
        rest = sum(cost * (1 - finished.get(phase, 0)) for phase, cost in phases.items())
        yield setup.describe_needs(time.monotonic() - started + rest)
    yield JobPlanned(phases, finished)


def _check_before_loading(spec: JobSpec, ranks: Ranks, resumed: bool) -> None:
    """Raise UserErrors that can be detected before the model is loaded."""
    outputs = {"save_model": spec.save_model, "run_dir": spec.run_dir, "save_data": spec.save_data}
    if resumed:
        model = spec.save_model
        known = not model or is_saved(spec.run_dir, model) or is_noted(spec.run_dir, model)
        outputs = {} if known else {"save_model": model}
    if ranks.writes:
        check_outputs(outputs)
    for count in spec.prune.split_sizes(spec.nsamples) if spec.prune and spec.prune.needs_calibration else ():
        ranks.check_share(count)
    if spec.run_dir and spec.prune is None:
        raise UserError(
            "--run_dir records a pruning run, but the job does not prune: give --prune_method and a --sparsity_ratio "
            "above 0, or leave --run_dir out."
        )
    if spec.zeroshot_tasks:
        zero_shot.check_tasks(spec.zeroshot_tasks)


def _lock(spec: JobSpec, ranks: Ranks, stack: ExitStack) -> Iterator[Event]:
    """Lock the run directory against other writers until `stack` closes; yield a Notice if the lock is not reliable."""
    if spec.run_dir and ranks.writes:
        warning = stack.enter_context(one_writer(spec.run_dir))
        yield from [Notice(warning)] if warning else []


def _check_loaded(spec: JobSpec, setup: JobSetup, initial: Mapping[int, State] | None) -> None:
    """Raise UserErrors that can be detected after the model is loaded."""
    if setup.loaded.tokenizer is None and (spec.prompts or spec.zeroshot_tasks):
        raise UserError(
            f"Model {spec.model!r} has no tokenizer, which texts and zero-shot tasks need: add it or skip them."
        )
    if spec.prune:
        check_request(setup.context.view, spec.prune, initial)


def _prune(
    setup: JobSetup, calibration: CalibrationSet | None, initial: Mapping[int, State] | None, measurement: Measurement
) -> Generator[Event, None, None]:
    """Prune, evaluate the model at each stage and save it at the last; yield the events of a resumed run first."""
    spec, context, done = measurement.spec, setup.context, setup.context.resumed
    comparison, history = Comparison(), History()
    yield from comparison.follow(history.follow(done))
    if any(isinstance(event, RunStarted) for event in done):
        yield from history.follow(measurement.measure(Stage.DENSE))
    try:
        with closing(prune(setup.loaded.model, calibration, spec.prune, initial, context)) as events:
            for event in history.follow(events):
                if isinstance(event, RunFinished):
                    yield from comparison.notices(spec.prune)
                if not (isinstance(event, StageReached) and event in done):
                    yield event
                if isinstance(event, RunStarted):
                    yield from history.follow(measurement.measure(Stage.DENSE))
                if isinstance(event, StageReached):
                    yield from comparison.follow(history.follow(measurement.measure(Stage(event.stage))))
                    if event.stage == Stage.REBUILT or not spec.prune.refined:
                        yield from measurement.save(Stage(event.stage), history)
    finally:
        context.provider.restore()
