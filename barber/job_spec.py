"""What a whole job is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from barber.bundled import STORYTELLER
from barber.config import PruneConfig
from barber.errors import UserError
from barber.registry import DATA_SOURCES


@dataclass(frozen=True)
class JobSpec:
    """What to do from beginning to end.

    model, device, dtype, cache_dir, trust_remote_code: see load.load.
    prune: the pruning, or None to evaluate the dense model only.
    calibration, evaluation: data specs (see calibration.load_calibration); nsamples sequences of seqlen tokens, drawn
    with seed. seqlen None takes the published 2048, or the model's own maximum where that is smaller.
    evaluation_required: whether evaluation data that cannot be had ends the job; otherwise it is named and left out.
    text_field: the key or column that holds the text in .jsonl, .json, .csv and .parquet files. window_start: what each
    window begins with, see registry.WindowStart.
    eval_windows: at most so many perplexity windows per data set, None for all of it.
    prompts: continued greedily at each stage. zeroshot_tasks, zeroshot_limit: lm-eval tasks, items per task.
    stream: read the model layer by layer even where it fits into memory. max_memory: of the device (of the host, if
    that is the device), like "12GiB"; None for most of what is free.
    compute: in what matrix products of the pruning are made: "native" (the dtype of the weights), "tf32" or "bfloat16";
    sums are fp32 in any case.
    run_dir, save_model, save_data: where to write the run, the final model and the calibration tokens (.npy).
    """

    model: str = STORYTELLER
    prune: PruneConfig | None = None
    calibration: str = "c4"
    evaluation: tuple[str, ...] = ("wikitext2",)
    nsamples: int = 128
    seqlen: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    eval_windows: int | None = None
    prompts: tuple[str, ...] = ()
    zeroshot_tasks: tuple[str, ...] = ()
    zeroshot_limit: int | None = None
    stream: bool = False
    max_memory: str | None = None
    compute: str = "native"
    run_dir: Path | None = None
    save_model: Path | None = None
    save_data: Path | None = None
    cache_dir: str | None = None
    datasets_cache_dir: str | None = None
    trust_remote_code: bool = False
    evaluation_required: bool = True
    text_field: str = "text"
    window_start: str = "auto"

    def absolute(self) -> JobSpec:
        """The same job with absolute paths, so that it means the same in every working directory.

        A model, masks or data are a path where there is such a file or folder, and none of the names of ours.
        """
        places = {name: getattr(self, name) for name in ("run_dir", "save_model", "save_data")}
        folders = {name: getattr(self, name) for name in ("cache_dir", "datasets_cache_dir")}
        prune = self.prune
        if prune and prune.initial_masks:
            prune = replace(prune, initial_masks=_absolute(prune.initial_masks))
        return replace(
            self,
            model=self.model if self.model == STORYTELLER else _absolute(self.model),
            prune=prune,
            calibration=_data(self.calibration),
            evaluation=tuple(_data(spec) for spec in self.evaluation),
            **{name: path and Path(os.path.abspath(path)) for name, path in places.items()},
            **{name: path and os.path.abspath(Path(path).expanduser()) for name, path in folders.items()},
        )

    def to_dict(self) -> dict:
        """A JSON-able dict; paths as text, tuples as lists, the pruning as PruneConfig.to_dict has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["prune"] = self.prune and self.prune.to_dict()
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: dict) -> JobSpec:
        """The inverse of `to_dict`. Raises UserError for a setting that this version does not know."""
        prune = data.get("prune")
        unknown = data.keys() - {field.name for field in fields(cls)}
        unknown |= (prune or {}).keys() - {field.name for field in fields(PruneConfig)}
        if unknown:
            raise UserError(
                f"The job has settings that this version does not know ({', '.join(sorted(unknown))}): go on with the "
                "version that it was begun with."
            )
        hints = get_type_hints(cls)
        values = {name: _restored(value, Path in get_args(hints[name])) for name, value in data.items()}
        return cls(**values | {"prune": prune and PruneConfig.from_dict(prune)})


def _absolute(text: str) -> str:
    """The absolute path of what exists, any other text as it is."""
    try:
        path = Path(text).expanduser()
        return os.path.abspath(path) if path.exists() else text
    except (OSError, RuntimeError, ValueError):  # no name of a file
        return text


def _data(spec: str) -> str:
    return spec if spec in DATA_SOURCES else _absolute(spec)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _restored(value: object, is_path: bool) -> object:
    if isinstance(value, list):
        return tuple(_restored(item, is_path) for item in value)
    return Path(value) if is_path and value is not None else value
