"""What a whole job is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from barber.bundled import STORYTELLER
from barber.config import PruneConfig
from barber.errors import UserError


@dataclass(frozen=True)
class JobSpec:
    """What to do from beginning to end.

    model, device, dtype, cache_dir, trust_remote_code: see load.load.
    prune: the pruning, or None to evaluate the dense model only.
    calibration, evaluation: data specs (see calibration.load_calibration); nsamples sequences of seqlen tokens, drawn
    with seed. seqlen None takes the published 2048, or the model's own maximum where that is smaller.
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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any, is_path: bool) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item, is_path) for item in value)
    return Path(value) if is_path and value is not None else value
