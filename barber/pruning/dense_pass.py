"""Passes of the dense sub-block: target outputs, errors of the pruned one, gradients and statistics of inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from barber.models.decoder import Values, assign_values
from barber.models.taps import by_name, tapping
from barber.progress import TICK, Steps
from barber.pruning.gradients import ForwardRecord
from barber.pruning.statistics import StatisticSums
from barber.pruning.sub_block_calls import SubBlockCalls, squared_error


@dataclass(frozen=True)
class DensePass:
    """Results of a pass of a sub-block with its dense weights.

    Attributes:
        targets: batch -> target output, as in the activation store.
        errors: batch -> mean squared error of the pruned sub-block's output against the target, 0-dim, fp32.
        squared_gradients: name -> mean over the sequences of the squared gradient of the error with respect to the
            dense weight, fp32 (out, in); empty without `gradients`. Experts that no token reached are left out.
        statistics: name -> sum of a statistic of the weight's inputs; empty without `statistic`.
    """

    targets: Mapping[int, Tensor]
    errors: Mapping[int, Tensor]
    squared_gradients: Values
    statistics: Values


def dense_pass(
    calls: SubBlockCalls,
    dense: Values,
    pruned: Values,
    *,
    batches: Iterable[int],
    targets: Mapping[int, Tensor],
    gather_on: Collection[int] = (),
    gradients: bool = False,
    statistic: str | None = None,
    records: dict[int, ForwardRecord] | None = None,
) -> Steps[DensePass]:
    """Run the sub-block on batches with its pruned and its dense weights; it ends with the dense ones.

    targets: batch -> target output; the dense output is the target of batches without one. gather_on: the batches for
    squared gradients and the statistic. records: batch -> forward record made before; used ones are removed.
    """
    block, store, records = calls.block, calls.stream.store, {} if records is None else records
    found, errors, sums = dict(targets), {}, StatisticSums(statistic)
    squares = _zeros_like(dense) if gradients else {}
    for batch in batches:
        assign_values(block.weights, pruned)
        sparse = calls.output(batch)
        assign_values(block.weights, dense)
        gathers = batch in gather_on
        if gathers and gradients:
            record = records.pop(batch, None) or calls.forward(batch)
            output = record.output.detach()
            target = store.load(found[batch]) if batch in found else output
            record.add_squared_gradients(block, target.float() - sparse.float(), squares)
            sums.add(record.taps)
            del record
        else:
            with tapping(by_name(block.weights if gathers and statistic else ())) as taps:
                output = calls.output(batch)
            sums.add(taps)
            del taps
            target = store.load(found[batch]) if batch in found else output
        if batch not in found:
            found[batch] = store.save(output)
        errors[batch] = squared_error(target, sparse)
        yield TICK
    calls.ranks.sum(list(squares.values()))
    sums.finish(block.weights, calls.ranks)
    sequences = calls.ranks.world * sum(calls.stream.sizes[batch] for batch in gather_on)
    unreached = {weight.name for weight in block.weights if weight.is_expert and not sums.tokens.get(weight.name)}
    mean_squares = {name: square.div_(sequences) for name, square in squares.items() if name not in unreached}
    return DensePass(found, errors, mean_squares, sums.values)


def error_under(
    calls: SubBlockCalls, values: Values, targets: Mapping[int, Tensor], batches: Iterable[int]
) -> Steps[float]:
    """Assign the sub-block these weights, and return the mean error over batches."""
    assign_values(calls.block.weights, values)
    errors = {}
    for batch in batches:
        errors[batch] = squared_error(calls.stream.store.load(targets[batch]), calls.output(batch))
        yield TICK
    return calls.mean(errors)


def _zeros_like(values: Values) -> Values:
    """fp32 zeros of each shape, contiguous in memory, so that swaps within the sub-block need no copy."""
    sizes = [value.numel() for value in values.values()]
    row = torch.zeros(sum(sizes), device=next(iter(values.values())).device)
    return {name: part.view(value.shape) for (name, value), part in zip(values.items(), row.split(sizes), strict=True)}
