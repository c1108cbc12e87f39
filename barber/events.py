"""The events of a run: frozen, JSON-able, in the order in which things happen.

A run is one stream of these; the command line, the app, the run directory and the tests all read the same stream.
Tensors travel beside the JSON in fields marked as payload: they are there while the run is live and never written
as JSON (the run directory stores them as safetensors).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar


class Stage(StrEnum):
    """Which weights the model has: untouched, after the initial mask, after the rebuild."""

    DENSE = "dense"
    INITIAL = "initial"
    REBUILT = "rebuilt"


def payload():
    """A field that holds tensors: left out of JSON, repr and comparison."""
    return field(default_factory=dict, repr=False, compare=False, metadata={"payload": True})


@dataclass(frozen=True)
class Event:
    """Base of all events; `to_dict` and `from_dict` are the JSON form, named by class."""

    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls) -> None:
        Event.kinds[cls.__name__] = cls

    def to_dict(self) -> dict:
        own = {f.name: getattr(self, f.name) for f in fields(self) if "payload" not in f.metadata}
        return {"event": type(self).__name__} | own

    def bare(self) -> Event:
        """The event without its tensors, to be kept for long."""
        return Event.from_dict(self.to_dict())

    @staticmethod
    def from_dict(data: dict) -> Event:
        return Event.kinds[data["event"]](**{k: v for k, v in data.items() if k != "event"})


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
    """What the work is expected to take: see estimate.Needs.

    device: its name; device_bytes and host_bytes of memory, disk_bytes for activations; seconds of the pruning alone;
    streamed: whether the model is read layer by layer; activations: "device", "host" or "disk", where they wait.
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

    config: PruneConfig.to_dict(). calibration: CalibrationSet.describe() (empty when none is needed).
    modules: one dict per prunable weight, in order: layer (int), sub_block ("self_attn"), kind ("attention" or "mlp"),
    name ("self_attn.q_proj", within the layer), shape [out, in].
    """

    model: str
    config: dict
    calibration: dict
    modules: list[dict]
    device: str
    dtype: str


@dataclass(frozen=True)
class LayerInitialised(Event):
    """One decoder layer has its initial mask.

    modules: name -> {"weights": int, "zeros": int}. masks: name -> bool (out, in), True = pruned.
    weights: name -> (out, in), only where the initialiser changed kept values (SparseGPT).
    """

    layer: int
    modules: dict[str, dict]
    seconds: float
    masks: dict = payload()
    weights: dict = payload()


@dataclass(frozen=True)
class SubBlockRebuilt(Event):
    """One sub-block has its final mask.

    error_before, error_after: mean squared error of the sub-block's output on the sparse stream against its target
    (see config.Target), with the initial and the final weights, over all calibration sequences. candidates: pairs
    that gain; swaps: pairs that changed places. seconds; peak_memory: bytes on the accelerator, or of the process on
    the CPU.
    rounds: what each round chose, JSON-able: see rebuild.Round; with threshold "auto", the errors in it are those of
    the sequences held out, and its curve tells what else was tried. reconstruction: {"error_before", "error_after":
    float on the sequences held out, "steps": int, "diverged": bool (a pass ended worse
    than the beginning, and went back to the best state)}, empty without.
    modules: name -> {"weights", "zeros", "grown", "cut": int, "saliency_before", "saliency_after": float (sum over
    the kept weights), "histogram": see scores.histogram}. masks: name -> bool (out, in), True = pruned.
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
    modules: dict[str, dict]
    rounds: list[dict] = field(default_factory=list)
    reconstruction: dict = field(default_factory=dict)
    masks: dict = payload()
    weights: dict = payload()


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
    """The end: zeros of all prunable weights, swaps in all, wall seconds of the pruning."""

    weights: int
    zeros: int
    swaps: int
    seconds: float
