"""The zeros of a model in the report of a finished run."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch

from barber.cli import main
from barber.jobs.report import format_bytes
from tests.support.families import build
from tests.support.jobs import flags, save_inputs


def test_pruned_weights_and_zeros_are_counted_separately(tmp_path):
    """Some of the kept weights of this model are zero in the dense model."""
    model = build("llama")
    for layer in model.model.layers:
        for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
            linear.weight.data[: len(linear.weight) // 4] = 0
    workspace = save_inputs(tmp_path, model)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(flags(workspace, "--prune_method", "wanda", "--sparsity_ratio", "0.5")) == 0
    weights = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    text = out.getvalue()
    assert f"{weights // 2} of {weights} prunable weights are pruned (50.0000%)" in text
    # Half of each row is pruned: of a row of zeros, the other half is zero and kept.
    assert f"{weights // 8} kept weights are zero, too, so {weights * 5 // 8} weights are zero in all" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (100, "1 KiB"),
        (20_000, "20 KiB"),
        (58_053_376, "55 MiB"),
        (2**30, "1.0 GiB"),
        (13.5e9, "12.6 GiB"),
        (2**38, "256 GiB"),
    ],
)
def test_sizes_have_a_suitable_unit(size, text):
    assert format_bytes(size) == text
