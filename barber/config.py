"""What a pruning run is asked to do: frozen dataclasses, validated where they are built."""

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
    """Within which groups of weights pruned and kept ones may be swapped."""

    BLOCK = "block", "the whole sub-block"  # all matrices of the sub-block
    LAYER = "layer", "one matrix"
    OUTPUT = "output1", "one output row"  # of a matrix
    INPUT = "input1", "one input column"  # of a matrix


class Target(Choice):
    """What a sub-block's output is compared with."""

    BLOCK = "block", "its own dense output"  # its own output with dense weights on the sparse stream, as published
    DENSE_STREAM = "dense-stream", "the dense model's output"  # at the same place, on the dense stream


class Order(Choice):
    """When a sub-block gets its initial mask."""

    PAPER = "paper", "the whole model first"  # before any is rebuilt, as published
    ONE_PASS = (
        "one-pass",
        "each sub-block before its rebuild",
    )  # on the stream that the final sub-blocks before it produce


class Allocation(Choice):
    """How the pruned weights are shared out over the layers; the count of the whole model stays the same."""

    UNIFORM = "uniform", "the same in every layer"
    OWL = "owl", "by outliers (OWL)"  # layers with more outliers of Wanda's score keep more (OWL, arXiv 2310.05175)
    SALIENCY = "saliency", "by saliency"  # the same rule, on the saliency of the rebuild


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


MASKS = "masks"  # the method of a run that takes its initial masks from an earlier one
AUTO = "auto"
AUTO_ROUNDS = 4  # most of what there is to gain; later rounds cost as much and change little
VALIDATION_EVERY = 4  # one calibration sequence in so many measures what the others propose

REBUILT = Need(("barber",), bool, "is a setting of the rebuild, which was not asked: add --prune_barber")
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
NOT_AUTO = Need(("threshold",), lambda threshold: threshold != AUTO, "is what --threshold auto chooses: leave it out")
NO_MASKS = Need(
    ("method",), lambda method: method != MASKS, "is a setting of making initial masks, which are given: leave it out"
)


def own(setting: str, key: str, entries: dict[str, InitialMask] | dict[str, Refiner], *others: str) -> Need:
    """What a setting needs that only some initial masks (key "method") or refiners (key "refiner") have.

    others: further values of the key with which it has an effect.
    """
    owners = [name for name, entry in entries.items() if setting in entry.settings]
    return Need(
        (key,),
        lambda chosen: chosen in (*owners, *others),
        f"is a setting of the {key} {' and '.join(owners)}, not of {{{key}}}: leave it out",
    )


@dataclass(frozen=True)
class PruneConfig:
    """One pruning run. Each field is a setting, which says of itself what it does, what is allowed and when it applies.

    A value that has no effect is allowed: a run file holds all of them.
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
        help="what makes the initial mask",
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
        help="swap pruned and kept weights of each sub-block by their saliency (the rebuild)",
        title="Rebuild the mask of each sub-block",
        noun="Rebuild",
        flag="prune_barber",
        public="rebuild",
        group=Group.FIRST,
    )
    threshold: float | str = setting(
        0.01,
        help="share of the gaining pairs that is swapped: those whose pruned weight has the larger saliency",
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
        help="how pruned weights are shared out over the layers, where sensitive ones may keep more; the count of the "
        "whole model stays the same",
        title="Sparsity of the layers",
        group=Group.METHOD,
        needs=(NO_MASKS,),
    )
    refiner: str = setting(
        BARBER,
        help="by which rule the rebuild swaps weights",
        title="Rebuild by",
        choices=titles(REFINERS.values()),
        group=Group.METHOD,
        needs=(REBUILT,),
    )
    granularity: Granularity = setting(
        Granularity.OUTPUT,
        help="within which weights pruned and kept ones are swapped",
        title="Swaps happen within",
        flag="prune_granularity",
        group=Group.METHOD,
        needs=(REBUILT, own("granularity", "refiner", REFINERS), NOT_AUTO),
    )
    metric: str = setting(
        "WD",
        help="saliency of a weight in the rebuild",
        title="Saliency",
        flag="prune_metric",
        choices=titles(METRICS.values()),
        group=Group.METHOD,
        needs=(REBUILT, own("metric", "refiner", REFINERS)),
    )
    rounds: int | None = setting(
        None,
        help="how often saliency is measured and weights are swapped at most; 1 with a fixed threshold and "
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
        help="what a sub-block's output is compared with: its own with dense weights on what the pruned model sends "
        "it, or what the dense model has there",
        title="Compare each sub-block with",
        group=Group.METHOD,
        needs=(REFINED, COMPARED),
    )
    order: Order = setting(
        Order.PAPER,
        help="when a sub-block gets its initial mask: before any is rebuilt, as published, or when its turn comes, on "
        "what the finished ones before it send",
        title="Initial masks",
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
                "the refiner barber and for a refit."
            )
        if self.order is Order.ONE_PASS and (self.method == MASKS or not self.refined):
            raise UserError(
                f"Order {self.order} makes each initial mask just before its rebuild, but this run "
                f"{'has masks already' if self.method == MASKS else 'rebuilds nothing'}: leave the order out."
            )
        if self.allocation is not Allocation.UNIFORM:
            if self.sparsity.m:
                raise UserError(
                    f"Allocation {self.allocation} gives each layer a ratio of its own, which {self.sparsity} does not "
                    "allow: use an unstructured ratio or allocation uniform."
                )
            if self.method == MASKS:
                raise UserError("Masks of an earlier run have their ratios already: leave the allocation out.")

    def __str__(self) -> str:
        """The run in a line: method, sparsity and what follows."""
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
        """Whether the validation error chooses the swaps."""
        return self.barber and self.refiner == BARBER and self.threshold == AUTO

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
        """Whether some calibration sequences are held out for validation."""
        return self.auto or self.reconstruct

    @property
    def needs_calibration(self) -> bool:
        """Whether the run looks at calibration data at all."""
        method = INITIAL_MASKS.get(self.method)
        measured = method is not None and method.calibrated
        return measured or self.refined or self.allocation is not Allocation.UNIFORM

    def split_sizes(self, sequences: int) -> tuple[int, int]:
        """How many calibration sequences are for training and how many for validation; all are both without validation.

        Raises UserError where none would be left to validate on.
        """
        if not self.uses_validation:
            return sequences, sequences
        if sequences < VALIDATION_EVERY:
            what = "Threshold auto" if self.auto else "Reconstruction"
            raise UserError(
                f"{what} holds every {VALIDATION_EVERY}th calibration sequence out, but got {sequences}: give "
                f"{VALIDATION_EVERY} or more."
            )
        return sequences - sequences // VALIDATION_EVERY, sequences // VALIDATION_EVERY

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `sparsity` as its short text, so that a person can read the file."""
        return asdict(self) | {"sparsity": str(self.sparsity)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PruneConfig:
        return cls(**data | {"sparsity": Sparsity.parse(data["sparsity"])})
