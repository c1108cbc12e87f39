"""The values of the form, the API or a link as a JobSpec; a UserError for any mistake, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from barber.config import AUTO, PruneConfig
from barber.errors import UserError
from barber.fields import Group, Setting
from barber.job_spec import JobSpec
from barber.jobs.presets import FIRST_LOOK as PRESET
from barber.settings import PRUNING, SHOWN
from barber.storyteller import documents
from ui import visitors

PROMPTS = ("Once upon a time", "The capital of France is", "The most important thing about science is")
# The order of positional arguments of the API, which callers rely on; newer settings follow these.
PUBLISHED = (
    "model", "method", "sparsity", "rebuild", "metric", "granularity", "threshold", "retain_reconstruction",
    "calibration", "nsamples", "seqlen", "evaluation", "eval_windows", "seed", "refiner", "rounds", "target",
    "allocation", "reconstruct", "order", "stream", "max_memory",
)  # fmt: skip
FIXED = "fixed"  # beside AUTO: the form's switch between the two kinds of threshold


def shown(value: object) -> object:
    """A value as the form, the API and links represent it: a number, a boolean, a text or None."""
    if isinstance(value, tuple):
        return ",".join(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _values(spec: JobSpec) -> dict[str, object]:
    """The settings of a job by their public names."""
    return {
        name: shown(getattr(spec.prune if one.name in PRUNING else spec, one.name))
        for name, one in SHOWN.items()
        if one.name not in PRUNING or spec.prune
    }


def data_for(model: str) -> dict[str, object]:
    """Data settings that suit a model: its own stories for the bundled one, the published defaults for others."""
    preset, published = _values(PRESET), _values(JobSpec())
    own = preset if model == PRESET.model else published
    return {
        name: own[name] for name, one in SHOWN.items() if one.group is Group.DATA and preset[name] != published[name]
    }


FIELDS = (*PUBLISHED, *(name for name in SHOWN if name not in PUBLISHED))
DEFAULTS: dict[str, object] = {name: _values(PRESET)[name] for name in FIELDS}
FORM = {"swaps": AUTO} | DEFAULTS | {"threshold": 0.1}  # in the form, a switch and a number make up the threshold


def to_spec(values: Mapping[str, object]) -> JobSpec:
    """The job that the values of FIELDS describe. Raises UserError for the first value that is not allowed.

    A setting that has no effect with the others gets its default, whatever its value is.
    """
    visitors.check(values)
    typed = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
    given = {one.name: one.read(typed[name]) for name, one in SHOWN.items()}
    given = {one.name: one.default if one.unmet(given) else given[one.name] for one in SHOWN.values()}
    prune = PruneConfig(**{name: given.pop(name) for name in PRUNING if name in given})
    prompts = PRESET.prompts if given["model"] == PRESET.model else PROMPTS
    return replace(PRESET, prune=prune, prompts=prompts, **given)


def sample_prompts(model: str) -> list[str]:
    """Example prompts for a model; for the bundled one, from stories outside its training set."""
    return documents("prompts", 6) if model == PRESET.model else list(PROMPTS)


def from_form(*values: object) -> JobSpec:
    """The job that the values of FORM describe. Raises UserError as `to_spec` does."""
    given = dict(zip(FORM, values, strict=True))
    return to_spec(given | ({"threshold": AUTO} if given["swaps"] == AUTO else {}))


def to_form(values: Mapping[str, object]) -> dict[str, object]:
    """Some values of FIELDS as those of FORM."""
    if "threshold" not in values:
        return dict(values)
    if values["threshold"] == AUTO:
        return {name: value for name, value in values.items() if name != "threshold"} | {"swaps": AUTO}
    return {"swaps": FIXED, **values}


def problem(*values: object) -> str | None:
    """The sentence of the UserError that the values of FORM cause, None if they are allowed."""
    try:
        from_form(*values)
    except UserError as error:
        return str(error)
    return None


def from_query(query: Mapping[str, str]) -> dict[str, object]:
    """The values in a link by field; values that a field cannot show are left out."""
    values: dict[str, object] = {}
    for name, text in query.items():
        if one := SHOWN.get(name):
            try:
                values[name] = _from_link(one, text)
            except (UserError, ValueError):
                continue
    return values


def _from_link(one: Setting, text: str) -> object:
    """A value for the field of a setting; a value that is not allowed is shown, and refused when the run begins."""
    if one.kind is int:
        return int(text) if text else None
    if one.closed or one.kind in (bool, float):
        return shown(one.read(text))
    return text or None
