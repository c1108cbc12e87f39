"""The one owner of models and run directories in a process."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from barber.errors import UserError
from barber.evaluate import generate
from barber.events import Event, Progress, Stage, StageReached
from barber.job import run_job
from barber.load import LoadedModel, load
from barber.model import DecoderView
from barber.runs import RunDirectory
from barber.spec import JobSpec
from barber.stages import at_stage

Job = Callable[[LoadedModel], Iterator[Event]]
KEPT_SECONDS = 24 * 3600
RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")


class Hub:
    """Holds one loaded model, lends it to one job at a time, and knows where the runs are.

    A run is known by an id that cannot be guessed: whoever holds it may look at the run, nobody else. After every job
    the model is checked to be dense again; one that is not is thrown away.
    """

    def __init__(self, runs: Path | None = None) -> None:
        self.temporary = runs is None
        self.runs = Path(tempfile.mkdtemp(prefix="barber-runs-")) if runs is None else Path(runs)
        self.runs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._loaded: LoadedModel | None = None

    def new_run(self) -> str:
        """The id of a run to come. Runs that nobody asked to keep go after a day."""
        if self.temporary:
            for path in self.runs.iterdir():
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return secrets.token_urlsafe(16)

    def path(self, run_id: str) -> Path:
        """The directory of a run. The id is checked, so that it can name nothing outside `runs`."""
        if not RUN_ID.fullmatch(run_id or ""):
            raise UserError("This is not the id of a run: start a run first.")
        return self.runs / run_id

    def stop(self, run_id: str | None) -> None:
        """Mark a run as stopped. A file, since on ZeroGPU the run goes on in another process."""
        if run_id:
            self.path(run_id).with_suffix(".stopped").touch()

    def stopped(self, run_id: str) -> bool:
        return self.path(run_id).with_suffix(".stopped").exists()

    def hush(self, run_id: str | None, on: bool) -> None:
        """Mark that no more texts of a run are wanted, or take the mark away."""
        if run_id and on:
            self.path(run_id).with_suffix(".hushed").touch()
        elif run_id:
            self.path(run_id).with_suffix(".hushed").unlink(missing_ok=True)

    def hushed(self, run_id: str) -> bool:
        return self.path(run_id).with_suffix(".hushed").exists()

    def events(self, run_id: str | None) -> list[Event]:
        """The events of a run as far as it came; none where no pruning has begun."""
        if not run_id or not (self.path(run_id) / "config.json").exists():
            return []
        return RunDirectory(self.path(run_id)).events()

    def run(self, run_id: str, spec: JobSpec) -> Iterator[Event]:
        """The whole job as a stream of events, written to the run's directory as it goes."""

        def job(loaded: LoadedModel) -> Iterator[Event]:
            prompts = spec.prompts if loaded.tokenizer else ()
            return run_job(replace(spec, run_dir=self.path(run_id), prompts=prompts), loaded)

        return self._lend(spec.model, job)

    def texts(self, run_id: str, prompt: str, tokens: int, temperature: float, seed: int) -> Iterator[Event]:
        """The prompt continued by the model of a run at each of its stages, one after the other."""
        run = RunDirectory(self.path(run_id))

        def write(loaded: LoadedModel) -> Iterator[Event]:
            if loaded.tokenizer is None:
                raise UserError(f"Model {loaded.name} has no tokenizer, so it cannot write text.")
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

        return self._lend(run.config["model"], write)

    def _lend(self, name: str, job: Job) -> Iterator[Event]:
        """The events of `job` while it alone holds the model."""
        while not self._lock.acquire(timeout=0.1):
            yield Progress("waiting", 0, 1, "another run holds the model")
        try:
            yield Progress("load", 0, 1, name)
            loaded = self._model(name)
            dense = fingerprint(loaded)
            try:
                yield from job(loaded)
            finally:
                if fingerprint(loaded) != dense:
                    self._loaded = None
        finally:
            self._lock.release()

    def _model(self, name: str) -> LoadedModel:
        """The loaded model; another one is let go first, so that two never fill the memory together."""
        if self._loaded is None or self._loaded.name != name:
            self._loaded = None
            self._loaded = load(name)
        return self._loaded


def fingerprint(loaded: LoadedModel) -> list[tuple[float, int]]:
    """Sum and number of non-zeros of every prunable weight: any pruning changes it."""
    return [
        (weight.view.float().sum().item(), int(weight.view.count_nonzero()))
        for layer in DecoderView(loaded.model).layers
        for weight in layer.weights
    ]


def reached(events: list[Event]) -> list[Stage]:
    """The stages whose masks the run has for every layer: dense always."""
    stages = {str(event.stage) for event in events if isinstance(event, StageReached)}
    return [stage for stage in Stage if stage is Stage.DENSE or stage in stages]
