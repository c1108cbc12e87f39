"""The events of a run: frozen, JSON-able, in the order in which things happen.

A run is one stream of these; the command line, the app, the run directory and the tests all read the same stream.
Tensors travel beside the JSON in fields marked as payload: they are copies for consumers, there while the run is live,
and never written as JSON (the run directory stores them as safetensors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

if TYPE_CHECKING:
    from torch import Tensor


class Stage(StrEnum):
    """Which weights the model has: untouched, after the initial mask, after the rebuild."""

    DENSE = "dense"
    INITIAL = "initial"
    REBUILT = "rebuilt"


class Fate(StrEnum):
    """What became of a weight between the initial and the rebuilt mask."""

    KEPT = "kept"
    PRUNED = "pruned"
    GROWN = "grown"  # pruned by the initial mask, kept by the rebuilt one
    CUT = "cut"  # the other way round


class SwapKind(StrEnum):
    """How a round changed a sub-block's mask."""

    BY_SALIENCY = "swap"  # a share of the gaining pairs, in some granularity
    ONE_SWAP = "one-swap"  # exact swaps in every row
    NONE = ""


def payload() -> Any:
    """A field that holds tensors: left out of JSON, repr and comparison."""
    return field(default_factory=dict, repr=False, compare=False, metadata={"payload": True})


def nested(build: Callable[[Any], Any], key: str = "") -> dict[str, Any]:
    """Metadata of a field of records: `build` makes it from its JSON form, where `key` is its name if that differs."""
    return {"build": build, "key": key}


def _plain(value: Any) -> Any:
    """The JSON form of a value: records as dicts."""
    if is_dataclass(value):
        own = [f for f in fields(value) if "payload" not in f.metadata]
        return {f.metadata.get("key") or f.name: _plain_field(f, getattr(value, f.name)) for f in own}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _plain_field(declared: Field[Any], value: Any) -> Any:
    """The JSON form of a record's field; a nested record that is not there is an empty dict."""
    return {} if value is None and "build" in declared.metadata else _plain(value)


@dataclass(frozen=True)
class Record:
    """Base of what events are made of; `to_dict` and `from_dict` are its JSON form."""

    def to_dict(self) -> dict[str, Any]:
        return cast("dict[str, Any]", _plain(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises TypeError, ValueError or KeyError where the data is not the JSON form of such a record."""
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
    """How many weights a matrix has, and how many its mask prunes."""

    weights: int
    zeros: int


@dataclass(frozen=True)
class Histogram(Record):
    """log10 saliency of the weights of one matrix, binned by fate.

    Attributes:
        edges: of the bins, one more than there are bins, in log10 of saliency.
        zeros: fate -> how many of its weights have saliency zero, which a logarithm cannot show. Runs recorded before
            fates were told apart have their total, under the fate "".
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
    """What the rebuild did to one weight matrix.

    Attributes:
        weights, zeros: how many there are, and how many the rebuilt mask prunes.
        grown, cut: pruned weights that came back, and kept ones that were pruned.
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
        granularity: within which groups pairs were swapped; "" where that does not apply.
        fraction: share of the gaining pairs that was swapped.
        swaps: pairs that were swapped.
        error: of the sub-block with it, over the validation sequences.
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
        curve: all changes that were measured, the chosen one among them.
    """

    error_before: float
    curve: list[Candidate] = field(metadata=nested(Candidate.in_order))


@dataclass(frozen=True)
class Refit(Record):
    """What refitting the kept weights of a sub-block reached.

    Attributes:
        error_before, error_after: of the sub-block over the validation sequences.
        steps: of the optimiser.
        diverged: whether a pass over the data ended worse than the beginning, so that the best state was restored.
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
        """The event without its tensors, to be kept for long."""
        return Event.read(self.to_dict())

    @staticmethod
    def read(data: dict[str, Any]) -> Event:
        """An event from its JSON form. Raises TypeError, ValueError or KeyError where it is none."""
        return Event.kinds[data["event"]].from_dict({key: value for key, value in data.items() if key != "event"})


@dataclass(frozen=True)
class Notice(Event):
    """One sentence that the user should see: a default that was bent, a setting without effect."""

    message: str


@dataclass(frozen=True)
class JobPlanned(Event):
    """The phases to come, with their cost in sequence-layers (one sequence forward through one decoder layer)."""

    phases: dict[str, float]


@dataclass(frozen=True)
class Estimated(Event):
    """What the work is expected to take: see jobs.estimate.Needs.

    Attributes:
        device: its name.
        device_bytes, host_bytes: memory on the accelerator and on the host.
        disk_bytes: for activations.
        seconds: of the pruning alone.
        streamed: whether the model is read layer by layer.
        activations: where they wait: "device", "host" or "disk".
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
    """`done` of `total` steps of a phase; `where` says at what, like "layer 3 attention"."""

    phase: str
    done: int
    total: int
    where: str = ""


@dataclass(frozen=True)
class RunStarted(Event):
    """The run as it will be done.

    Attributes:
        model: its name.
        config: PruneConfig.to_dict().
        calibration: CalibrationSet.describe(); empty when none is needed.
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
        seconds: that it took.
        masks: name -> bool (out, in), True = pruned.
        weights: name -> (out, in), only where the initialiser changed kept values (SparseGPT).
    """

    layer: int
    modules: dict[str, MaskCounts] = field(metadata=nested(MaskCounts.by_name))
    seconds: float
    masks: dict[str, Tensor] = payload()
    weights: dict[str, Tensor] = payload()


@dataclass(frozen=True)
class SubBlockRebuilt(Event):
    """One sub-block has its final mask.

    Attributes:
        layer, sub_block, kind: as in ModuleInfo.
        error_before, error_after: mean squared error of the sub-block's output on the sparse stream against its target
            (see config.Target), with the initial and the final weights, over all calibration sequences.
        candidates: pairs that gain.
        swaps: pairs that were swapped, in all rounds.
        seconds: that it took.
        peak_memory: bytes on the accelerator, or of the process on the CPU.
        modules: name -> what changed.
        rounds: what each round chose; empty where nothing was measured on validation sequences.
        refit: what refitting the kept weights reached; None without.
        masks: name -> bool (out, in), True = pruned.
        weights: name -> (out, in), the final values, only where they are not the dense values under the mask.
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
    masks: dict[str, Tensor] = payload()
    weights: dict[str, Tensor] = payload()


@dataclass(frozen=True)
class StageReached(Event):
    """Every layer of the model now has the weights of this stage: the moment to evaluate or save it."""

    stage: str


@dataclass(frozen=True)
class PerplexityMeasured(Event):
    """Token-level perplexity: exp of the mean fp32 cross-entropy over non-overlapping windows of `seqlen` tokens.

    window_start: "bos" where every window begins with the beginning-of-text token, "none" where not; empty in runs that
    were recorded before it was told. low, high: the 95 % interval from the spread of the windows' losses; None where it
    is unknown.
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


@dataclass(frozen=True)
class TextGenerated(Event):
    """A continuation of `prompt`; `text` is what came so far without the prompt, `done` marks the last event of it."""

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
    """A task whose data could not be had; the other tasks still run."""

    task: str
    reason: str


@dataclass(frozen=True)
class Saved(Event):
    """Something was written for the user: what ("model", "calibration") and where."""

    what: str
    path: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The end of the pruning.

    Attributes:
        weights: prunable weights of the model.
        zeros: those that the masks prune.
        swaps: pairs that were swapped, in all sub-blocks and rounds.
        seconds: wall time.
        zero_valued: prunable weights that are zero, pruned or not; None where the run was resumed after the last of its
            layers.
    """

    weights: int
    zeros: int
    swaps: int
    seconds: float
    zero_valued: int | None = None
