"""What the form, the API and a link say, as a JobSpec; every mistake is one sentence, found before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from barber.config import AUTO, Order, PruneConfig, Sparsity
from barber.errors import UserError
from barber.job_spec import JobSpec
from barber.jobs.presets import FIRST_LOOK as PRESET
from barber.pruning.problem import split_sequences
from barber.storyteller import documents
from ui import visitors
from ui.titles import CHOICES, FIXED, LABELS

SIZE = re.compile(r"(?=.*[1-9])\d+(\.\d+)? ?[KMG]i?B", re.IGNORECASE)
PROMPTS = ("Once upon a time", "The capital of France is", "The most important thing about science is")


def data_for(model: str) -> dict[str, object]:
    """Data settings that suit a model: the bundled one has its own stories, others take the published defaults."""
    spec = PRESET if model == PRESET.model else JobSpec()
    return {
        "calibration": spec.calibration,
        "nsamples": spec.nsamples,
        "seqlen": spec.seqlen,
        "evaluation": ",".join(spec.evaluation),
        "eval_windows": spec.eval_windows,
    }


DEFAULTS: dict[str, object] = {
    "model": PRESET.model,
    "method": PRESET.prune.method,
    "sparsity": str(PRESET.prune.sparsity),
    "rebuild": PRESET.prune.barber,
    "metric": str(PRESET.prune.metric),
    "granularity": str(PRESET.prune.granularity),
    "threshold": PRESET.prune.threshold,
    "retain_reconstruction": PRESET.prune.retain_reconstruction,
    **data_for(PRESET.model),
    "seed": PRESET.seed,
    "refiner": str(PRESET.prune.refiner),
    "rounds": PRESET.prune.rounds,
    "target": str(PRESET.prune.target),
    "allocation": str(PRESET.prune.allocation),
    "reconstruct": PRESET.prune.reconstruct,
    "order": str(PRESET.prune.order),
    "stream": PRESET.stream,
    "max_memory": PRESET.max_memory,
}
FIELDS = tuple(DEFAULTS)
FORM = {"swaps": AUTO} | DEFAULTS | {"threshold": 0.1}  # in the form, a switch and a number make up the threshold


def to_spec(values: Mapping[str, object]) -> JobSpec:
    """The job that the values of FIELDS describe. Raises UserError for the first value that is not allowed."""
    visitors.check(values)
    model = _text(values, "model", "Give a model: pick one or type a hub id or a local folder.")
    calibration = _text(values, "calibration", "Give calibration data, for example storyteller or wikitext2.")
    evaluation = tuple(part.strip() for part in str(values["evaluation"] or "").split(",") if part.strip())
    if not evaluation:
        raise UserError("Give evaluation data, for example storyteller or wikitext2.")
    rebuilds, refits = bool(values["rebuild"]), bool(values["reconstruct"])
    prune = PruneConfig(
        sparsity=Sparsity.parse(str(values["sparsity"] or "")),
        method=str(values["method"]),
        barber=rebuilds,
        metric=str(values["metric"]),
        granularity=str(values["granularity"]),
        threshold=AUTO if values["threshold"] == AUTO else _number(values, "threshold"),
        refiner=str(values["refiner"]),
        rounds=_whole(values, "rounds", 1, optional=True),
        target=str(values["target"]),
        allocation=str(values["allocation"]),
        reconstruct=refits,
        retain_reconstruction=bool(values["retain_reconstruction"]),
        order=str(values["order"]) if rebuilds or refits else Order.PAPER,  # hidden then, as it has no effect
    )
    nsamples = _whole(values, "nsamples", 1)
    if prune.refined:
        split_sequences(nsamples, prune)  # raises where too few samples are left to judge
    return replace(
        PRESET,
        model=model,
        prune=prune,
        calibration=calibration,
        evaluation=evaluation,
        nsamples=nsamples,
        seqlen=_whole(values, "seqlen", 2, optional=True),
        seed=_whole(values, "seed", 0),
        eval_windows=_whole(values, "eval_windows", 1, optional=True),
        stream=bool(values["stream"]),
        max_memory=_size(values, "max_memory"),
        prompts=PRESET.prompts if model == PRESET.model else PROMPTS,
    )


def sample_prompts(model: str) -> list[str]:
    """Openings to try with a model; for the bundled one, of stories that it has never read."""
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
    """The sentence that says what is wrong with the values of FORM, if anything is."""
    try:
        from_form(*values)
    except UserError as error:
        return str(error)
    return None


def from_query(query: Mapping[str, str]) -> dict[str, object]:
    """The values that a link carries, for the fields it names; what cannot be read is left out."""
    values: dict[str, object] = {}
    for name, text in query.items():
        if name not in DEFAULTS:
            continue
        try:
            values[name] = _parse(name, text)
        except ValueError:
            continue
    return values


def _text(values: Mapping[str, object], name: str, missing: str) -> str:
    text = str(values[name] or "").strip()
    if not text:
        raise UserError(missing)
    return text


def _number(values: Mapping[str, object], name: str) -> float:
    try:
        return float(values[name])
    except (TypeError, ValueError):
        raise UserError(f"{LABELS[name]} {values[name]!r} is not a number.") from None


def _whole(values: Mapping[str, object], name: str, least: int, optional: bool = False) -> int | None:
    value = values[name]
    if optional and (value in (None, "") or (value == 0 and name != "rounds")):
        return None
    number = _number(values, name)
    if not math.isfinite(number) or number != int(number) or number < least:
        raise UserError(f"{LABELS[name]} {number:g} is not allowed: give a whole number of at least {least}.")
    return int(number)


def _size(values: Mapping[str, object], name: str) -> str | None:
    text = str(values[name] or "").strip()
    if text and not SIZE.fullmatch(text):
        raise UserError(f"{LABELS[name]} {text!r} is not a size: give one like 12GiB or 800MB, or leave it empty.")
    return text.replace(" ", "").upper() or None  # "12gb" would be gigabits


def _parse(name: str, text: str) -> object:
    """A value of a link, typed as the field is. Raises ValueError."""
    if isinstance(DEFAULTS[name], bool):
        return text.lower() in ("true", "1", "yes")
    if name == "threshold":
        return AUTO if text == AUTO else _within(float(text), 0, 1)
    if name in ("nsamples", "seqlen", "seed", "eval_windows", "rounds"):
        return int(text) if text else None
    if name == "max_memory":
        return text or None
    if text not in CHOICES.get(name, (text,)):
        raise ValueError(text)
    return text


def _within(number: float, least: float, most: float) -> float:
    if not least <= number <= most:
        raise ValueError(number)
    return number
