"""Run the jobs of a grid one after the other, each in its own run directory, as one stream of events.

A sweep's folder has `runs/<name of the job>`, `sweep.json` with the jobs and the settings that differ, and the tables
results.csv and results.md (sweep_table.py), which are written after each job. The same sweep into the same folder goes
on: finished jobs are not run again, an interrupted one is resumed, a failed one is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from barber.atomic_files import reason_and_remedy, write_json
from barber.data.sources import local_file
from barber.errors import UserError, first_line
from barber.evaluation import zero_shot
from barber.events import Event, RunFinished, SweepJobEnded, SweepJobStarted, SweepPlanned
from barber.job_spec import JobSpec
from barber.jobs.forecast import forecast
from barber.jobs.grid import GridError, SweepJob, axes
from barber.jobs.job import run_job
from barber.jobs.measurement import DensePerplexities
from barber.jobs.setup import reads_by_layer
from barber.jobs.sweep_table import Results
from barber.models.loading import LoadedModel, find_source, load_source
from barber.runs.checksums import JOB
from barber.runs.directory import RunDirectory
from barber.runs.resume import job_difference
from barber.runs.writer_lock import LOCK, WRITER, one_writer

SWEEP, RUNS = "sweep.json", "runs"
BEFORE_SWEEP = {LOCK, WRITER, f"{WRITER}.part", f"{SWEEP}.part"}  # files that a process killed at its start may leave


def run_sweep(jobs: Sequence[SweepJob], folder: Path) -> Generator[Event, None, None]:
    """Run the jobs of a sweep into a new or empty folder, or that of an earlier sweep.

    Yields SweepPlanned, and for each job SweepJobStarted, its own events and SweepJobEnded; for a job that has finished
    before, the last only. A job that fails does not end the sweep. Jobs of one model follow each other, and the model
    is loaded once, and its dense perplexities are measured once, unless the jobs read it layer by layer. Raises
    GridError for jobs that cannot run, before any of them, and UserError if the folder cannot be written.
    """
    jobs = by_model(jobs)
    folder = folder.expanduser().absolute()
    seconds = expected_seconds(jobs)
    check_folder(folder)
    with one_writer(folder):
        done = {job.name for job in jobs if is_finished(job, folder / RUNS / job.name)}
        results = Results(folder, jobs)
        with _writing(folder):
            write_json(folder / SWEEP, {"axes": axes(jobs), "jobs": {job.name: job.values for job in jobs}})
            results.write()
        yield SweepPlanned({name: 0.0 if name in done else seconds[name] for name in seconds})
        lender = _Lender()
        for job in jobs:
            error = ""
            if job.name not in done:
                yield SweepJobStarted(job.name)
                error = yield from _run(job, folder / RUNS / job.name, lender)
            with _writing(folder):
                results.add(job, error)
            yield SweepJobEnded(job.name, error)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise a UserError where the tables cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"The sweep cannot be written to {folder} {reason_and_remedy(error)}.") from None


def by_model(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """The jobs in their order, but those of one model together."""
    groups: dict[object, list[SweepJob]] = {}
    for job in jobs:
        groups.setdefault(model_of(job.spec), []).append(job)
    return [job for group in groups.values() for job in group]


def model_of(spec: JobSpec) -> tuple[object, ...]:
    """The settings that decide which model a job has in memory."""
    return (
        spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code, spec.stream, spec.max_memory
    )  # fmt: skip


def expected_seconds(jobs: Sequence[SweepJob]) -> dict[str, float]:
    """Name -> expected seconds of the job. Raises GridError for those that cannot run, as far as that can be seen."""
    seconds, mistakes = {}, []
    for job in jobs:
        try:
            for source in (job.spec.calibration, *job.spec.evaluation):
                local_file(source)
            if job.spec.zeroshot_tasks:
                zero_shot.check_tasks(job.spec.zeroshot_tasks)
            expected = forecast(job.spec)
            seconds[job.name] = expected.seconds if expected else 1.0
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise GridError(mistakes)
    return seconds


def check_folder(folder: Path) -> None:
    """UserError unless the folder is new, empty or that of a sweep."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a new one, or that of the sweep that is to go on.")
    ours = (folder / SWEEP).is_file() or all(place.name in BEFORE_SWEEP for place in folder.glob("*"))
    if not ours:
        raise UserError(f"{folder} holds something else than a sweep: give a new or empty folder.")


def is_finished(job: SweepJob, path: Path) -> bool:
    """Whether a run directory has a run of this job that reached its end."""
    try:
        ended = any(isinstance(event, RunFinished) for event in RunDirectory(path).events())
        return ended and not job_difference(path, job.spec)
    except UserError:  # none, or a damaged one, which its resumption repairs or refuses
        return False


@dataclass
class _Lender:
    """Has one model in memory at a time, for the jobs that follow each other.

    Attributes:
        key: see `model_of`; None before the first.
        loaded: None for a model that is read layer by layer.
        dense: perplexities of the dense model.
    """

    key: object = None
    loaded: LoadedModel | None = None
    dense: DensePerplexities = field(default_factory=dict)

    def lend(self, spec: JobSpec) -> None:
        """Load the model of a job unless it is there. Raises UserError."""
        if model_of(spec) == self.key:
            return
        self.key, self.loaded, self.dense = None, None, {}
        source = find_source(spec.model, spec.device, spec.dtype, spec.cache_dir, spec.trust_remote_code)
        self.loaded = None if reads_by_layer(spec, source) else load_source(source)
        self.key = model_of(spec)


def _run(job: SweepJob, path: Path, lender: _Lender) -> Generator[Event, None, str]:
    """Run or resume a job; return the sentence of one that fails, else ""."""
    spec = replace(job.spec, run_dir=path)
    try:
        resumed = (path / JOB).is_file()
        if resumed and (found := job_difference(path, spec)):
            raise UserError(f"The run in {path} has other settings ({'; '.join(found)}): move it away.")
        lender.lend(spec)
        with closing(run_job(spec, lender.loaded, resumed=resumed, dense=lender.dense)) as events:
            yield from events
    except UserError as error:
        return str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("The job %s failed", job.name)
        return f"The job ended with a defect of this program, {type(error).__name__}: {first_line(error)}."
    return ""
