"""The settings of a whole job."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from os.path import expanduser, isfile
from pathlib import Path
from typing import Any

from barber.bundled import STORYTELLER
from barber.config import PruneConfig
from barber.errors import UserError
from barber.fields import Group, Need, read_all, setting, settings_of, titles
from barber.registry import DATA_SOURCES, WindowStart

MOST_SEQUENCES = 2**16  # of one kind, at most
MOST_POSITIONS = 2**20  # of a sequence, at most
MOST_TOKENS = 2**28  # of the calibration, 2 GiB of token ids

SIZE = re.compile(r"(?=.*[1-9])\d+(\.\d+)? ?[KMG]i?B", re.IGNORECASE)
SOURCES = sorted(DATA_SOURCES.values(), key=lambda source: source.hub is not None)  # those of the hub last
CALIBRATION, EVALUATION = titles(SOURCES), titles([source for source in SOURCES if source.evaluates])


def _size(text: str) -> str:
    if not SIZE.fullmatch(text):
        raise UserError(f"Memory limit {text!r} is not a size: give one like 12GiB or 800MB.")
    return text.replace(" ", "").upper()  # "12gb" would be gigabits


def data_specs(text: str) -> tuple[str, ...]:
    """Split data specs at commas, none for "none"; not at commas in the path of an existing file.

    Raises UserError if there are none.
    """
    if text.strip() == "none":
        return ()
    specs: list[str] = []
    pieces = text.split(",")
    while pieces:
        ends = range(len(pieces), 1, -1)
        whole = next((end for end in ends if isfile(expanduser(",".join(pieces[:end]).strip()))), 1)
        specs.append(",".join(pieces[:whole]).strip())
        del pieces[:whole]
    if specs := [spec for spec in specs if spec]:
        return tuple(specs)
    raise UserError(f"Evaluation data {text!r} is empty: give one, or several separated by commas, or none.")


@dataclass(frozen=True)
class JobSpec:
    """A job: data, model, pruning, evaluation and outputs. All other fields are settings, see `PruneConfig`.

    Attributes:
        prune: the pruning, or None to evaluate the dense model only.
        evaluation_required: whether missing evaluation data is an error; otherwise it is left out with a notice.
    """

    model: str = setting(
        STORYTELLER,
        help="a hub id",
        local=" or a Hugging Face folder with safetensors",
        title="Model",
        open=True,
        example="facebook/opt-125m",
        group=Group.FIRST,
    )
    prune: PruneConfig | None = None
    calibration: str = setting(
        "c4",
        help=f"text that saliency is measured on: {', '.join(DATA_SOURCES)} (text that the dense model samples)",
        local=", or a file: .txt, .jsonl, .json, .csv (each also .gz) or .parquet with text, .npy with token ids",
        title="Calibration text",
        metavar="SPEC",
        choices=CALIBRATION,
        open=True,
        group=Group.DATA,
    )
    nsamples: int = setting(
        128,
        help="calibration sequences",
        title="Samples",
        noun="Samples",
        metavar="N",
        least=1,
        most=MOST_SEQUENCES,
        group=Group.DATA,
    )
    seqlen: int | None = setting(
        None,
        help="tokens of a sequence; 2048, or all positions of the model if it has fewer, unless given",
        title="Tokens each",
        noun="Sequence length",
        metavar="N",
        least=2,
        most=MOST_POSITIONS,
        placeholder="auto",
        group=Group.DATA,
        beside="nsamples",
    )
    evaluation: tuple[str, ...] = setting(
        ("wikitext2",),
        help=f"text that perplexity is measured on, several with commas between: {', '.join(EVALUATION)}",
        local=", or files of text or token ids; one that is also the calibration is halved; none measures nothing",
        title="Evaluation text",
        flag="eval_data",
        metavar="SPEC[,SPEC]",
        choices=EVALUATION,
        open=True,
        convert=data_specs,
        group=Group.DATA,
    )
    text_field: str = setting(
        "text",
        help="key or column that holds the text in files of data; empty and null rows are skipped and counted",
        noun="Text field",
        metavar="NAME",
    )
    window_start: WindowStart = setting(
        WindowStart.AUTO,
        help="start of each sequence; perplexities in the papers are without a start token",
        title="Windows begin with",
        group=Group.DATA,
    )
    eval_windows: int | None = setting(
        None,
        help="perplexity windows of each data set at most; all of them unless given",
        title="Windows at most",
        noun="Evaluation windows",
        metavar="N",
        least=1,
        most=MOST_SEQUENCES,
        placeholder="all",
        group=Group.DATA,
    )
    seed: int = setting(
        0,
        help="seed of the calibration sampling",
        title="Seed",
        metavar="N",
        least=0,
        most=2**32 - 1,
        group=Group.DATA,
        beside="eval_windows",
    )
    prompts: tuple[str, ...] = setting(
        (),
        help="text to continue with the dense, the initial and the rebuilt model",
        noun="Prompt",
        flag="prompt",
        separate=False,
        example="'Once upon a time'",
    )
    zeroshot_tasks: tuple[str, ...] = setting(
        (),
        help="lm-eval tasks, several with commas between; story_ending is bundled; with --save_zeroshot the published "
        "seven unless given",
        metavar="TASK[,TASK]",
        example="story_ending",
    )
    zeroshot_limit: int | None = setting(
        None,
        help="items of a zero-shot task at most; all of them unless given",
        noun="Limit",
        flag="limit",
        metavar="N",
        least=1,
        most=10**6,
        needs=(
            Need(
                ("zeroshot_tasks",), bool, "is a setting of zero-shot tasks, which are not given: add --zeroshot_tasks"
            ),
        ),
    )
    stream: bool = setting(
        False,
        help="read the model one layer at a time, the default if it does not fit into memory; slower, and no "
        "texts are written",
        title="Read the model layer by layer",
        group=Group.MEMORY,
    )
    max_memory: str | None = setting(
        None,
        help="limit of the device's memory, like 12GiB; a model that does not fit is read layer by layer",
        title="Memory at most",
        noun="Memory limit",
        metavar="SIZE",
        convert=_size,
        example="12GiB",
        placeholder="most of what is free",
        group=Group.MEMORY,
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1 and so on", example="cpu")
    dtype: str = setting(
        "auto",
        help="float32, bfloat16, float16, or auto: that of the checkpoint, or float32 where a CPU is slow in it",
        example="bfloat16",
    )
    compute: str = setting(
        "native",
        help="dtype of the matrix products of the pruning; sums are always fp32",
        choices={"native": "the dtype of the weights", "tf32": "TensorFloat-32, on CUDA", "bfloat16": "bfloat16"},
    )
    run_dir: Path | None = setting(
        None, help="record the run in this folder: masks, events, histograms", metavar="DIR", example="out/run"
    )
    save_model: Path | None = setting(
        None, help="write the pruned model into this folder, for transformers", metavar="DIR", example="out/model"
    )
    save_data: Path | None = setting(
        None, help="write the calibration tokens to this .npy file", metavar="FILE", example="out/tokens.npy"
    )
    cache_dir: str | None = setting(None, help="where downloaded models are kept", metavar="DIR", example="cache")
    datasets_cache_dir: str | None = setting(None, help="where data sets are kept", metavar="DIR", example="cache")
    trust_remote_code: bool = setting(False, help="run Python code of the model's repository")
    evaluation_required: bool = True

    def __post_init__(self) -> None:
        read_all(self)
        if self.nsamples * (self.seqlen or 0) > MOST_TOKENS:
            raise UserError(
                f"{self.nsamples} samples of {self.seqlen} tokens are more than {MOST_TOKENS} tokens: give fewer or "
                "shorter ones."
            )
        if self.prune:
            self.prune.split_sizes(self.nsamples)

    def absolute(self) -> JobSpec:
        """The same job with absolute paths, independent of the working directory.

        Model, masks and data are paths if such a file or folder exists and they are not names of the registry.
        """
        paths = {name: getattr(self, name) for name in ("run_dir", "save_model", "save_data")}
        folders = {name: getattr(self, name) for name in ("cache_dir", "datasets_cache_dir")}
        places: dict[str, Any] = {name: path and Path(os.path.abspath(path)) for name, path in paths.items()}
        places |= {name: path and os.path.abspath(Path(path).expanduser()) for name, path in folders.items()}
        prune = self.prune
        if prune and prune.initial_masks:
            prune = replace(prune, initial_masks=_absolute(prune.initial_masks))
        return replace(
            self,
            model=self.model if self.model == STORYTELLER else _absolute(self.model),
            prune=prune,
            calibration=_absolute_data(self.calibration),
            evaluation=tuple(_absolute_data(spec) for spec in self.evaluation),
            **places,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; paths as text, tuples as lists, the pruning as PruneConfig.to_dict has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["prune"] = self.prune and self.prune.to_dict()
        return {name: _json_value(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JobSpec:
        """The inverse of `to_dict`. Raises UserError for a setting that this version does not know."""
        prune = data.get("prune")
        unknown = data.keys() - {field.name for field in fields(cls)}
        unknown |= (prune or {}).keys() - settings_of(PruneConfig).keys()
        if unknown:
            raise UserError(
                f"The job has settings that this version does not know ({', '.join(sorted(unknown))}): resume it "
                "with the version that started it."
            )
        return cls(**data | {"prune": prune and PruneConfig.from_dict(prune)})


def _absolute(text: str) -> str:
    """The absolute path of an existing file or folder; other text is not changed."""
    try:
        path = Path(text).expanduser()
        return os.path.abspath(path) if path.exists() else text
    except (OSError, RuntimeError, ValueError):  # not a possible file name
        return text


def _absolute_data(spec: str) -> str:
    return spec if spec in DATA_SOURCES else _absolute(spec)


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
