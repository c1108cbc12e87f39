"""What a pruning run is asked to do: frozen dataclasses, validated where they are built."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from barber.errors import UserError


class Metric(StrEnum):
    """Saliency of a weight in the rebuild (LLM-Barber, arXiv 2408.10631): weight times gradient, or either alone."""

    WD = "WD"
    W = "W"
    D = "D"


class Granularity(StrEnum):
    """Within which groups of weights pruned and kept ones may change places."""

    LAYER = "layer"  # one weight matrix
    INPUT = "input1"  # one input column of a matrix
    OUTPUT = "output1"  # one output row of a matrix
    BLOCK = "block"  # all matrices of the sub-block


class Refiner(StrEnum):
    """What improves the initial mask."""

    BARBER = "barber"  # swaps by saliency in the sub-block (LLM-Barber, arXiv 2408.10631)
    ONE_SWAP = "one-swap"  # exact greedy swaps in each output row, on the error of the weight's own output
    DSNOT = "dsnot"  # grow and prune in each output row by the row's mean error (DSnoT, arXiv 2310.08915)


class Target(StrEnum):
    """What a sub-block's output is compared with."""

    BLOCK = "block"  # its own output with dense weights on the sparse stream, as published
    DENSE_STREAM = "dense-stream"  # what the dense model really had there


class Order(StrEnum):
    """When a sub-block gets its initial mask."""

    PAPER = "paper"  # before any is rebuilt: initialise the whole model, then rebuild it, as published
    ONE_PASS = "one-pass"  # just before it is rebuilt, on the stream that the final sub-blocks before it produce


class Allocation(StrEnum):
    """How the pruned weights are shared out over the layers; the count of the whole model stays the same."""

    UNIFORM = "uniform"
    OWL = "owl"  # layers with more outliers of Wanda's score keep more (OWL, arXiv 2310.05175)
    SALIENCY = "saliency"  # the same rule, on the saliency of the rebuild


def choice(enum: type[StrEnum], value: str, what: str) -> StrEnum:
    """`value` as a member of `enum`, or a UserError that lists the members."""
    try:
        return enum(value)
    except ValueError:
        raise UserError(f"{what} {value!r} is unknown: choose one of {', '.join(enum)}.") from None


@dataclass(frozen=True)
class Sparsity:
    """How many weights are pruned: a ratio of each group, or n zeros in every m consecutive inputs.

    ratio: share of the weights that is pruned, in (0, 1); n / m for an n:m pattern.
    n, m: 0 and 0 for unstructured sparsity.
    """

    ratio: float
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if self.m:
            if not 0 < self.n < self.m:
                raise UserError(f"Pattern {self.n}:{self.m} is not possible: n:m needs 0 < n < m, for example 2:4.")
            if abs(self.ratio - self.n / self.m) > 1e-9:
                raise UserError(
                    f"Pattern {self.n}:{self.m} prunes {self.n / self.m:g} of the weights, but the ratio given is "
                    f"{self.ratio:g}: leave the ratio out or make it {self.n / self.m:g}."
                )
        elif not (math.isfinite(self.ratio) and 0 < self.ratio < 1):
            raise UserError(f"Sparsity ratio {self.ratio:g} is not allowed: give a number between 0 and 1, like 0.5.")

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """Read "50%", "0.5" or "2:4"."""
        text = text.strip()
        if match := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
            n, m = int(match[1]), int(match[2])
            return cls(n / m if m else 0.0, n, m or -1)
        try:
            return cls(float(Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)))
        except (ArithmeticError, ValueError):  # of a signalling NaN
            raise UserError(
                f"Sparsity {text!r} cannot be read: give a ratio like 0.5 or 50%, or n:m like 2:4."
            ) from None

    def count(self, size: int) -> int:
        """The exact number of weights pruned in a group of `size`: floor(ratio * size), the ratio as written."""
        return size * self.n // self.m if self.m else math.floor(Fraction(str(self.ratio)) * size)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{(Decimal(str(self.ratio)) * 100).normalize():f}%"


METHODS = ("magnitude", "wanda", "wandd", "sparsegpt", "ria", "random")
AUTO = "auto"
AUTO_ROUNDS = 4  # most of what there is to gain; later rounds cost as much and change little
VALIDATION_EVERY = 4  # one calibration sequence in so many judges what the others propose


@dataclass(frozen=True)
class PruneConfig:
    """One pruning run.

    sparsity: see Sparsity.
    method: the initial mask, one of METHODS, or "masks" (taken from `initial_masks`).
    barber: whether a rebuild by `refiner` follows the initial mask.
    metric, granularity, threshold, rounds: of the refiner "barber". threshold: the share of the gaining pairs that
    change places, in [0, 1], or "auto": share, granularity and exact one-swaps compete in every round, judged by the
    error on sequences that are held out. rounds: how often saliency is measured and weights change places at most;
    None means 1 for a fixed threshold, as published, and AUTO_ROUNDS for "auto".
    target: what a sub-block is compared with. allocation: how the pruned weights are shared out over the layers.
    reconstruct: re-fit the kept weights of each sub-block after its mask is final.
    retain_reconstruction: keep the values that the initialiser updated (SparseGPT) where it kept the weight.
    initial_masks: a run directory or masks file of an earlier run, with method "masks".
    order: whether the whole model is initialised first, or each sub-block just before it is rebuilt.
    """

    sparsity: Sparsity
    method: str = "magnitude"
    barber: bool = True
    metric: Metric = Metric.WD
    granularity: Granularity = Granularity.OUTPUT
    threshold: float | str = 0.01
    refiner: Refiner = Refiner.BARBER
    rounds: int | None = None
    target: Target = Target.BLOCK
    allocation: Allocation = Allocation.UNIFORM
    reconstruct: bool = False
    retain_reconstruction: bool = False
    initial_masks: str | None = None
    order: Order = Order.PAPER

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", choice(Metric, self.metric, "Metric"))
        object.__setattr__(self, "granularity", choice(Granularity, self.granularity, "Granularity"))
        object.__setattr__(self, "refiner", choice(Refiner, self.refiner, "Refiner"))
        object.__setattr__(self, "target", choice(Target, self.target, "Target"))
        object.__setattr__(self, "order", choice(Order, self.order, "Order"))
        object.__setattr__(self, "allocation", choice(Allocation, self.allocation, "Allocation"))
        if (self.method == "masks") != (self.initial_masks is not None):
            raise UserError("Method 'masks' and a masks path go together: give both or neither.")
        if self.method not in (*METHODS, "masks"):
            raise UserError(f"Method {self.method!r} is unknown: choose one of {', '.join(METHODS)}.")
        if self.threshold != AUTO and not (isinstance(self.threshold, float | int) and 0 <= self.threshold <= 1):
            raise UserError(f"Threshold {self.threshold} is not allowed: give a number from 0 to 1, like 0.1, or auto.")
        if self.rounds is not None and self.rounds < 1:
            raise UserError(f"Rounds {self.rounds} is not allowed: give 1 or more.")
        own = self.barber and self.refiner is not Refiner.BARBER
        if own and self.target is not Target.BLOCK and not self.reconstruct:
            raise UserError(
                f"Refiner {self.refiner} compares each weight with its own dense output: target {self.target} is for "
                "the refiner barber and for re-fitting."
            )
        if self.order is Order.ONE_PASS and (self.method == "masks" or not self.refined):
            raise UserError(
                f"Order {self.order} makes each initial mask just before its rebuild, but this run "
                f"{'has masks already' if self.method == 'masks' else 'rebuilds nothing'}: leave the order out."
            )
        if self.allocation is not Allocation.UNIFORM:
            if self.sparsity.m:
                raise UserError(
                    f"Allocation {self.allocation} gives each layer a ratio of its own, which {self.sparsity} does not "
                    "allow: use an unstructured ratio or allocation uniform."
                )
            if self.method == "masks":
                raise UserError("Masks of an earlier run have their ratios already: leave the allocation out.")

    def __str__(self) -> str:
        """The run in a line: method, sparsity and what follows."""
        parts = [f"{self.method} {self.sparsity}"]
        if self.allocation is not Allocation.UNIFORM:
            parts.append(f"ratios by {self.allocation}")
        if self.barber:
            settings = [str(self.metric)]
            settings += [] if self.auto else [str(self.granularity)]
            settings += [f"threshold {self.threshold}"]
            settings += [f"up to {self.most_rounds} rounds"] if self.most_rounds > 1 else []
            parts.append(f"rebuilt by {', '.join(settings) if self.refiner is Refiner.BARBER else self.refiner}")
        if self.reconstruct:
            parts.append("kept weights re-fitted")
        if self.refined and self.target is not Target.BLOCK:
            parts.append(f"target {self.target}")
        if self.order is Order.ONE_PASS:
            parts.append("in one pass")
        return ", ".join(parts)

    @property
    def auto(self) -> bool:
        """Whether held-out error chooses the swaps."""
        return self.barber and self.refiner is Refiner.BARBER and self.threshold == AUTO

    @property
    def most_rounds(self) -> int:
        """How many rounds there may be."""
        return self.rounds or (AUTO_ROUNDS if self.auto else 1)

    @property
    def refined(self) -> bool:
        """Whether anything follows the initial mask."""
        return self.barber or self.reconstruct

    @property
    def uses_validation(self) -> bool:
        """Whether some calibration sequences judge, instead of being learned from."""
        return self.auto or self.reconstruct

    def to_dict(self) -> dict:
        """A JSON-able dict; `sparsity` as its short text, so that a person can read the file."""
        return asdict(self) | {"sparsity": str(self.sparsity)}

    @classmethod
    def from_dict(cls, data: dict) -> PruneConfig:
        return cls(**data | {"sparsity": Sparsity.parse(data["sparsity"])})
