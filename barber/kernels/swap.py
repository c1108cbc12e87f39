"""The swap rule of LLM-Barber (arXiv 2408.10631) with exact counts, as pure tensor functions.

Granularity is a reshape: every function works on (selections, groups, n), where pairs of a pruned and a kept weight
lie inside a group of n, and a share of the gaining pairs of each selection is swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from barber.config import Granularity
from barber.kernels.order_statistics import beyond, number_of, ordered, smallest_bound, without_nan
from barber.memory import portion

INFINITE = 0x7F80  # the bits of infinity in bfloat16


def to_groups(matrices: Sequence[Tensor], granularity: Granularity, m: int) -> list[Tensor]:
    """Matrices (out, in) of one sub-block as tensors (selections, groups, n), ready for `swap`.

    Without m a group is a whole selection: a row, a column, a matrix, or the sub-block. With m a group is m
    consecutive inputs of one row, and the granularity says which groups share one selection.
    """
    split = [matrix.unflatten(1, (-1, m)) if m else matrix for matrix in matrices]
    if granularity is Granularity.INPUT:
        split = [matrix.transpose(0, 1) for matrix in split]
    match granularity:
        case Granularity.BLOCK:
            return [_row(split).view(1, -1, m) if m else _row(split).view(1, 1, -1)]
        case Granularity.LAYER:
            return [matrix.reshape(1, -1, m or matrix.numel()) for matrix in split]
        case _:
            return [matrix if m else matrix.unsqueeze(1) for matrix in split]


def _row(matrices: Sequence[Tensor]) -> Tensor:
    """The flattened matrices, concatenated; a view where they are contiguous in memory already."""
    first, end = matrices[0], matrices[0].storage_offset()
    for matrix in matrices:
        behind = matrix.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (behind and matrix.is_contiguous() and matrix.storage_offset() == end):
            return torch.cat([matrix.flatten() for matrix in matrices])
        end += matrix.numel()
    return first.as_strided((end - first.storage_offset(),), (1,))


def from_groups(
    groups: Sequence[Tensor], shapes: Sequence[torch.Size], granularity: Granularity, m: int
) -> list[Tensor]:
    """The inverse of `to_groups`: matrices of the given (out, in) shapes."""
    if granularity is Granularity.BLOCK:
        parts = groups[0].flatten().split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    if granularity is Granularity.INPUT:
        groups = [group.transpose(0, 1) if m else group.squeeze(1).T for group in groups]
    return [group.reshape(shape) for group, shape in zip(groups, shapes, strict=True)]


def share_of(candidates: Tensor, threshold: float) -> Tensor:
    """floor(threshold * candidates) of int64 candidates, exact."""
    # The decimal fraction as written, to a millionth: floor(0.29 * 100) is 28 in floating point.
    share = Fraction(str(threshold)).limit_denominator(10**6)
    return candidates * share.numerator // share.denominator


class Pairing:
    """The pruned and kept weights of selections paired: LLM-Barber's rule (arXiv 2408.10631).

    mask, saliency: (selections, groups, n). Saliency is not negative; NaN counts as zero, so that counts are exact. In
    each group, the pruned weights in descending and the kept weights in ascending order of saliency form the pairs.
    Only gaining pairs are candidates, as published for unstructured masks; the published n:m rule also swaps other
    pairs. candidates: int64 (selections, 1), the number of gaining pairs.
    """

    def __init__(self, mask: Tensor, saliency: Tensor) -> None:
        saliency = without_nan(saliency, 0.0)
        self.mask, self.saliency = mask, saliency
        if mask.shape[1] == 1:  # one group per selection: its pairs are sorted by gain already
            mask, saliency = mask[:, 0], saliency[:, 0]
            grow, cut = mask, ~mask
            zeros = int(mask.count_nonzero())
            if len(mask) == 1 and zeros:
                # Only pruned weights above and kept weights below the zeros-th smallest saliency can gain. It lies
                # between low and high; bfloat16 finds these with less memory.
                bits = saliency.to(torch.bfloat16).view(torch.int16)  # integers in the same order
                middle = smallest_bound(bits, zeros, spare=True)
                del bits
                low, high = ((middle + step).clamp(0, INFINITE).view(torch.bfloat16).float() for step in (-1, 1))
                grow, cut = (saliency >= low).logical_and_(mask), (saliency <= high).logical_and_(cut)
            self._pruned = ordered(_only(saliency, grow, -torch.inf)).flip(1)
            self._kept = ordered(_only(saliency, cut, torch.inf))
            pairs = min(self._pruned.shape[1], self._kept.shape[1])
            self.candidates = number_of(self._pruned[:, :pairs] > self._kept[:, :pairs])
        else:
            self._loss, self._grow, self._cut = _pairs(mask, saliency)
            gaining = self._loss < 0
            self.candidates = number_of(gaining)
            self._losses = ordered(_only(self._loss, gaining, torch.inf))

    def swap_share(self, threshold: float) -> tuple[Tensor, int]:
        """Swap the best floor(threshold * candidates) pairs of each selection.

        Returns the new mask (selections, groups, n), with the same number of zeros per group, and the number of swaps.
        """
        swaps = share_of(self.candidates, threshold)
        last, mask = (swaps - 1).clamp_min(0), self.mask
        if mask.shape[1] == 1:
            saliency, mask = self.saliency[:, 0], mask[:, 0]
            if not self._pruned.shape[1] or not self._kept.shape[1]:
                return self.mask, 0
            swapped = beyond(saliency, swaps, self._pruned.gather(1, last), mask, largest=True).logical_xor_(mask)
            swapped |= beyond(saliency, swaps, self._kept.gather(1, last), ~mask)
            return swapped.unsqueeze(1), int(swaps.sum())
        if not self._losses.shape[1]:
            return mask, 0
        chosen = beyond(self._loss, swaps, self._losses.gather(1, last))
        selection, pair = chosen.nonzero(as_tuple=True)
        group = pair // (self._loss.shape[1] // mask.shape[1]) * mask.shape[2]
        swapped = mask.flatten(1).clone()
        swapped[selection, group + self._grow[selection, pair]] = False
        swapped[selection, group + self._cut[selection, pair]] = True
        return swapped.view(mask.shape), int(swaps.sum())

    def gains(self) -> Tensor:
        """The saliency gained by each gaining pair, (candidates,), unordered."""
        if self.mask.shape[1] > 1:
            return -self._loss[self._loss < 0]
        pairs = min(self._pruned.shape[1], self._kept.shape[1])
        pruned, kept = self._pruned[:, :pairs], self._kept[:, :pairs]
        gaining = pruned > kept
        return pruned[gaining] - kept[gaining]


def gain_curve(gains: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """The curve of gains (n,) over their rank: ranks from 1, int64, and gains in falling order, fp32.

    Of more than `points` gains, that many are chosen evenly by rank, the first and the last among them.
    """
    number = len(gains)
    places = torch.linspace(0, number - 1, min(points, number), dtype=torch.float64).round().long()
    rising = ordered(gains.unsqueeze(0))[0]
    return places + 1, rising[(number - 1 - places).to(rising.device)].cpu()


def _pairs(mask: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of each selection of (selections, groups, n), group after group, equally many in each: the saliency
    lost by the swap, and the positions of the pruned and the kept weight in the group.
    """
    zeros = number_of(mask.flatten(0, 1))
    pairs = int(zeros.minimum(mask.shape[2] - zeros).max())
    parts, size = [], max(1, portion(mask.device) // mask.shape[2])
    for values, pruned in zip(saliency.flatten(0, 1).split(size), mask.flatten(0, 1).split(size), strict=True):
        first, grow = values.masked_fill(~pruned, -torch.inf).sort(dim=-1, descending=True, stable=True)
        last, cut = values.masked_fill(pruned, torch.inf).sort(dim=-1, stable=True)
        at = (grow[:, :pairs].to(torch.int16), cut[:, :pairs].to(torch.int16))
        parts.append((last[:, :pairs] - first[:, :pairs], *at))
    loss, grow, cut = (torch.cat(column).view(len(mask), -1) for column in zip(*parts, strict=True))
    return loss, grow, cut


def _only(values: Tensor, where: Tensor, other: float) -> Tensor:
    """The values (groups, n) in `where`; if counts differ between groups, all values, with `other` elsewhere."""
    counts = number_of(where)
    if bool((counts == counts[0]).all()):
        on_cpu = values.device.type == "cpu"  # numpy is several times faster here
        some = torch.from_numpy(values.numpy()[where.numpy()]) if on_cpu else values[where]
        return some.view(len(values), -1)
    return values.masked_fill(~where, other)


@dataclass(frozen=True)
class Swapped:
    """Masks after swaps.

    Attributes:
        masks: bool (out, in), one per weight matrix, True = pruned.
        candidates: number of gaining pairs.
        swaps: number of swapped pairs.
        curve: ranks and gains of these pairs, see `gain_curve`; None if no points were asked for.
    """

    masks: list[Tensor]
    candidates: int
    swaps: int
    curve: tuple[Tensor, Tensor] | None


def swap_matrices(
    masks: Sequence[Tensor],
    saliencies: Sequence[Tensor],
    thresholds: Sequence[float],
    granularity: Granularity,
    m: int,
    points: int = 0,
) -> Iterator[Swapped]:
    """The masks of one sub-block after the swaps, for each threshold.

    masks, saliencies: one (out, in) per weight matrix. Each threshold is the share of the gaining pairs of a selection
    that are swapped. points: of the curve of gains at most.
    """
    grouped = to_groups(masks, granularity, m)
    pairings = [Pairing(*both) for both in zip(grouped, to_groups(saliencies, granularity, m), strict=True)]
    candidates = sum(int(pairing.candidates.sum()) for pairing in pairings)
    curve = gain_curve(torch.cat([pairing.gains() for pairing in pairings]), points) if points else None
    shapes = [mask.shape for mask in masks]
    for threshold in thresholds:
        results = [pairing.swap_share(threshold) for pairing in pairings]
        swapped, swaps = zip(*results, strict=True)
        yield Swapped(from_groups(swapped, shapes, granularity, m), candidates, sum(swaps), curve)
