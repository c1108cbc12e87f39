"""The model card of a pruned model: what it is, how it was made, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

import barber
from barber.bundled import STORYTELLER
from barber.config import MASKS, Allocation, PruneConfig
from barber.events import Event, LayerInitialised, PerplexityMeasured, RunStarted, Stage, SubBlockRebuilt
from barber.input_files import shown_name
from barber.job_spec import JobSpec
from barber.jobs.command import command, without_outputs
from barber.jobs.presets import FIRST_LOOK
from barber.registry import BARBER, INITIAL_MASKS, METRICS, REFINERS
from barber.runs.masks_file import StageMasks

PAPER = "[LLM-Barber](https://arxiv.org/abs/2408.10631)"


@dataclass
class History:
    """Takes a job's events, for the card of its model.

    Attributes:
        counts: (layer, name) -> number of pruned weights and of all weights of a matrix, of its last mask.
        measured: (data set, stage) -> perplexity.
        calibration: CalibrationSet.describe(), empty without calibration.
    """

    counts: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    measured: dict[tuple[str, str], PerplexityMeasured] = field(default_factory=dict)
    calibration: dict = field(default_factory=dict)

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, and take what the card says from them."""
        for event in events:
            self.add(event)
            yield event

    def add(self, event: Event) -> None:
        if isinstance(event, LayerInitialised | SubBlockRebuilt):
            self.counts |= {(event.layer, name): (one.zeros, one.weights) for name, one in event.modules.items()}
        if isinstance(event, PerplexityMeasured):
            self.measured[event.dataset, event.stage] = event
        if isinstance(event, RunStarted):
            self.calibration = event.calibration


def model_card(spec: JobSpec, history: History) -> str:
    """The card of the model that a job saves, in Markdown with the front matter of the hub.

    Of local paths it has the last part only. The same job with the same results has the same card.
    """
    named = _for_others(spec, history.calibration.get("seqlen"))
    zeros, weights = (
        (sum(column) for column in zip(*history.counts.values(), strict=True)) if history.counts else (0, 0)
    )
    done = _sparsity(zeros, weights) if spec.prune else "It has its dense weights, which were measured and not pruned."
    rows = _made(spec.prune, history.calibration) if spec.prune else []
    perplexities = _perplexities(history.measured)
    given = [spec.model, spec.calibration, *spec.evaluation, (spec.prune and spec.prune.initial_masks) or ""]
    local = ", where local files are named by their last part" if any(map(_is_local, given)) else ""
    return "\n\n".join(
        [
            _front_matter(spec.model, spec.prune),
            _title(spec.model, spec.prune),
            f"{_origin(spec.model)} {done}",
            *([_table(["how it was made", ""], rows)] if rows else []),
            *(["## Perplexity", perplexities] if perplexities else []),
            "## Command",
            f"The command that made it{local}:\n\n{_fenced(command(named))}",
            _usage(),
        ]
    )


def card_of_masks(masks: StageMasks, spec: JobSpec, zeros: int, weights: int) -> str:
    """The card of a model that was made from the masks of an earlier run. spec: with the model they are applied to."""
    words = [shown_name(str(masks.source.absolute())), "--model", shown_name(spec.model), "--save_model", "DIR"]
    rows = [("masks", f"the {masks.stage} masks of a run on {shown_name(masks.model)}"), *_made(masks.config, {})]
    return "\n\n".join(
        [
            _front_matter(spec.model, masks.config),
            _title(spec.model, masks.config),
            f"{_origin(spec.model)} {_sparsity(zeros, weights)}",
            _table(["how it was made", ""], rows),
            "## Command",
            _fenced(f"python main.py apply {' '.join(words)}"),
            _usage(),
        ]
    )


def _for_others(spec: JobSpec, seqlen: int | None) -> JobSpec:
    """The job without outputs, without texts and tasks, which do not change the model, and without local folders."""
    prune = spec.prune
    if prune and prune.initial_masks:
        prune = replace(prune, initial_masks=shown_name(prune.initial_masks))
    return replace(
        without_outputs(spec),
        model=shown_name(spec.model),
        prune=prune,
        calibration=shown_name(spec.calibration),
        evaluation=tuple(map(shown_name, spec.evaluation)),
        seqlen=spec.seqlen or seqlen,
        prompts=FIRST_LOOK.prompts if spec.model == STORYTELLER else (),
        zeroshot_tasks=(),
        zeroshot_limit=None,
    )


def _front_matter(model: str, prune: PruneConfig | None) -> str:
    tags = ["barber", "pruning", "sparse", *([prune.method, str(prune.sparsity)] if prune else [])]
    data = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    if _is_hub_id(model):
        data = {"base_model": model} | data
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _is_hub_id(model: str) -> bool:
    """Whether a model is of the hub, as far as its name shows."""
    return model != STORYTELLER and not _is_local(model)


def _is_local(given: str) -> bool:
    """Whether a model or data is a file or folder of this machine: a job has the absolute paths of these."""
    return Path(given).is_absolute()


def _title(model: str, prune: PruneConfig | None) -> str:
    return f"# {_plain(shown_name(model))}, {f'{prune.sparsity} pruned' if prune else 'dense'}"


def _origin(model: str) -> str:
    name = _plain(shown_name(model))
    if model == STORYTELLER:
        return f"This model was made from `{name}`, the bundled model of Barber {barber.__version__}."
    where = f"[{name}](https://huggingface.co/{name})" if _is_hub_id(model) else f"`{name}`, a local model"
    return f"This model was made from {where}, by Barber {barber.__version__}."


def _sparsity(zeros: int, weights: int) -> str:
    return (
        f"In one shot, {zeros:,} of the {weights:,} weights of its linear layers that can be pruned "
        f"({zeros / weights:.4%}) were set to zero. All other weights, such as embeddings and norms, are unchanged."
    )


def _made(prune: PruneConfig, calibration: dict) -> list[tuple[str, str]]:
    """What was done, as rows of a table."""
    kind = (
        f"{prune.sparsity.n} zeros in every {prune.sparsity.m} consecutive inputs"
        if prune.sparsity.m
        else "unstructured"
    )
    rows = [("pattern", f"{prune.sparsity}, {kind}")]
    given = "given masks" if prune.method == MASKS else INITIAL_MASKS[prune.method].title
    rows.append(("initial mask", given))
    if prune.allocation is not Allocation.UNIFORM:
        rows.append(("sparsity of the layers", prune.allocation.label))
    rows.append(("rebuild", _rebuild(prune)))
    rows.append(("refit of the kept weights", "yes, to the output of each sub-block" if prune.reconstruct else "none"))
    if calibration:
        rows.append(
            (
                "calibration",
                f"{calibration['samples']:,} sequences of {calibration['seqlen']:,} tokens of {calibration['source']}, "
                f"seed {calibration['seed']}",
            )
        )
    return rows


def _rebuild(prune: PruneConfig) -> str:
    """The rebuild in a phrase."""
    if not prune.barber:
        return "none"
    if prune.refiner != BARBER:
        return REFINERS[prune.refiner].title
    swaps = (
        "swaps chosen by validation error"
        if prune.auto
        else f"threshold {prune.threshold:g} in each {prune.granularity}"
    )
    return f"{PAPER}, by {METRICS[prune.metric].title}, {swaps}"


def _perplexities(measured: dict[tuple[str, str], PerplexityMeasured]) -> str:
    """One row per data set, with 95 % intervals; empty if nothing was measured."""
    stages = [stage for stage in Stage if any(key[1] == stage for key in measured)]
    rows = []
    for dataset in dict.fromkeys(key[0] for key in measured):
        found = [measured.get((dataset, str(stage))) for stage in stages]
        first = next(one for one in found if one)
        windows = f"{first.tokens:,} tokens in windows of {first.seqlen:,}"
        rows.append([dataset, windows, *(_with_interval(one) if one else "" for one in found)])
    return _table(["text", "windows", *map(str, stages)], rows) if rows else ""


def _with_interval(event: PerplexityMeasured) -> str:
    interval = "" if event.low is None or event.high is None else f" ({event.low:.3f} to {event.high:.3f})"
    return f"{event.perplexity:.3f}{interval}"


def _usage() -> str:
    example = 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("DIR")'
    size = (
        "Pruned weights are stored as zeros: the files are as large as those of the dense model, and it runs at the "
        "same speed unless the program that runs it makes use of zeros."
    )
    return f"## Use\n\nThe folder loads like any other model:\n\n{_fenced(example, 'python')}\n\n{size}\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot end the cell or the line that it stands in, and that is no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str, language: str = "") -> str:
    """Text as a block of code, whatever is in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
