"""The events of a run: frozen, JSON-able, in chronological order.

A run is one stream of events, which the command line, the app, the run directory and the tests read. Tensors and the
losses of single windows are in fields marked as payload: they are copies for consumers, exist only during the run, and
are not part of the JSON form (the run directory stores tensors as safetensors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

if TYPE_CHECKING:
    from torch import Tensor


class Stage(StrEnum):
    """Which weights the model has: dense, after the initial mask, after the rebuild."""

    DENSE = "dense"
    INITIAL = "initial"
    REBUILT = "rebuilt"


class Fate(StrEnum):
    """The state of a weight in the initial and the rebuilt mask."""

    KEPT = "kept"
    PRUNED = "pruned"
    GROWN = "grown"  # pruned by the initial mask, kept by the rebuilt one
    CUT = "cut"  # kept by the initial mask, pruned by the rebuilt one


class SwapKind(StrEnum):
    """How a round changed a sub-block's mask."""

    BY_SALIENCY = "swap"  # a share of the gaining pairs, in some granularity
    ONE_SWAP = "one-swap"  # exact one-swaps in every row
    NONE = ""


def payload(kind: type = dict) -> Any:
    """A field with tensors or many numbers: left out of JSON, repr and comparison."""
    return field(default_factory=kind, repr=False, compare=False, metadata={"payload": True})


def nested(build: Callable[[Any], Any], key: str = "") -> dict[str, Any]:
    """Metadata of a field of records: `build` makes it from its JSON form; `key` is its name there if that differs."""
    return {"build": build, "key": key}


def _json_form(value: Any) -> Any:
    """The JSON form of a value: records as dicts."""
    if is_dataclass(value):
        own = [f for f in fields(value) if "payload" not in f.metadata]
        return {f.metadata.get("key") or f.name: _json_field(f, getattr(value, f.name)) for f in own}
    if isinstance(value, dict):
        return {key: _json_form(item) for key, item in value.items()}
    return [_json_form(item) for item in value] if isinstance(value, list | tuple) else value


def _json_field(declared: Field[Any], value: Any) -> Any:
    """The JSON form of a record's field; None for a nested record is an empty dict."""
    return {} if value is None and "build" in declared.metadata else _json_form(value)


@dataclass(frozen=True)
class Record:
    """Base of events and their nested records; `to_dict` and `from_dict` convert to and from JSON form."""

    def to_dict(self) -> dict[str, Any]:
        return cast("dict[str, Any]", _json_form(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises TypeError, ValueError or KeyError if the data is not the JSON form of such a record."""
        values = {}
        known = {f.metadata.get("key") or f.name: f for f in fields(cls)}
        for key, value in data.items():
            f = known[key]
            values[f.name] = f.metadata["build"](value) if "build" in f.metadata else value
        return cls(**values)

    @classmethod
    def by_name(cls, data: dict[str, dict[str, Any]]) -> dict[str, Self]:
        return {name: cls.from_dict(item) for name, item in data.items()}

    @classmethod
    def in_order(cls, data: list[dict[str, Any]]) -> list[Self]:
        return [cls.from_dict(item) for item in data]

    @classmethod
    def if_any(cls, data: dict[str, Any]) -> Self | None:
        return cls.from_dict(data) if data else None


@dataclass(frozen=True)
class ModuleInfo(Record):
    """A prunable weight.

    Attributes:
        layer: number of its decoder layer, from 0.
        sub_block: name of its sub-block within the layer, like "self_attn".
        kind: of the sub-block, "attention" or "mlp".
        name: within the layer, like "self_attn.q_proj".
        shape: [out, in].
    """

    layer: int
    sub_block: str
    kind: str
    name: str
    shape: list[int]


@dataclass(frozen=True)
class MaskCounts(Record):
    """Number of weights of a matrix, and number of zeros in its mask."""

    weights: int
    zeros: int


@dataclass(frozen=True)
class Histogram(Record):
    """log10 saliency of the weights of one matrix, binned by fate.

    Attributes:
        edges: of the bins, one more than there are bins, in log10 of saliency.
        zeros: fate -> number of its weights with saliency zero, which has no logarithm. Older runs have only the
            total of all fates, under "".
        kept, pruned, grown, cut: weights of that fate in each bin.
    """

    edges: list[float]
    zeros: dict[str, int] = field(metadata=nested(lambda zeros: zeros if isinstance(zeros, dict) else {"": zeros}))
    kept: list[int]
    pruned: list[int]
    grown: list[int]
    cut: list[int]

    def of(self, fate: str) -> list[int]:
        """Weights of a fate in each bin."""
        return cast("list[int]", getattr(self, fate))


@dataclass(frozen=True)
class ModuleChange(Record):
    """The change of one weight matrix by the rebuild.

    Attributes:
        weights, zeros: number of weights, and of zeros in the rebuilt mask.
        grown, cut: number of pruned weights that the rebuild keeps, and of kept ones that it prunes.
        saliency_before, saliency_after: sum of the saliency of the kept weights under the initial and the rebuilt mask.
        histogram: of the saliency.
    """

    weights: int
    zeros: int
    grown: int
    cut: int
    saliency_before: float
    saliency_after: float
    histogram: Histogram = field(metadata=nested(Histogram.from_dict))


@dataclass(frozen=True)
class Candidate(Record):
    """A change of a sub-block's mask whose error was measured.

    Attributes:
        swap: how the mask was changed.
        granularity: groups within which pairs were swapped; "" if that does not apply.
        fraction: share of the gaining pairs that was swapped.
        swaps: pairs that were swapped.
        error: of the sub-block with this change, over the validation sequences.
    """

    swap: SwapKind = field(metadata=nested(SwapKind, key="move"))
    granularity: str
    fraction: float
    swaps: int
    error: float


@dataclass(frozen=True)
class Round(Candidate):
    """The change that one round chose.

    Attributes:
        error_before: over the validation sequences, before the round.
        curve: all measured changes, including the chosen one.
    """

    error_before: float
    curve: list[Candidate] = field(metadata=nested(Candidate.in_order))


@dataclass(frozen=True)
class GainCurve(Record):
    """Gain over rank: the gaining pairs of a sub-block, from the largest gain to the smallest.

    Attributes:
        ranks: of pairs, from 1, rising; of many pairs, some that are evenly spaced, and the first and the last.
        gains: saliency of the pruned weight less that of the kept one, of the pair of each rank; falling.
    """

    ranks: list[int]
    gains: list[float]


@dataclass(frozen=True)
class Refit(Record):
    """Result of refitting the kept weights of a sub-block.

    Attributes:
        error_before, error_after: of the sub-block over the validation sequences.
        steps: of the optimiser.
        diverged: whether a pass over the data ended with a higher error than before the refit, so that the best state
            was restored.
    """

    error_before: float
    error_after: float
    steps: int
    diverged: bool


@dataclass(frozen=True)
class Event(Record):
    """Base of all events; `to_dict` and `Event.read` are the JSON form, named by class."""

    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls) -> None:
        Event.kinds[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        return {"event": type(self).__name__} | super().to_dict()

    def bare(self) -> Event:
        """The event without its tensors, to save memory."""
        return Event.read(self.to_dict())

    @staticmethod
    def read(data: dict[str, Any]) -> Event:
        """An event from its JSON form. Raises TypeError, ValueError or KeyError if the data is not an event."""
        return Event.kinds[data["event"]].from_dict({key: value for key, value in data.items() if key != "event"})


@dataclass(frozen=True)
class Notice(Event):
    """One sentence for the user, for example about a changed default or a setting without effect."""

    message: str


@dataclass(frozen=True)
class JobPlanned(Event):
    """The phases of a job in order, before the first one.

    Attributes:
        phases: name -> expected seconds.
        finished: name -> the share of a phase that a resumed run has behind it.
    """

    phases: dict[str, float]
    finished: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimated(Event):
    """Estimated memory and time of a job, see jobs.estimate.Needs and jobs.costs.

    Attributes:
        device: its name.
        device_bytes, host_bytes: memory on the accelerator and on the host.
        disk_bytes: for activations.
        seconds: of the whole job, with its evaluations; of a resumed run, without what it has finished.
        streamed: whether the model is loaded layerwise.
        activations: where they are stored: "device", "host" or "disk".
    """

    device: str
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: float
    streamed: bool
    activations: str


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` steps of a phase; `where` is the position, like "layer 3 attention"."""

    phase: str
    done: int
    total: int
    where: str = ""


@dataclass(frozen=True)
class RunStarted(Event):
    """The settings and the model of the run.

    Attributes:
        model: its name.
        config: PruneConfig.to_dict().
        calibration: CalibrationSet.describe(); empty without calibration.
        modules: the prunable weights, in the model's order.
        device: like "cuda:0".
        dtype: of the weights, like "bfloat16".
    """

    model: str
    config: dict[str, Any]
    calibration: dict[str, Any]
    modules: list[ModuleInfo] = field(metadata=nested(ModuleInfo.in_order))
    device: str
    dtype: str


@dataclass(frozen=True)
class LayerInitialised(Event):
    """One decoder layer, or in one pass one sub-block of it, has its initial mask.

    Attributes:
        layer: its number.
        modules: name -> counts.
        seconds: wall time.
        starved: names of experts that too few calibration tokens reached, so that their masks are by magnitude.
        masks: name -> bool (out, in), True = pruned.
        weights: name -> (out, in), only if the method updated kept values (SparseGPT).
    """

    layer: int
    modules: dict[str, MaskCounts] = field(metadata=nested(MaskCounts.by_name))
    seconds: float
    starved: list[str] = field(default_factory=list)
    masks: dict[str, Tensor] = payload()
    weights: dict[str, Tensor] = payload()


@dataclass(frozen=True)
class SubBlockRebuilt(Event):
    """One sub-block has its final mask.

    Attributes:
        layer, sub_block, kind: as in ModuleInfo.
        error_before, error_after: mean squared error of the sub-block's output on the sparse stream against its target
            (see config.Target), with the initial and the final weights, over all calibration sequences.
        candidates: number of gaining pairs.
        swaps: number of swapped pairs, in all rounds.
        seconds: wall time.
        peak_memory: bytes on the accelerator, or of the process on the CPU.
        modules: name -> what changed.
        rounds: the chosen change of each round; empty if nothing was measured on validation sequences.
        refit: result of the refit; None without one.
        curve: gains of the gaining pairs, in the first round; None without pairs by saliency, and in older runs. With
            threshold "auto", pairs are within the whole sub-block.
        masks: name -> bool (out, in), True = pruned.
        weights: name -> (out, in), the final values, only if they differ from the masked dense values.
    """

    layer: int
    sub_block: str
    kind: str
    error_before: float
    error_after: float
    candidates: int
    swaps: int
    seconds: float
    peak_memory: int
    modules: dict[str, ModuleChange] = field(metadata=nested(ModuleChange.by_name))
    rounds: list[Round] = field(default_factory=list, metadata=nested(Round.in_order))
    refit: Refit | None = field(default=None, metadata=nested(Refit.if_any, key="reconstruction"))
    curve: GainCurve | None = field(default=None, metadata=nested(GainCurve.if_any))
    masks: dict[str, Tensor] = payload()
    weights: dict[str, Tensor] = payload()


@dataclass(frozen=True)
class StageReached(Event):
    """Every layer of the model now has the weights of this stage, so it can be evaluated or saved."""

    stage: str


@dataclass(frozen=True)
class PerplexityMeasured(Event):
    """Token-level perplexity: exp of the mean fp32 cross-entropy over non-overlapping windows of `seqlen` tokens.

    window_start: "bos" if every window begins with the beginning-of-text token, "none" if not; empty in older runs.
    low, high: 95 % confidence interval from the spread of the windows' losses; None if unknown.
    losses: mean cross-entropy (nats) of each window; empty if the event was read from a run directory.
    """

    stage: str
    dataset: str
    seqlen: int
    tokens: int
    perplexity: float
    seconds: float
    window_start: str = ""
    low: float | None = None
    high: float | None = None
    losses: list[float] = payload(list)


@dataclass(frozen=True)
class TextGenerated(Event):
    """A continuation of `prompt`; `text` is the text so far without the prompt, `done` marks its last event."""

    stage: str
    prompt: str
    text: str
    done: bool


@dataclass(frozen=True)
class ZeroShotMeasured(Event):
    """One lm-eval task: metric name -> value and metric name -> standard error (None where lm-eval has none)."""

    stage: str
    task: str
    metrics: dict[str, float]
    stderr: dict[str, float | None]
    samples: int


@dataclass(frozen=True)
class ZeroShotSkipped(Event):
    """A task without available data; the other tasks still run."""

    task: str
    reason: str


@dataclass(frozen=True)
class Saved(Event):
    """An output was written: what ("model", "calibration") and its path."""

    what: str
    path: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The end of the pruning.

    Attributes:
        weights: number of prunable weights of the model.
        zeros: number of weights that the masks prune.
        swaps: number of swapped pairs, in all sub-blocks and rounds.
        seconds: wall time.
        zero_valued: number of prunable weights that are zero, pruned or not; None if the run was resumed after its last
            layer.
    """

    weights: int
    zeros: int
    swaps: int
    seconds: float
    zero_valued: int | None = None


@dataclass(frozen=True)
class SweepPlanned(Event):
    """The jobs of a sweep, before the first one.

    Attributes:
        jobs: name -> expected seconds, in the order of the work; 0 for one that has finished before.
    """

    jobs: dict[str, float]


@dataclass(frozen=True)
class SweepJobStarted(Event):
    """A job of a sweep begins or is resumed; its own events follow, up to its SweepJobEnded."""

    name: str


@dataclass(frozen=True)
class SweepJobEnded(Event):
    """A job of a sweep has ended, in this process or before.

    Attributes:
        name: of the job.
        error: the sentence of a job that failed; "" for one that has finished.
    """

    name: str
    error: str = ""
