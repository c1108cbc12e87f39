"""The settings of a pruning run: frozen dataclasses, validated at construction."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from barber.errors import UserError
from barber.fields import Choice, Group, Need, Setting, read_all, setting, titles
from barber.registry import BARBER, INITIAL_MASKS, METRICS, REFINERS, InitialMask, Refiner


class Granularity(Choice):
    """Groups of weights within which pruned and kept weights are swapped."""

    BLOCK = "block", "the whole sub-block"  # all matrices of the sub-block
    LAYER = "layer", "one matrix"
    OUTPUT = "output1", "one output row"  # of a matrix
    INPUT = "input1", "one input column"  # of a matrix


class Target(Choice):
    """Target of the rebuild: what a sub-block's output is compared with."""

    BLOCK = "block", "its own dense output"  # its own output with dense weights on the sparse stream, as published
    DENSE_STREAM = "dense-stream", "the dense model's output"  # the dense stream: its output in the dense model


class Order(Choice):
    """When a sub-block gets its initial mask."""

    PAPER = "paper", "the whole model first"  # before any is rebuilt, as published
    ONE_PASS = "one-pass", "each sub-block before its rebuild"  # on the sparse stream of the final sub-blocks before it


class Allocation(Choice):
    """Distribution of the pruned weights over the layers; the count of the whole model stays the same."""

    UNIFORM = "uniform", "the same in every layer"
    OWL = "owl", "by outliers (OWL)"  # layers with more outliers of Wanda's score keep more (OWL, arXiv 2310.05175)
    SALIENCY = "saliency", "by saliency"  # the same rule with the saliency of the rebuild


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of a run: a ratio of each group, or n zeros in every m consecutive inputs.

    Attributes:
        ratio: share of pruned weights, in (0, 1); n / m for an n:m pattern.
        n, m: the pattern; 0 and 0 for unstructured sparsity.
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
        """Number of pruned weights in a group of `size`: floor(ratio * size), exact for the decimal ratio."""
        return size * self.n // self.m if self.m else math.floor(Fraction(str(self.ratio)) * size)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{(Decimal(str(self.ratio)) * 100).normalize():f}%"


MASKS = "masks"  # the method of a run that takes its initial masks from an earlier one
AUTO = "auto"
AUTO_ROUNDS = 4  # later rounds cost as much and lower the error little
VALIDATION_EVERY = 4  # every fourth calibration sequence is for validation

REBUILT = Need(("barber",), bool, "is a setting of the rebuild, which is off: add --prune_barber")
REFINED = Need(
    ("barber", "reconstruct"),
    lambda barber, reconstruct: barber or reconstruct,
    "is a setting of the rebuild and of --reconstruct: add one of them",
)
COMPARED = Need(
    ("barber", "refiner", "reconstruct"),
    lambda barber, refiner, reconstruct: reconstruct or (barber and not REFINERS[refiner].by_row),
    "is a setting of the refiner barber and of --reconstruct, since {refiner} compares each weight with its own dense "
    "output: leave it out",
)
NOT_AUTO = Need(("threshold",), lambda threshold: threshold != AUTO, "is chosen by --threshold auto: leave it out")
NO_MASKS = Need(("method",), lambda method: method != MASKS, "has no effect with given initial masks: leave it out")


def own(setting: str, key: str, entries: dict[str, InitialMask] | dict[str, Refiner], *others: str) -> Need:
    """The need of a setting of only some initial masks (key "method") or refiners (key "refiner").

    others: further values of the key for which the setting has an effect.
    """
    owners = [name for name, entry in entries.items() if setting in entry.settings]
    return Need(
        (key,),
        lambda chosen: chosen in (*owners, *others),
        f"is a setting of the {key} {' and '.join(owners)}, not of {{{key}}}: leave it out",
    )


@dataclass(frozen=True)
class PruneConfig:
    """The settings of one pruning run; each field declares its help text, allowed values and needs.

    Values without effect are allowed, since a run file has all settings.
    """

    sparsity: Sparsity = setting(
        help="share of the weights to prune, like 50% or 0.5, or n:m, n zeros in every m consecutive inputs, like 2:4",
        title="Pattern",
        flags=(
            Setting(
                name="sparsity_ratio",
                flag="sparsity_ratio",
                help="share of the weights to prune, between 0 and 1",
                kind=float,
            ),
            Setting(
                name="sparsity_type",
                flag="sparsity_type",
                help="unstructured, or n:m, n zeros in every m consecutive inputs, like 2:4",
                default="unstructured",
            ),
        ),
        choices={pattern: pattern for pattern in ("50%", "60%", "70%", "2:4", "4:8")},
        open=True,
        convert=Sparsity.parse,
        example="50% or 2:4",
        group=Group.FIRST,
        beside="method",
    )
    method: str = setting(
        "magnitude",
        help="the method of the initial mask",
        title="Initial mask",
        flag="prune_method",
        explicit=True,
        choices=titles(INITIAL_MASKS.values()),
        also=(MASKS,),
        group=Group.FIRST,
        width=2,
    )
    barber: bool = setting(
        True,
        help="in each sub-block, swap pruned weights of large saliency and kept ones of small saliency (the rebuild)",
        title="Rebuild the mask of each sub-block",
        noun="Rebuild",
        flag="prune_barber",
        public="rebuild",
        group=Group.FIRST,
    )
    threshold: float | str = setting(
        0.01,
        help="share of the gaining pairs to swap, those whose pruned weight has larger saliency than the kept one",
        title="Threshold",
        least=0,
        most=1,
        words={AUTO: "chosen by validation error"},
        example="0.1",
        group=Group.FIRST,
        needs=(REBUILT, own("threshold", "refiner", REFINERS)),
    )
    allocation: Allocation = setting(
        Allocation.UNIFORM,
        help="how pruned weights are distributed over the layers, where sensitive ones may keep more; the count of "
        "the whole model stays the same",
        title="Sparsity of the layers",
        group=Group.METHOD,
        needs=(NO_MASKS,),
    )
    refiner: str = setting(
        BARBER,
        help="the method that rebuilds the mask",
        title="Rebuild by",
        choices=titles(REFINERS.values()),
        group=Group.METHOD,
        needs=(REBUILT,),
    )
    granularity: Granularity = setting(
        Granularity.OUTPUT,
        help="groups of weights within which pruned and kept ones are swapped",
        title="Swaps happen within",
        flag="prune_granularity",
        group=Group.METHOD,
        needs=(REBUILT, own("granularity", "refiner", REFINERS), NOT_AUTO),
    )
    metric: str = setting(
        "WD",
        help="the saliency of a weight in the rebuild",
        title="Saliency",
        flag="prune_metric",
        choices=titles(METRICS.values()),
        group=Group.METHOD,
        needs=(REBUILT, own("metric", "refiner", REFINERS)),
    )
    rounds: int | None = setting(
        None,
        help="rounds of measuring saliency and swapping at most; 1 with a fixed threshold and "
        f"{AUTO_ROUNDS} with auto, unless given",
        title="Rounds at most",
        metavar="N",
        least=1,
        most=1000,
        placeholder="default",
        group=Group.METHOD,
        needs=(REBUILT, own("rounds", "refiner", REFINERS)),
    )
    target: Target = setting(
        Target.BLOCK,
        help="what a sub-block's output is compared with: that of its dense weights on the sparse stream, or its "
        "output in the dense model",
        title="Compare each sub-block with",
        group=Group.METHOD,
        needs=(REFINED, COMPARED),
    )
    order: Order = setting(
        Order.PAPER,
        help="when a sub-block gets its initial mask: before any rebuild, as published, or just before its own, "
        "on the output of the final sub-blocks before it",
        title="Order",
        group=Group.METHOD,
        needs=(REFINED, NO_MASKS),
    )
    reconstruct: bool = setting(
        False,
        help="train the kept weights of each sub-block once its mask is final; zeros stay zero",
        title="Refit the kept weights",
        group=Group.METHOD,
    )
    retain_reconstruction: bool = setting(
        False,
        help="keep the values that the initial mask's method updated, as SparseGPT does",
        title="Keep the values that SparseGPT updated",
        group=Group.METHOD,
        needs=(REBUILT, own("retain_reconstruction", "method", INITIAL_MASKS, MASKS)),
    )
    initial_masks: str | None = setting(
        None,
        help="take the initial mask from this masks file or run directory",
        local=", instead of making one",
        metavar="PATH",
    )

    def __post_init__(self) -> None:
        read_all(self)
        if (self.method == MASKS) != (self.initial_masks is not None):
            raise UserError("Method 'masks' and a masks path go together: give both or neither.")
        if self.barber and REFINERS[self.refiner].by_row and self.target is not Target.BLOCK and not self.reconstruct:
            raise UserError(
                f"Refiner {self.refiner} compares each weight with its own dense output: target {self.target} is for "
                "the refiner barber and for --reconstruct."
            )
        if self.order is Order.ONE_PASS and (self.method == MASKS or not self.refined):
            raise UserError(
                f"Order {self.order} makes each initial mask just before its rebuild, but this run "
                f"{'has masks already' if self.method == MASKS else 'has no rebuild'}: leave the order out."
            )
        if self.allocation is not Allocation.UNIFORM:
            if self.sparsity.m:
                raise UserError(
                    f"Allocation {self.allocation} gives each layer its own ratio, which {self.sparsity} does not "
                    "allow: use an unstructured ratio or allocation uniform."
                )
            if self.method == MASKS:
                raise UserError("Masks of an earlier run determine the ratios: leave the allocation out.")

    def __str__(self) -> str:
        """The run in one line: method, sparsity, rebuild and refit."""
        parts = [f"{self.method} {self.sparsity}"]
        if self.allocation is not Allocation.UNIFORM:
            parts.append(f"ratios by {self.allocation}")
        if self.barber:
            settings = [self.metric]
            settings += [] if self.auto else [str(self.granularity)]
            settings += [f"threshold {self.threshold}"]
            settings += [f"up to {self.most_rounds} rounds"] if self.most_rounds > 1 else []
            parts.append(f"rebuilt by {', '.join(settings) if self.refiner == BARBER else self.refiner}")
        if self.reconstruct:
            parts.append("kept weights refitted")
        if self.refined and self.target is not Target.BLOCK:
            parts.append(f"target {self.target}")
        if self.order is Order.ONE_PASS:
            parts.append("in one pass")
        return ", ".join(parts)

    @property
    def auto(self) -> bool:
        """Whether validation error chooses the swaps."""
        return self.barber and self.refiner == BARBER and self.threshold == AUTO

    @property
    def most_rounds(self) -> int:
        """Number of rounds at most."""
        return self.rounds or (AUTO_ROUNDS if self.auto else 1)

    @property
    def refined(self) -> bool:
        """Whether a rebuild or refit follows the initial mask."""
        return self.barber or self.reconstruct

    @property
    def needs_gradients(self) -> bool:
        """Whether saliency is measured, from the gradients of each sequence."""
        return (self.barber and self.refiner == BARBER) or self.allocation is Allocation.SALIENCY

    @property
    def uses_validation(self) -> bool:
        """Whether some calibration sequences are for validation only."""
        return self.auto or self.reconstruct

    @property
    def needs_calibration(self) -> bool:
        """Whether the run needs calibration data."""
        method = INITIAL_MASKS.get(self.method)
        measured = method is not None and method.calibrated
        return measured or self.refined or self.allocation is not Allocation.UNIFORM

    def split_sizes(self, sequences: int) -> tuple[int, int]:
        """Numbers of train and validation sequences; without validation, all are for both.

        Raises UserError if there are too few for validation.
        """
        if not self.uses_validation:
            return sequences, sequences
        if sequences < VALIDATION_EVERY:
            what = "Threshold auto" if self.auto else "Reconstruction"
            raise UserError(
                f"{what} uses every {VALIDATION_EVERY}th calibration sequence for validation, but got {sequences}: "
                f"give {VALIDATION_EVERY} or more."
            )
        return sequences - sequences // VALIDATION_EVERY, sequences // VALIDATION_EVERY

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `sparsity` is its short text, which is easy to read."""
        return asdict(self) | {"sparsity": str(self.sparsity)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PruneConfig:
        return cls(**data | {"sparsity": Sparsity.parse(data["sparsity"])})
