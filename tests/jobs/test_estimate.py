"""Estimates of a run: more for more work, and of the right size for a known model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from barber.config import PruneConfig, Sparsity
from barber.jobs.estimate import Model, estimate, matmul_rate, passes

SEVEN = Model(  # LLaMA-2-7B in bfloat16
    layers=32,
    hidden=4096,
    layer_parameters=4 * 4096**2 + 3 * 4096 * 11008,
    block_parameters=3 * 4096 * 11008,
    width=11008,
    spread=3 * (4096 + 11008),
    other_bytes=2 * (2 * 32000 * 4096 + 65 * 4096),
    element=2,
)
GIB, RATE = 2**30, 3e14


def config(**settings) -> PruneConfig:
    return PruneConfig(Sparsity.parse("50%"), **{"method": "wanda"} | settings)


RISING = {
    "rounds": [config(rounds=n) for n in (1, 2, 3, 8)],
    "rounds of auto": [config(threshold="auto", rounds=n) for n in (1, 2, 4)],
    "what follows the mask": [config(barber=False), config(), config(reconstruct=True)],
    "how swaps are chosen": [config(), config(threshold="auto")],
    "what is measured first": [config(method="magnitude"), config()],
    "ratios of layers": [config(allocation=name) for name in ("uniform", "owl", "saliency")],
    "orders": [config(order="one-pass"), config()],
}


@pytest.mark.parametrize("case", RISING)
def test_more_work_is_more_passes(case):
    counts = [passes(one, 128) for one in RISING[case]]
    assert all(a < b for a, b in pairwise(counts)), counts


def test_no_refinement_and_no_statistic_need_no_pass():
    assert passes(config(method="magnitude", barber=False), 128) == 0


def test_experts_that_a_token_does_not_reach_cost_memory_but_no_time():
    routed = replace(SEVEN, idle=SEVEN.layer_parameters // 2, grams=10**9)
    size = {"samples": 64, "seqlen": 1024, "batch": 2, "rate": RATE, "whole": False}
    for method, more in (("wanda", 0), ("sparsegpt", 4 * routed.grams)):
        one, other = (estimate(model, config(method=method), **size) for model in (SEVEN, routed))
        assert 0.5 * one.seconds < other.seconds < 0.7 * one.seconds
        assert other.work == one.work + more


@pytest.mark.parametrize("change", ["samples", "seqlen", "batch", "whole"])
def test_needs_grow_with_each_setting(change):
    base = {"samples": 64, "seqlen": 1024, "batch": 2, "whole": False}
    small, large = (
        estimate(SEVEN, config(), rate=RATE, **values)
        for values in (base, base | {change: True if change == "whole" else base[change] * 2})
    )
    assert small.least <= large.least
    assert small.activations <= large.activations
    assert small.seconds <= large.seconds
    assert small != large


def test_a_7b_model():
    """Weights are 12.6 GiB; hidden states of 128 sequences of 2048 tokens are 2 GiB a copy."""
    whole = estimate(SEVEN, config(), 128, 2048, 2, RATE, whole=True)
    layer = estimate(SEVEN, config(), 128, 2048, 2, RATE, whole=False)
    assert 24 * GIB < whole.weights < 26 * GIB
    assert 0.75 * GIB < layer.weights < 2 * GIB
    assert 2 * GIB <= layer.activations <= 16 * GIB
    assert 2 * GIB < layer.work < 8 * GIB
    assert 60 < layer.seconds < 1800
    assert whole.seconds == layer.seconds
    assert layer.least == layer.weights + layer.work


def test_ranks_share_the_work():
    one, four = (estimate(SEVEN, config(), 128, 2048, 2, RATE, False, ranks) for ranks in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert four.activations == pytest.approx(one.activations / 4)
    assert four.least == one.least


def test_hessians_take_memory():
    plain, hessian = (estimate(SEVEN, config(method=m), 128, 2048, 2, RATE, False) for m in ("wanda", "sparsegpt"))
    assert hessian.work - plain.work == 3 * 4 * 11008**2
    narrow = estimate(replace(SEVEN, width=4096), config(method="sparsegpt"), 128, 2048, 2, RATE, False)
    assert narrow.work < hessian.work


def test_the_measured_rate_is_plausible():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
