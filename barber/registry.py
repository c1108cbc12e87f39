"""The registry: one entry for each initial mask, refiner, saliency metric and data source.

The command line, the form, the estimate and the engine all read these entries, so that a new one needs one line
here and one file with its implementation. Implementations are named and imported when used, so this imports no torch.
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
    """A method that makes the initial mask of a weight.

    Attributes:
        name: on the command line and in a run's files.
        title: in the app.
        implementation: "module:function", see `call`.
        statistic: statistic of the weight's inputs: "squares" or "gram" (see kernels/statistics.py), or None for a
            method without calibration data.
        within: group in which scores are compared: each output row, the matrix, or each 128 columns (as in SparseGPT).
        kind: "score": (weight, statistic if any) -> scores (out, in), of which the smallest are pruned; "seeded": the
            same of (weight, its name); "update": (weight,
            prepared statistic, sparsity, zeros) -> (updated weight (out, in) in fp32, mask).
        prepare: "module:function" of an update: (statistic, name of the weight) -> prepared statistic, made once for
            all weights with the same inputs.
        settings: names of the settings of this method only.
        hessians: number of fp32 matrices (in, in) in memory at a time.
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
        """The implementation of `prepare`; the identity without one."""
        return _function(self.prepare) if self.prepare else lambda statistic, name: statistic

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration data."""
        return self.statistic is not None

    @property
    def passes(self) -> float:
        """Cost in forward passes of the calibration set: one for the statistic, one to advance the stream."""
        return 2.0 if self.statistic else 0.0


@dataclass(frozen=True)
class Refiner:
    """A method that rebuilds the initial masks of a sub-block.

    Attributes:
        name: on the command line and in a run's files.
        title: in the app.
        implementation: "module:function". Row by row: (mask, dense, values, statistic, m) -> mask, where all but the
            statistic are (out, in). Otherwise as `pruning.rebuild.barber`.
        statistic: statistic of a weight's inputs for a refiner by row: "gram" or "moments".
        settings: names of the settings of this refiner only.
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
        """Whether it rebuilds each output row by the error of the weight's own output."""
        return self.statistic is not None


@dataclass(frozen=True)
class SaliencyMetric:
    """A saliency metric of the rebuild.

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
    """Whether a window of text begins with the tokenizer's beginning-of-text token.

    Some models (Gemma) predict badly without that token; the papers cut their windows without it.
    """

    AUTO = "auto", "what the tokenizer does"
    NONE = "none", "no such token"
    BOS = "bos", "the beginning-of-text token"


@dataclass(frozen=True)
class Split:
    """One split of a data set of the hub.

    Attributes:
        name: of the split.
        join: separator between its texts.
        first: number of texts to use; None for all.
        files: files of the data set with this split; None for the default.
    """

    name: str
    join: str
    first: int | None = None
    files: str | None = None


@dataclass(frozen=True)
class HubData:
    """A data set on the hub.

    Attributes:
        path: its id.
        column: of the text.
        calibration: the split to draw calibration sequences from.
        evaluation: the split to measure perplexity on.
        options: further arguments of `datasets.load_dataset`.
    """

    path: str
    column: str
    calibration: Split
    evaluation: Split
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    """A data set by name: on the hub, or made by this program if `hub` is None.

    Attributes:
        name: on the command line and in a run's files.
        title: in the app.
        hub: where it is on the hub.
        evaluates: whether perplexity can be measured on it.
    """

    name: str
    title: str
    hub: HubData | None = None
    evaluates: bool = True


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

SELF = "self"

# Splits and separators as published (the loaders of Wanda and SparseGPT, used by LLM-Barber); current ids.
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
    DataSource(SELF, "Sampled from the dense model", evaluates=False),
)
