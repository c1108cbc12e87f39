"""The history of the runs: what each was, how it ended, and who may see and change it.

A run recorded by the app has a card beside its run directory, `<run id>.json`. A run directory that the command line
recorded in the same folder has none, and gets one from what it has recorded. The examples that come with the app are
run directories with cards, too, which everybody sees and nobody changes.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from barber.atomic_files import write_json
from barber.errors import UserError
from barber.events import Event, PerplexityMeasured, RunFinished
from barber.runs.directory import RunDirectory
from barber.runs.resume import read_job
from ui.describe import describe

LONGEST_TITLE = 200  # characters
EXAMPLES = Path(__file__).parents[1] / "assets" / "runs"


class State(StrEnum):
    """How far a run is. One whose process ended before it did is interrupted."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def goes_on(self) -> bool:
        return self in (State.WAITING, State.RUNNING)


@dataclass(frozen=True)
class Card:
    """What the history knows of a run.

    Attributes:
        run: its id.
        title: what the history calls it; made from its settings until it is renamed.
        began: when, in seconds since 1970.
        job: what is run, as JobSpec.to_dict has it.
        state: how far it is.
        owner: the digest of the visitor who started it; see `digest_of`.
        pinned: whether it stands above the others.
        attempt: how often it has been resumed.
        seconds: from its start to its end; None before.
        failure: the sentence that it failed with.
        perplexities: data set -> stage -> perplexity.
        example: whether it came with the app.
    """

    run: str
    title: str
    began: float
    job: Mapping[str, object]
    state: State = State.WAITING
    owner: str = ""
    pinned: bool = False
    attempt: int = 0
    seconds: float | None = None
    failure: str = ""
    perplexities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    example: bool = False

    @classmethod
    def read(cls, path: Path) -> Card | None:
        """The card in a file; None if there is none that can be read."""
        try:
            data = json.loads(path.read_text("utf-8"))
            return cls(**data | {"state": State(data["state"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class History:
    """The cards of the runs in a folder.

    shared: whether everybody sees and changes all runs, as on one's own machine; else each visitor has his own.
    examples: the folder of the examples.
    """

    def __init__(self, folder: Path, shared: bool, examples: Path = EXAMPLES) -> None:
        self.folder = folder
        self.shared = shared
        self.examples = examples
        self._writing = threading.Lock()

    def add(self, card: Card) -> None:
        write_json(self._file(card.run), asdict(card))

    def update(self, run: str, **changes: object) -> None:
        """Change the card of a run, if it has not been deleted."""
        with self._writing:
            if card := self.read(run):
                self.add(replace(card, **changes))

    def read(self, run: str) -> Card | None:
        """The card of a run, None if there is no such run."""
        if card := Card.read(self._file(run)) or self._example(run):
            return card
        path = self.folder / run
        return _recorded(path, _modified(path)) if _modified(path) else None

    def cards(self, visitor: str | None, words: str = "") -> list[Card]:
        """The runs that a visitor may see whose titles have all `words`: pinned ones, the newest, examples."""
        names = {path.stem for path in self.folder.glob("*.json")}
        if self.shared:
            names |= {path.parent.name for path in self.folder.glob("*/config.json")}
        cards = [card for name in names if (card := self.read(name)) and self._may_change(card, visitor)]
        cards += [card for file in self.examples.glob("*.json") if (card := self._example(file.stem))]
        found = [card for card in cards if all(word in card.title.casefold() for word in words.casefold().split())]
        return sorted(found, key=lambda card: (card.example, not card.pinned, -card.began))

    def own(self, run: str, visitor: str | None) -> Card:
        """The card of a run that the visitor may change; UserError if there is none."""
        card = self.read(run)
        if card is None:
            raise UserError("This run does not exist: it was deleted, or the link is of another server.")
        if card.example:
            raise UserError(f"{card.title} came with the app, so it stays as it is: choose a run of your own.")
        if not self._may_change(card, visitor):
            raise UserError("This run was started by somebody else, who alone can change it: start one of your own.")
        return card

    def rename(self, run: str, visitor: str | None, title: str) -> None:
        """Give a run another title; UserError if the visitor may not, or for a title that cannot be shown."""
        self.own(run, visitor)
        self.update(run, title=_checked(title))

    def pin(self, run: str, visitor: str | None, pinned: bool) -> None:
        """Put a run above the others, or back; UserError if the visitor may not."""
        self.own(run, visitor)
        self.update(run, pinned=pinned)

    def all(self) -> list[Card]:
        """The cards of the folder."""
        return [card for file in self.folder.glob("*.json") if (card := Card.read(file))]

    def remove(self, run: str) -> None:
        """Remove a run and all that it recorded."""
        shutil.rmtree(self.folder / run, ignore_errors=True)
        self._file(run).unlink(missing_ok=True)

    def delete(self, run: str, visitor: str | None) -> None:
        """Remove a run and all that it recorded; UserError if the visitor may not, or while the run goes on."""
        card = self.own(run, visitor)
        if card.state.goes_on:
            raise UserError(f"{card.title} goes on, so it cannot be deleted: stop it first.")
        self.remove(run)

    def end_interrupted(self) -> None:
        """Mark the runs that an earlier process of the app has left unfinished."""
        for card in self.all():
            if card.state.goes_on:
                self.update(card.run, state=State.INTERRUPTED)

    def path(self, run: str) -> Path:
        """The directory of a run."""
        return (self.examples if self._example(run) else self.folder) / run

    def _example(self, run: str) -> Card | None:
        card = Card.read(self.examples / f"{run}.json")
        return card and replace(card, example=True)

    def _may_change(self, card: Card, visitor: str | None) -> bool:
        return self.shared or bool(visitor and card.owner == digest_of(visitor))

    def _file(self, run: str) -> Path:
        return self.folder / f"{run}.json"


def digest_of(visitor: str | None) -> str:
    """What a card keeps of a visitor's secret token."""
    return sha256(visitor.encode()).hexdigest() if visitor else ""


def perplexities(events: Sequence[Event]) -> dict[str, dict[str, float]]:
    """Data set -> stage -> perplexity, of the last measurement of each."""
    found: dict[str, dict[str, float]] = {}
    for event in events:
        if isinstance(event, PerplexityMeasured):
            found.setdefault(event.dataset, {})[str(event.stage)] = event.perplexity
    return found


def _checked(title: str) -> str:
    title = " ".join((title or "").split())
    if not 0 < len(title) <= LONGEST_TITLE or not title.isprintable():
        raise UserError(f"The title has {len(title)} characters: give 1 to {LONGEST_TITLE} printable ones.")
    return title


def _modified(path: Path) -> int:
    """When the events of a run directory changed last, in nanoseconds; 0 if it is none."""
    try:
        return (path / "events.jsonl").stat().st_mtime_ns if (path / "config.json").is_file() else 0
    except OSError:
        return 0


@lru_cache(maxsize=1000)
def _recorded(path: Path, modified: int) -> Card | None:
    """The card of a run directory without one; None if it is damaged. modified: see `_modified`."""
    try:
        spec = read_job(path)
        events = RunDirectory(path).events()
    except (UserError, OSError):
        return None
    finished = next((event for event in events if isinstance(event, RunFinished)), None)
    return Card(
        path.name,
        f"{path.name}: {describe(spec)}",
        modified / 1e9,
        spec.to_dict(),
        State.FINISHED if finished else State.INTERRUPTED,
        seconds=finished.seconds if finished else None,
        perplexities=perplexities(events),
    )
