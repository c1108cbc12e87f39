"""The hub: it owns the loaded model and the run directories of the app's process."""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import lru_cache, partial
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
from barber.runs.checksums import EVENTS, JOB
from barber.runs.directory import RunDirectory
from barber.runs.resume import read_job
from ui.describe import describe
from ui.history import Card, History, State, digest_of, perplexities
from ui.live import Live
from ui.running import Running

Job = Callable[[LoadedModel | None], Iterator[Event]]
KEPT_SECONDS = 24 * 3600
RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
PAGE_ID = re.compile(r"[a-z0-9]{1,32}")


class Hub:
    """Keeps one loaded model, lends it to one job at a time in the order of their arrival, and keeps the runs.

    A run goes on in a thread, whether a page follows it or not. It has a random id: only who has the id may see the run
    (but see History). After each job the hub checks that the model is dense, and drops a model that is not. runs: their
    folder, a temporary one unless given. turn: seconds after which a job ends while others wait, None for no limit.
    shared: whether everybody sees all runs in the history.
    """

    def __init__(self, runs: Path | None = None, turn: float | None = None, shared: bool = False) -> None:
        self.temporary = runs is None
        self.runs = _temporary_folder("barber-runs-") if runs is None else Path(runs)
        self.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.turn = turn
        self.history = History(self.runs, shared)
        self.history.end_interrupted()
        self._signals = _temporary_folder("barber-signals-")  # files: on ZeroGPU a run goes on in another process
        self._running: dict[str, Running] = {}
        self._starting = threading.Lock()
        self._line: list[object] = []  # the jobs that wait for the model; the first one has it
        self._loaded: LoadedModel | None = None

    def new_run(self) -> str:
        """A new run id. In a temporary folder, runs older than a day are deleted."""
        if self.temporary:
            for card in self.history.all():
                if not card.state.goes_on and time.time() - card.began > KEPT_SECONDS:
                    self.history.remove(card.run)
        return secrets.token_urlsafe(16)

    def path(self, run_id: str) -> Path:
        """The directory of a run. UserError for an id that could name something outside the folders of runs."""
        if not RUN_ID.fullmatch(run_id or ""):
            raise UserError("This is not the id of a run: start a run first.")
        return self.history.path(run_id)

    def start(self, spec: JobSpec, visitor: str | None = None) -> str:
        """Put a new run into the history; its id. It begins once it is followed.

        visitor: the token of who starts it.
        """
        run = self.new_run()
        self.history.add(Card(run, describe(spec), time.time(), spec.to_dict(), owner=digest_of(visitor)))
        return run

    def resume(self, run_id: str, visitor: str | None) -> None:
        """Let a run that was stopped or interrupted continue once it is followed; UserError if it cannot."""
        card = self.history.own(run_id, visitor)
        if card.state.goes_on or card.state is State.FINISHED:
            raise UserError(f"{card.title} is {card.state}, so it cannot be resumed: choose one that was stopped.")
        self.history.update(run_id, state=State.WAITING, failure="", attempt=card.attempt + 1)

    def follow(self, run_id: str) -> Running | None:
        """A run that goes on in this process, begun if it waits; None for any other."""
        with self._starting:
            card = self.history.read(run_id)
            if card and card.state is State.WAITING:
                self.history.update(run_id, state=State.RUNNING)
                stopped = self._signal(run_id, f"{card.attempt}.stopped").exists
                events = self.run(run_id, JobSpec.from_dict(card.job), resumed=card.attempt > 0)
                running = Running(events, Live(card.title), stopped, partial(self._ended, card, time.time()))
                self._running[run_id] = running
                running.start()
            return self._running.get(run_id)

    def _ended(self, card: Card, began: float, running: Running) -> None:
        """Note the end of a run. One that was stopped is no longer known here."""
        if self._running.get(card.run) is running:
            state = State.FAILED if running.failure else State.FINISHED
            self._note(card.run, state, time.time() - began, running.failure)
            self._running.pop(card.run, None)  # a visitor may have stopped it just now

    def stop(self, run_id: str | None) -> None:
        """Stop a run; what it has recorded stays. Returns at once: it ends at its next event."""
        card = self.history.read(run_id) if run_id else None
        if card and card.state.goes_on:
            self._signal(run_id, f"{card.attempt}.stopped").touch()
            self._running.pop(run_id, None)
            self._note(run_id, State.STOPPED, time.time() - card.began)

    def _note(self, run_id: str, state: State, seconds: float, failure: str = "") -> None:
        measured = perplexities(self.events(run_id))
        self.history.update(run_id, state=state, seconds=seconds, failure=failure, perplexities=measured)

    def leave(self, run_id: str | None, page: str) -> None:
        """Mark that a page, given by its session, no longer shows this run."""
        if run_id and PAGE_ID.fullmatch(page):
            self._signal(run_id, f"{page}.left").touch()

    def left(self, run_id: str, page: str) -> bool:
        return self._signal(run_id, f"{page}.left").exists()

    def come_back(self, run_id: str, page: str) -> None:
        """Mark that a page shows this run again."""
        self._signal(run_id, f"{page}.left").unlink(missing_ok=True)

    def _signal(self, run_id: str, what: str) -> Path:
        return self._signals / f"{self.path(run_id).name}.{what}"

    def begin_writing(self, run_id: str | None) -> str:
        """Begin to generate texts of a run, which ends any other generation of it; a token that identifies this one."""
        token = secrets.token_hex(8)
        if run_id:
            self._signal(run_id, "writing").write_text(token)
        return token

    def writing(self, run_id: str | None) -> str:
        """The token of the generation of a run that goes on, "" if there is none."""
        try:
            return self._signal(run_id, "writing").read_text() if run_id else ""
        except FileNotFoundError:
            return ""

    def end_writing(self, run_id: str | None, token: str | None = None) -> None:
        """End the generation of a run with this token, or any."""
        if run_id and (token is None or token == self.writing(run_id)):
            self._signal(run_id, "writing").unlink(missing_ok=True)

    def events(self, run_id: str | None) -> list[Event]:
        """The events of a run so far; none if its pruning has not begun."""
        try:
            written = (self.path(run_id) / EVENTS).stat() if run_id else None
        except FileNotFoundError:
            written = None
        return _events(self.path(run_id), written.st_mtime_ns, written.st_size) if written else []

    def has_results(self, run_id: str | None) -> bool:
        """Whether the views can show a run: it has ended, or rebuilt a sub-block before it was stopped."""
        return any(isinstance(event, (SubBlockRebuilt, RunFinished)) for event in self.events(run_id))

    def run(self, run_id: str, spec: JobSpec, resumed: bool = False) -> Iterator[Event]:
        """The whole job as a stream of events, written to the run's directory as it goes.

        resumed: whether it continues what the directory has of it already.
        """
        path = self.path(run_id)

        def job(loaded: LoadedModel | None) -> Iterator[Event]:
            if resumed and (path / JOB).exists():
                return run_job(read_job(path), loaded, resumed=True)
            prompts = () if loaded and not loaded.tokenizer else spec.prompts
            path.mkdir(mode=0o700, exist_ok=True)  # no other user of the machine may read a visitor's run
            return run_job(replace(spec, run_dir=path, prompts=prompts), loaded)

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


@lru_cache(maxsize=8)
def _events(path: Path, modified: int, size: int) -> list[Event]:
    """The events of a run directory, none if its pruning has not begun. modified, size: of their file, which grows."""
    return RunDirectory(path).events() if (path / "config.json").exists() else []


def _temporary_folder(prefix: str) -> Path:
    """A new folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


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
