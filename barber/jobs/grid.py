"""A grid of jobs: settings by their public names, one value for all jobs, a list for an axis. Read from YAML.

model: storyteller
method: [magnitude, wanda]
sparsity: [50%, "2:4"]
seed: [0, 1, 2]
runs:                     # the same axes once more, with these settings in their place
  - {rebuild: true, threshold: auto}
skip:                     # combinations to leave out; `only` lists those to keep
  - {method: magnitude, sparsity: "2:4"}
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from barber.atomic_files import hasher
from barber.bundled import STORYTELLER
from barber.config import MASKS, PruneConfig
from barber.errors import UserError
from barber.fields import WRONG, Setting
from barber.input_files import regular_file
from barber.job_spec import JobSpec
from barber.jobs.options import expand_home
from barber.jobs.presets import FIRST_LOOK
from barber.registry import INITIAL_MASKS
from barber.settings import PRUNING, SETTINGS, public_values, shown, without_effect

OUTPUTS = ("run_dir", "save_model", "save_data")
NAMED = {one.public: one for one in SETTINGS.values() if one.name not in OUTPUTS}
PUBLIC = {one.flag: one.public for one in SETTINGS.values()}
RUNS, RULES = "runs", ("only", "skip")
MOST_JOBS = 10_000
READABLE = 80  # characters of the settings in a job's name


class GridError(UserError):
    """All mistakes of a grid, a sentence each, in lines."""

    def __init__(self, sentences: Iterable[str]) -> None:
        super().__init__("\n".join(dict.fromkeys(sentences)))


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        name: of its run directory: the pruning, the seed, and a hash of all settings that are not the default.
        spec: the job, with absolute paths, without run directory.
    """

    name: str
    spec: JobSpec

    @property
    def values(self) -> dict[str, object]:
        """Its settings by their public names, without those that have no effect beside the others."""
        given = {name: getattr(self.spec.prune if name in PRUNING else self.spec, name) for name in SETTINGS}
        idle = {SETTINGS[name].public for name in without_effect(given)}
        return {name: value for name, value in public_values(self.spec).items() if name not in idle}


def read_grid(path: Path) -> tuple[SweepJob, ...]:
    """The jobs of a grid in a YAML file. Raises UserError, or GridError with all mistakes."""
    file = regular_file(path, "Grid", "give a YAML file of settings")
    try:
        grid = yaml.load(file.read_text("utf-8"), _Texts)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Grid {str(path)!r} is no YAML ({reason}): correct that place.") from None
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"Grid {str(path)!r} has no settings: give lines like 'method: [magnitude, wanda]'.")
    return jobs_of(grid)


def jobs_of(grid: Mapping[str, Any]) -> tuple[SweepJob, ...]:
    """The jobs of a grid, each once: its product, then that of each of its `runs`, without those that rules leave out.

    A setting that has no effect beside the others has its default, so jobs that differ only in it are one. Raises
    GridError with all mistakes.
    """
    reader = _Reader(grid)
    jobs = {job.name: job for job in reader.jobs()}
    reader.check_idle()
    if not jobs and not reader.mistakes:
        reader.mistakes.append("The grid has no jobs: its rules `only` and `skip` leave out all of them.")
    if reader.mistakes:
        raise GridError(reader.mistakes)
    return tuple(jobs.values())


def axes(jobs: Iterable[SweepJob]) -> list[str]:
    """The settings that differ between the jobs in which they have an effect, in the order of all settings."""
    tables = [job.values for job in jobs]
    return [name for name in NAMED if len({str(table[name]) for table in tables if name in table}) > 1]


class _Reader:
    """Reads a grid and collects its mistakes."""

    def __init__(self, grid: Mapping[str, Any]) -> None:
        self.mistakes: list[str] = []
        self.idle: dict[str, str] = {}  # given setting -> why it had no effect so far
        self.used: set[str] = set()
        self.base = self._settings({name: value for name, value in grid.items() if name not in (RUNS, *RULES)})
        self.runs = [self._settings(run) for run in self._tables(grid, RUNS)]
        self.rules = {rule: [self._settings(table) for table in self._tables(grid, rule)] for rule in RULES}

    def _tables(self, grid: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = grid.get(key) or []
        if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            return value
        self.mistakes.append(f"{key} {WRONG.repr(value)} is no list of settings: give one like [{{method: wanda}}].")
        return []

    def _settings(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Name of the setting -> its allowed values."""
        found: dict[str, list[Any]] = {}
        for public, value in table.items():
            if one := self._named(public):
                given = value if isinstance(value, list) else [value]
                found[one.name] = list(self._values(one, given))
                if not given:
                    self.mistakes.append(f"{public} has no values: give one, or several in a list.")
        return found

    def _named(self, public: Any) -> Setting | None:
        if public in NAMED:
            return NAMED[public]
        if public in OUTPUTS:
            why = "is none of a grid, since each job has a run directory in the folder of the sweep: leave it out"
        else:
            near = difflib.get_close_matches(str(public), [*NAMED, *PUBLIC], 1)
            meant = PUBLIC.get(near[0], near[0]) if near else f"one of {', '.join(NAMED)}"
            why = f"is unknown: give {meant}"
        self.mistakes.append(f"Setting {WRONG.repr(public)} {why}.")
        return None

    def _values(self, one: Setting, given: list[Any]) -> Iterator[Any]:
        for value in given:
            try:
                if isinstance(value, list | Mapping):
                    raise UserError(f"{one.noun} {WRONG.repr(value)} is not allowed: give {one.allowed}.")
                yield one.read("" if value is None else expand_home(str(value)))
            except UserError as error:
                self.mistakes.append(_public_names(str(error)))

    def jobs(self) -> Iterator[SweepJob]:
        """All jobs that can be made; the reasons for the others are mistakes."""
        parts = [self.base, *(self.base | run for run in self.runs)]
        for part in parts:
            count = math.prod(map(len, part.values()))
            if count > MOST_JOBS:
                self.mistakes.append(f"The grid has {count} combinations: give at most {MOST_JOBS}.")
                continue
            if missing := self._missing(part):
                self.mistakes += missing
                continue
            for chosen in product(*part.values()):
                if job := self._job(dict(zip(part, chosen, strict=True))):
                    yield job

    def _missing(self, part: Mapping[str, Any]) -> list[str]:
        found = []
        if "sparsity" not in part:
            found.append(f"The grid gives no sparsity: add one, like 'sparsity: {PRUNING['sparsity'].example}'.")
        if "method" not in part and "initial_masks" not in part:
            found.append(f"The grid names no initial mask: add method, of {', '.join(INITIAL_MASKS)}.")
        if "method" in part and "initial_masks" in part:
            found.append("method and initial_masks both name an initial mask: give one of them.")
        return found

    def _job(self, given: dict[str, Any]) -> SweepJob | None:
        """The job of some settings; None if a rule leaves it out, or for a mistake."""
        base = FIRST_LOOK if given.get("model", STORYTELLER) == STORYTELLER else JobSpec()
        values = {name: one.default for name, one in SETTINGS.items()} | {"barber": False} | given
        values |= {"method": MASKS} if values["initial_masks"] else {}
        idle = without_effect(values)
        for name in given:
            if name in idle:
                need = SETTINGS[name].unmet(values)
                self.idle[name] = need.otherwise.format(**values)
            else:
                self.used.add(name)
        values |= {name: SETTINGS[name].default for name in idle}
        try:
            prune = PruneConfig(**{name: values[name] for name in PRUNING})
            others = {name: given[name] for name in given if name not in PRUNING and name not in idle}
            spec = replace(base, **{"prompts": ()} | others, prune=prune).absolute()
        except UserError as error:
            self.mistakes.append(_public_names(str(error)))
            return None
        job = SweepJob(_name(spec), spec)
        return job if self._kept(job) else None

    def _kept(self, job: SweepJob) -> bool:
        values = job.values

        def fits(rule: dict[str, list[Any]]) -> bool:
            named = {SETTINGS[name].public: [shown(value) for value in allowed] for name, allowed in rule.items()}
            return all(name in values and values[name] in allowed for name, allowed in named.items())

        only, skip = (self.rules[rule] for rule in RULES)
        return (not only or any(map(fits, only))) and not any(map(fits, skip))

    def check_idle(self) -> None:
        """A mistake for each setting that has no effect in any job."""
        for name, why in self.idle.items():
            if name not in self.used:
                self.mistakes.append(_public_names(f"--{SETTINGS[name].flag} has no effect in any job: it {why}."))


def _public_names(sentence: str) -> str:
    """A sentence about flags, with their names in a grid."""
    return re.sub(r"--(\w+)", lambda flag: PUBLIC.get(flag[1], flag[1]), sentence)


def _name(spec: JobSpec) -> str:
    usual = {one.public: shown(one.default) for one in SETTINGS.values()}
    values = {name: value for name, value in public_values(spec).items() if value != usual[name]}
    identity = hasher(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{spec.prune} seed {spec.seed}")[:READABLE].strip("-.")
    return f"{readable}-{identity}"


class _Texts(yaml.BaseLoader):
    """Every value is a text, which the settings read: YAML would take 2:4 for a number. A key twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
