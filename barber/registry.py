"""What a run can choose from: initial masks, refiners, saliency metrics and data sources, one entry each.

The command line, the form, the estimate and the engine all read these entries, so that a new one is one line here and
one file with its implementation. Nothing here imports torch: an implementation is named, and found when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal, TypeVar

from barber.fields import Choice

Within = Literal["row", "matrix", "columns"]
ROW: Within = "row"
MATRIX: Within = "matrix"
COLUMNS: Within = "columns"


def _function(implementation: str) -> Callable[..., Any]:
    found: Callable[..., Any] = resolve_name(implementation)
    return found


@dataclass(frozen=True)
class InitialMask:
    """A method that gives a weight its initial mask.

    Attributes:
        name: on the command line and in a run's files.
        title: in the app.
        implementation: "module:function", see `call`.
        statistic: what it needs to know of the weight's inputs: "squares" or "gram" (see kernels/statistics.py), or
            None for a method that needs no calibration data.
        within: where scores compete: in each output row, in the matrix, or in each 128 columns (as SparseGPT does).
        kind: "score": (weight, statistic if any) -> scores (out, in), of which the smallest are pruned; "seeded": the
            same of (weight, its name); "update": (weight,
            prepared statistic, sparsity, zeros) -> (updated weight (out, in) in fp32, mask).
        prepare: "module:function" of an update: (statistic, name of the weight) -> what is made once for all weights
            that share their inputs.
        settings: names of the settings that only this method has.
        hessians: matrices (in, in) in fp32 that it holds at a time.
    """

    name: str
    title: str
    implementation: str
    statistic: Literal["squares", "gram"] | None
    within: Within
    kind: Literal["score", "seeded", "update"] = "score"
    prepare: str = ""
    settings: tuple[str, ...] = ()
    hessians: int = 0

    @property
    def call(self) -> Callable[..., Any]:
        """The implementation."""
        return _function(self.implementation)

    @property
    def prepare_call(self) -> Callable[..., Any]:
        """The implementation of `prepare`; without one, the statistic stays as it is."""
        return _function(self.prepare) if self.prepare else lambda statistic, name: statistic

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration data."""
        return self.statistic is not None

    @property
    def passes(self) -> float:
        """Forward passes of the calibration set that it costs: one to gather its statistic, one to move on."""
        return 2.0 if self.statistic else 0.0


@dataclass(frozen=True)
class Refiner:
    """What improves the initial mask of a sub-block.

    Attributes:
        name: on the command line and in a run's files.
        title: in the app.
        implementation: "module:function". Row by row: (mask, dense, values, statistic, m) -> mask, where all but the
            statistic are (out, in). Otherwise as `pruning.rebuild.barber`.
        statistic: what a refiner that works row by row needs to know of a weight's inputs: "gram" or "moments".
        settings: names of the settings that only this refiner has.
    """

    name: str
    title: str
    implementation: str
    statistic: Literal["gram", "moments"] | None = None
    settings: tuple[str, ...] = ()

    @property
    def call(self) -> Callable[..., Any]:
        """The implementation."""
        return _function(self.implementation)

    @property
    def by_row(self) -> bool:
        """Whether it works on one output row at a time, on the error of each weight's own output."""
        return self.statistic is not None


@dataclass(frozen=True)
class SaliencyMetric:
    """Saliency of a weight in the rebuild.

    Attributes:
        name: on the command line and in a run's files, as published.
        title: in the app.
        implementation: "module:function": (weight, mean squared gradient) -> saliency, all (out, in).
    """

    name: str
    title: str
    implementation: str

    @property
    def call(self) -> Callable[..., Any]:
        """The implementation."""
        return _function(self.implementation)


class WindowStart(Choice):
    """What a window of text begins with: the tokenizer's beginning-of-text token, or whatever stands there.

    Some models (Gemma) predict nothing well without that token; the papers cut their windows without it.
    """

    AUTO = "auto", "what the tokenizer does"
    NONE = "none", "no such token"
    BOS = "bos", "the beginning-of-text token"


@dataclass(frozen=True)
class Split:
    """One split of a data set of the hub.

    Attributes:
        name: of the split.
        join: what stands between its texts.
        first: how many of its texts are used; None for all.
        files: the files of the data set that hold it; None for those that the split names.
    """

    name: str
    join: str
    first: int | None = None
    files: str | None = None


@dataclass(frozen=True)
class HubData:
    """Where a data set lies on the hub.

    Attributes:
        path: its id.
        column: of its text.
        calibration: the split that calibration sequences are drawn from.
        evaluation: the split that perplexity is measured on.
        options: further arguments of `datasets.load_dataset`.
    """

    path: str
    column: str
    calibration: Split
    evaluation: Split
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    """A data set by name: of the hub, or the bundled stories where `hub` is None."""

    name: str
    title: str
    hub: HubData | None = None


Entry = TypeVar("Entry", InitialMask, Refiner, SaliencyMetric, DataSource)


def _by_name(*entries: Entry) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


INITIAL_MASKS: dict[str, InitialMask] = _by_name(
    InitialMask("magnitude", "Magnitude", "barber.kernels.scores:magnitude", None, MATRIX),
    InitialMask("wanda", "Wanda", "barber.kernels.scores:wanda", "squares", ROW),
    InitialMask("wandd", "Wanda, derivative", "barber.kernels.scores:wandd", "squares", ROW),
    InitialMask(
        "sparsegpt",
        "SparseGPT",
        "barber.kernels.sparsegpt:sparsegpt",
        "gram",
        COLUMNS,
        kind="update",
        prepare="barber.kernels.sparsegpt:InverseHessian.of",
        settings=("retain_reconstruction",),
        hessians=3,
    ),
    InitialMask(
        "alps",
        "ALPS",
        "barber.kernels.alps:alps",
        "gram",
        MATRIX,
        kind="update",
        prepare="barber.kernels.alps:ScaledGram.of",
        settings=("retain_reconstruction",),
        hessians=5,
    ),
    InitialMask("ria", "RIA", "barber.kernels.scores:ria", "squares", MATRIX),
    InitialMask("random", "Random (control)", "barber.kernels.scores:random", None, MATRIX, kind="seeded"),
)

BARBER = "barber"
REFINERS: dict[str, Refiner] = _by_name(
    Refiner(
        BARBER,
        "Barber: by saliency",
        "barber.pruning.rebuild:barber",
        settings=("metric", "granularity", "threshold", "rounds"),
    ),
    Refiner("one-swap", "Exact one-swaps in each row", "barber.kernels.one_swap:one_swap", "gram"),
    Refiner("dsnot", "DSnoT: by each row's mean error", "barber.kernels.dsnot:dsnot_by_moments", "moments"),
)

METRICS: dict[str, SaliencyMetric] = _by_name(
    SaliencyMetric("WD", "weight times gradient", "barber.kernels.scores:weight_times_gradient"),
    SaliencyMetric("W", "weight alone", "barber.kernels.scores:weight_alone"),
    SaliencyMetric("D", "gradient alone", "barber.kernels.scores:gradient_alone"),
)

# Splits and separators as published (Wanda's and SparseGPT's loaders, which LLM-Barber keeps); ids as they are now.
DATA_SOURCES: dict[str, DataSource] = _by_name(
    DataSource(
        "c4",
        "C4",
        HubData(
            "allenai/c4",
            "text",
            Split("train", " ", files="en/c4-train.00000-of-01024.json.gz"),
            Split("validation", " ", first=1100, files="en/c4-validation.00000-of-00008.json.gz"),
        ),
    ),
    DataSource(
        "wikitext2",
        "WikiText-2",
        HubData(
            "Salesforce/wikitext", "text", Split("train", " "), Split("test", "\n\n"), {"name": "wikitext-2-raw-v1"}
        ),
    ),
    DataSource(
        "ptb",
        "Penn Treebank",
        HubData(
            "ptb-text-only/ptb_text_only",
            "sentence",
            Split("train", " ", files="penn_treebank/train/*.parquet"),
            Split("test", " ", files="penn_treebank/test/*.parquet"),
            {"revision": "refs/convert/parquet"},  # its main branch is a loading script, which `datasets` refuses
        ),
    ),
    DataSource("storyteller", "Stories, bundled"),
)
