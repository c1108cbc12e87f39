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
        except ArithmeticError:
            raise UserError(
                f"Sparsity {text!r} cannot be read: give a ratio like 0.5 or 50%, or n:m like 2:4."
            ) from None

    def count(self, size: int) -> int:
        """The exact number of weights pruned in a group of `size`: floor(ratio * size), the ratio as written."""
        return size * self.n // self.m if self.m else math.floor(Fraction(str(self.ratio)) * size)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{(Decimal(str(self.ratio)) * 100).normalize():f}%"


METHODS = ("magnitude", "wanda", "wandd", "sparsegpt")


@dataclass(frozen=True)
class PruneConfig:
    """One pruning run.

    sparsity: see Sparsity.
    method: the initial mask: "magnitude", "wanda", "wandd", "sparsegpt", or "masks" (taken from `initial_masks`).
    barber: whether the block-aware rebuild follows the initial mask.
    metric, granularity: saliency and swap groups of the rebuild.
    threshold: share of the gaining pairs that change places, in [0, 1].
    retain_reconstruction: keep the values that the initialiser updated (SparseGPT) where it kept the weight.
    initial_masks: a run directory or masks file of an earlier run, with method "masks".
    """

    sparsity: Sparsity
    method: str = "magnitude"
    barber: bool = True
    metric: Metric = Metric.WD
    granularity: Granularity = Granularity.OUTPUT
    threshold: float = 0.01
    retain_reconstruction: bool = False
    initial_masks: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", choice(Metric, self.metric, "Metric"))
        object.__setattr__(self, "granularity", choice(Granularity, self.granularity, "Granularity"))
        if (self.method == "masks") != (self.initial_masks is not None):
            raise UserError("Method 'masks' and a masks path go together: give both or neither.")
        if self.method not in (*METHODS, "masks"):
            raise UserError(f"Method {self.method!r} is unknown: choose one of {', '.join(METHODS)}.")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"Threshold {self.threshold:g} is not allowed: give a number from 0 to 1, like 0.1.")

    def to_dict(self) -> dict:
        """A JSON-able dict; `sparsity` as its short text, so that a person can read the file."""
        return asdict(self) | {"sparsity": str(self.sparsity)}

    @classmethod
    def from_dict(cls, data: dict) -> PruneConfig:
        return cls(**data | {"sparsity": Sparsity.parse(data["sparsity"])})
