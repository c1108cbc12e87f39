"""The values of the form, the API or a link as a JobSpec; a UserError for any mistake, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from barber.config import AUTO, PruneConfig
from barber.errors import UserError
from barber.fields import Group, Setting
from barber.job_spec import JobSpec
from barber.jobs.presets import FIRST_LOOK as PRESET
from barber.jobs.presets import preset
from barber.settings import PRUNING, SHOWN, public_values, shown
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


def _values(spec: JobSpec) -> dict[str, object]:
    """The settings of a job that the form has, by their public names."""
    return {name: value for name, value in public_values(spec).items() if name in SHOWN}


def data_for(model: str) -> dict[str, object]:
    """Data settings that suit a model: its own stories for the bundled one, the published defaults for others."""
    preset, published = _values(PRESET), _values(JobSpec())
    own = preset if model == PRESET.model else published
    return {
        name: own[name] for name, one in SHOWN.items() if one.group is Group.DATA and preset[name] != published[name]
    }


def values_of(title: str, model: str) -> dict[str, object]:
    """The values of FORM of a preset. model: what the form has, kept by all but the first look."""
    return FORM | to_form(_values(preset(title, (model or "").strip() or PRESET.model)))


FIELDS = (*PUBLISHED, *(name for name in SHOWN if name not in PUBLISHED))
DEFAULTS: dict[str, object] = {name: _values(PRESET)[name] for name in FIELDS}
FORM = {"swaps": AUTO} | DEFAULTS | {"threshold": 0.1}  # in the form, a switch and a number make up the threshold


def to_spec(values: Mapping[str, object]) -> JobSpec:
    """The job that the values of FIELDS describe. Raises UserError for the first value that is not allowed.

    A setting that has no effect with the others gets its default, whatever its value is.
    """
    given, wrong = _read(values)
    for sentence in wrong.values():
        raise UserError(sentence)
    prune = PruneConfig(**{name: given.pop(name) for name in PRUNING if name in given})
    prompts = PRESET.prompts if given["model"] == PRESET.model else PROMPTS
    return replace(PRESET, prune=prune, prompts=prompts, **given)


def _read(values: Mapping[str, object]) -> tuple[dict[str, object], dict[str, str]]:
    """The values of FIELDS by the names of their settings, and a sentence for each that is not allowed, by field.

    A setting that has no effect with the others has its default, and is never wrong; a wrong one has its default, too.
    """
    given, wrong = {}, {}
    for name, one in SHOWN.items():
        value = values[name]
        try:
            visitors.check(name, value)
            given[one.name] = one.read(value.strip() if isinstance(value, str) else value)
        except UserError as error:
            given[one.name], wrong[name] = one.default, str(error)
    idle = {name for name, one in SHOWN.items() if one.unmet(given)}
    given |= {SHOWN[name].name: SHOWN[name].default for name in idle}
    return given, {name: sentence for name, sentence in wrong.items() if name not in idle}


def sample_prompts(model: str) -> list[str]:
    """Example prompts for a model; for the bundled one, from stories outside its training set."""
    return documents("prompts", 6) if model == PRESET.model else list(PROMPTS)


def fields_of(*values: object) -> dict[str, object]:
    """The values of FORM as those of FIELDS."""
    given = dict(zip(FORM, values, strict=True))
    return given | ({"threshold": AUTO} if given.pop("swaps") == AUTO else {})


def from_form(*values: object) -> JobSpec:
    """The job that the values of FORM describe. Raises UserError as `to_spec` does."""
    return to_spec(fields_of(*values))


def to_form(values: Mapping[str, object]) -> dict[str, object]:
    """Some values of FIELDS as those of FORM."""
    if "threshold" not in values:
        return dict(values)
    if values["threshold"] == AUTO:
        return {name: value for name, value in values.items() if name != "threshold"} | {"swaps": AUTO}
    return {"swaps": FIXED, **values}


def form_of(spec: JobSpec) -> dict[str, object]:
    """The values of FORM that describe a job."""
    return FORM | to_form(_values(spec))


def problems(*values: object) -> dict[str, str]:
    """A sentence for each of the values of FORM that is not allowed, by field.

    The field "" has the sentence for values that are allowed each by itself, but not together.
    """
    given = fields_of(*values)
    _, wrong = _read(given)
    if not wrong:
        try:
            to_spec(given)
        except UserError as error:
            wrong[""] = str(error)
    return wrong


def changes(before: Sequence[object], *values: object) -> list[str]:
    """Titles of the settings that have another effect with the values of FORM than with those `before`."""
    (old, _), (new, wrong) = (_read(fields_of(*given)) for given in (before, values))
    return [one.title for name, one in SHOWN.items() if name in wrong or old[one.name] != new[one.name]]


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
