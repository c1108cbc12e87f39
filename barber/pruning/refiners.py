"""The refiners of a sub-block's masks, with one signature: (calls, weights, dense pass, config) -> Refined."""

from __future__ import annotations

import torch

from barber.config import PruneConfig
from barber.kernels.scores import magnitude, wanda
from barber.kernels.statistics import squares_of
from barber.progress import Steps
from barber.pruning.dense_pass import DensePass
from barber.pruning.rebuild import train_batches
from barber.pruning.refined import Refined, grown_count
from barber.pruning.sub_block_calls import SubBlockCalls, SubBlockWeights
from barber.registry import REFINERS, Refiner


def refine(calls: SubBlockCalls, weights: SubBlockWeights, seen: DensePass, config: PruneConfig) -> Steps[Refined]:
    """Rebuild the masks with the refiner of the config, or return the initial ones if it has none."""
    if not config.barber:
        scores = {name: magnitude(value) for name, value in weights.dense.items()}
        return Refined(weights.masks, scores, 0, 0, changed=False)
    refiner = REFINERS[config.refiner]
    if refiner.by_row:
        return _by_row(refiner, weights, seen, config)
    return (yield from refiner.call(calls, weights, seen, config))


def needs_of(calls: SubBlockCalls, config: PruneConfig) -> dict:
    """Keyword arguments of the first `dense_pass`, as the refiner requires."""
    if not config.barber:
        return {}
    refiner = REFINERS[config.refiner]
    if refiner.by_row:
        return {"gather_on": calls.batches, "statistic": refiner.statistic}
    statistic = "gram" if config.auto else None
    return {"gather_on": train_batches(calls, config), "gradients": True, "statistic": statistic}


def _by_row(refiner: Refiner, weights: SubBlockWeights, seen: DensePass, config: PruneConfig) -> Refined:
    """Masks rebuilt row by row, by the error of each weight's output; saliency is Wanda's score.

    A weight that is not called on text keeps its mask and has saliency zero.
    """
    combined, m = weights.combined, config.sparsity.m
    masks = dict(weights.masks)
    scores = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
    for name, statistic in seen.statistics.items():
        masks[name] = refiner.call(weights.masks[name], weights.dense[name], combined[name], statistic, m)
        scores[name] = wanda(weights.dense[name], squares_of(refiner.statistic, statistic))
    swaps = grown_count(weights.masks, masks)
    return Refined(masks, scores, swaps, swaps)
