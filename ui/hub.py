"""The hub: it owns the loaded model and the run directories of the app's process."""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from barber.errors import UserError
from barber.evaluation.generation import generate
from barber.events import Event, Progress, RunFinished, Stage, StageReached, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.jobs.presets import FIRST_LOOK as PRESET
from barber.jobs.setup import set_up_job
from barber.models.decoder import DecoderView
from barber.models.loading import LoadedModel
from barber.pruning.distributed import Ranks
from barber.runs.apply import at_stage
from barber.runs.directory import RunDirectory

Job = Callable[[LoadedModel | None], Iterator[Event]]
KEPT_SECONDS = 24 * 3600
RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")


class Hub:
    """Keeps one loaded model, lends it to one job at a time in the order of their arrival, and keeps the runs.

    A run has a random id, and only who has the id may see the run. After each job the hub checks that the model is
    dense, and drops a model that is not. turn: seconds after which a job ends while others wait, None for no limit.
    """

    def __init__(self, runs: Path | None = None, turn: float | None = None) -> None:
        self.temporary = runs is None
        self.runs = Path(tempfile.mkdtemp(prefix="barber-runs-")) if runs is None else Path(runs)
        self.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.temporary:
            atexit.register(shutil.rmtree, self.runs, ignore_errors=True)
        self.turn = turn
        self._line: list[object] = []  # the jobs that wait for the model; the first one has it
        self._loaded: LoadedModel | None = None

    def new_run(self) -> str:
        """A new run id. In a temporary folder, runs older than a day are deleted."""
        if self.temporary:
            for path in self.runs.iterdir():
                with suppress(FileNotFoundError):  # another visitor's run has just done the same
                    if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return secrets.token_urlsafe(16)

    def path(self, run_id: str) -> Path:
        """The directory of a run. UserError for an id that could name something outside `runs`."""
        if not RUN_ID.fullmatch(run_id or ""):
            raise UserError("This is not the id of a run: start a run first.")
        return self.runs / run_id

    def stop(self, run_id: str | None) -> None:
        """Mark a run as stopped. A file, since on ZeroGPU the run goes on in another process."""
        if run_id:
            self.path(run_id).with_suffix(".stopped").touch()

    def stopped(self, run_id: str) -> bool:
        return self.path(run_id).with_suffix(".stopped").exists()

    def leave(self, run_id: str | None) -> None:
        """Mark that the page of this run shows another run from now on."""
        if run_id:
            self.path(run_id).with_suffix(".left").touch()

    def left(self, run_id: str) -> bool:
        return self.path(run_id).with_suffix(".left").exists()

    def begin_writing(self, run_id: str | None) -> str:
        """Begin to generate texts of a run, which ends any other generation of it; a token that identifies this one."""
        token = secrets.token_hex(8)
        if run_id:
            self.path(run_id).with_suffix(".writing").write_text(token)
        return token

    def writing(self, run_id: str | None) -> str:
        """The token of the generation of a run that goes on, "" if there is none."""
        try:
            return self.path(run_id).with_suffix(".writing").read_text() if run_id else ""
        except FileNotFoundError:
            return ""

    def end_writing(self, run_id: str | None, token: str | None = None) -> None:
        """End the generation of a run with this token, or any."""
        if run_id and (token is None or token == self.writing(run_id)):
            self.path(run_id).with_suffix(".writing").unlink(missing_ok=True)

    def events(self, run_id: str | None) -> list[Event]:
        """The events of a run so far; none if its pruning has not begun."""
        if not run_id or not (self.path(run_id) / "config.json").exists():
            return []
        return RunDirectory(self.path(run_id)).events()

    def has_results(self, run_id: str | None) -> bool:
        """Whether the views can show a run: it has ended, or rebuilt a sub-block before it was stopped."""
        return any(isinstance(event, (SubBlockRebuilt, RunFinished)) for event in self.events(run_id))

    def run(self, run_id: str, spec: JobSpec) -> Iterator[Event]:
        """The whole job as a stream of events, written to the run's directory as it goes."""

        def job(loaded: LoadedModel | None) -> Iterator[Event]:
            prompts = () if loaded and not loaded.tokenizer else spec.prompts
            self.path(run_id).mkdir(mode=0o700, exist_ok=True)  # no other user of the machine may read a visitor's run
            return run_job(replace(spec, run_dir=self.path(run_id), prompts=prompts), loaded)

        return self._lend(spec, job)

    def texts(self, run_id: str, prompt: str, tokens: int, temperature: float, seed: int) -> Iterator[Event]:
        """The prompt continued by the model of a run at each of its stages, one after the other."""
        run = RunDirectory(self.path(run_id))

        def write(loaded: LoadedModel | None) -> Iterator[Event]:
            if loaded is None:
                raise UserError(
                    f"Model {run.config['model']} does not fit into the memory, so it cannot generate text here."
                )
            if loaded.tokenizer is None:
                raise UserError(f"Model {loaded.name} has no tokenizer, so it cannot generate text.")
            for stage in reached(run.events()):
                with at_stage(loaded, run, stage):
                    yield from generate(
                        loaded.model,
                        loaded.tokenizer,
                        prompt,
                        stage,
                        max_new_tokens=tokens,
                        temperature=temperature,
                        seed=seed,
                    )

        return self._lend(JobSpec(model=run.config["model"], prune=PRESET.prune), write)

    def _lend(self, spec: JobSpec, job: Job) -> Iterator[Event]:
        """The events of `job` while it alone holds the model: None where it is to be read layer by layer."""
        ticket = object()
        self._line.append(ticket)
        try:
            while (before := self._line.index(ticket)) > 0:
                yield Progress("waiting", 0, 1, f"{before} {'job' if before == 1 else 'jobs'} before yours")
                time.sleep(0.1)
            yield Progress("load", 0, 1, spec.model)
            loaded = self._model(spec)
            dense = fingerprint(loaded) if loaded else []
            try:
                with closing(job(loaded)) as events:
                    yield from self._within_turn(events)
            finally:
                if loaded and fingerprint(loaded) != dense:
                    self._loaded = None
        finally:
            self._line.remove(ticket)

    def _within_turn(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events of a job; UserError once it has taken longer than its turn and others wait."""
        began = time.monotonic()
        for event in events:
            yield event
            if self.turn is not None and len(self._line) > 1 and time.monotonic() - began > self.turn:
                raise UserError(
                    f"This took more than {self.turn / 60:g} minutes while others waited, so it was stopped: give "
                    "fewer or shorter sequences, or a smaller model."
                )

    def _model(self, spec: JobSpec) -> LoadedModel | None:
        """The loaded model, or None for layerwise loading: the job asks for it, or the model does not fit into memory.

        The model that was loaded before is dropped first, so that there are never two in memory.
        """
        held = self._loaded is not None and self._loaded.name == spec.model
        if not held or spec.stream or spec.max_memory:
            self._loaded = None
            with ExitStack() as stack:
                setup = set_up_job(spec, None, Ranks(), stack, resumed=False)
            self._loaded = None if setup.layerwise else setup.loaded
        return self._loaded


def fingerprint(loaded: LoadedModel) -> list[tuple[float, int]]:
    """Sum and number of non-zeros of every prunable weight: any pruning changes it."""
    return [
        (weight.view.float().sum().item(), int(weight.view.count_nonzero()))
        for layer in DecoderView(loaded.model).layers
        for weight in layer.weights
    ]


def reached(events: list[Event]) -> list[Stage]:
    """The stages of which the run has the masks of every layer; dense is always one."""
    stages = {str(event.stage) for event in events if isinstance(event, StageReached)}
    return [stage for stage in Stage if stage is Stage.DENSE or stage in stages]
