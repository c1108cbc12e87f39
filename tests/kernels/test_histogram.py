"""Histograms of saliency: every weight once, in the bin that numpy would choose."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from barber.kernels.histogram import histogram
from tests.kernels.generated import matrices


def fates(initial: torch.Tensor, rebuilt: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "kept": ~initial & ~rebuilt,
        "pruned": initial & rebuilt,
        "grown": initial & ~rebuilt,
        "cut": ~initial & rebuilt,
    }


@given(st.data(), st.integers(1, 300))
def test_histograms_count_every_weight_once(data, bins):
    (saliency,) = data.draw(matrices())
    saliency = saliency.abs()
    initial, rebuilt = torch.rand_like(saliency) < 0.5, torch.rand_like(saliency) < 0.5
    shown = histogram(saliency, initial, rebuilt, bins)
    assert len(shown["edges"]) == bins + 1
    assert all(left < right for left, right in pairwise(shown["edges"]))
    for fate, where in fates(initial, rebuilt).items():
        assert len(shown[fate]) == bins
        assert sum(shown[fate]) == int((where & (saliency > 0)).sum())
        assert shown["zeros"][fate] == int((where & (saliency == 0)).sum())


@given(st.integers(0, 2**31))
def test_histograms_are_those_of_numpy(seed):
    """Apart from a few values so near an edge that rounding decides."""
    generator = torch.Generator().manual_seed(seed)
    saliency, one, other = torch.randn(3, 30, 40, generator=generator)
    initial, rebuilt = one < 0, other < 0
    saliency = (saliency * one * other).abs()
    shown = histogram(saliency, initial, rebuilt)
    logs = saliency.double().log10().numpy()
    assert shown["edges"] == pytest.approx(np.linspace(logs.min(), logs.max(), 49), abs=2e-6)
    for fate, where in fates(initial, rebuilt).items():
        expected, _ = np.histogram(logs[where.numpy()], bins=48, range=(logs.min(), logs.max()))
        assert np.abs(expected - shown[fate]).max() <= 1


@pytest.mark.parametrize("saliency", [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, math.nan, 1e-45, math.inf]])
def test_histograms_of_no_spread_or_no_end(saliency):
    """Half precision has infinite gradients, and zero times infinity is no number: it counts as no saliency."""
    kept = torch.zeros(1, 4, dtype=torch.bool)
    shown = histogram(torch.tensor([saliency]), kept, kept)
    assert all(left < right < math.inf for left, right in pairwise(shown["edges"]))
    assert shown["zeros"]["kept"] == sum(not value > 0 for value in saliency)
    assert sum(shown["kept"]) == sum(value > 0 for value in saliency)


def test_histograms_count_beyond_single_precision():
    """fp32 counts stop at 2^24."""
    saliency, kept = torch.ones(2**24 + 5, 1), torch.zeros(2**24 + 5, 1, dtype=torch.bool)
    assert sum(histogram(saliency, kept, kept)["kept"]) == 2**24 + 5
