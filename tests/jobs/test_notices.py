"""What a run says about itself: a rebuild that changes next to nothing, and one that does harm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from barber.cli import main
from barber.evaluation.perplexity import rose
from barber.events import Notice, PerplexityMeasured, RunFinished, SubBlockRebuilt
from barber.jobs.job import run_job
from barber.jobs.report import Report
from barber.runs.directory import RunDirectory
from tests.support.jobs import flags, job, save_inputs
from tests.support.tiny import llama
from ui.live import Live


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    model = llama(num_hidden_layers=2, hidden_size=64, intermediate_size=160)
    return save_inputs(tmp_path_factory.mktemp("workspace"), model)


def run(spec) -> tuple[list, list[str], RunFinished]:
    events = list(run_job(spec))
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    return events, [event.message for event in events if isinstance(event, Notice)], finished


@pytest.mark.parametrize(
    ("settings", "found", "remedy"),
    [
        ({"threshold": 0.01}, "no weights were swapped, since a threshold of 0.01", "--prune_granularity block"),
        (
            {"threshold": 0.001, "granularity": "block"},
            "% of the zeros, since a threshold of 0.001",
            "--threshold auto",
        ),
    ],
)
def test_a_rebuild_that_swaps_next_to_nothing_has_a_notice(workspace, settings, found, remedy):
    _, messages, finished = run(job(workspace, method="wanda", **settings))
    assert finished.swaps < 0.001 * finished.zeros
    assert (finished.swaps == 0) == ("no weights" in found)
    (message,) = [message for message in messages if "next to nothing" in message]
    assert found in message
    assert remedy in message


def test_a_refiner_by_row_that_swaps_nothing_has_a_notice(workspace, tmp_path):
    """Masks that one-swap has rebuilt, given to it again."""
    spec = job(workspace, method="wanda", refiner="one-swap")
    first, messages, finished = run(spec)
    assert finished.swaps > 0.001 * finished.zeros
    assert not any("next to nothing" in message for message in messages)
    masks = {f"{e.layer}.{n}": m for e in first if isinstance(e, SubBlockRebuilt) for n, m in e.masks.items()}
    save_file(masks, tmp_path / "masks.safetensors")
    again = replace(spec.prune, method="masks", initial_masks=str(tmp_path / "masks.safetensors"))
    _, messages, finished = run(replace(spec, prune=again))
    assert finished.swaps == 0
    (message,) = [message for message in messages if "next to nothing" in message]
    assert "one-swap found few swaps" in message
    assert "--reconstruct" in message


def test_a_rebuild_that_changes_much_and_helps_has_no_notice(workspace):
    _, messages, finished = run(job(workspace, method="random", threshold="auto"))
    assert finished.swaps > 0.001 * finished.zeros
    assert not any("next to nothing" in message or "raised" in message for message in messages)


HARMFUL = {"method": "sparsegpt", "granularity": "block", "threshold": 1.0, "metric": "D"}


def test_harm_is_said_everywhere(workspace, tmp_path, capsys):
    """Swapping all pairs by the gradient alone raises errors and perplexity."""
    spec = replace(job(workspace, **HARMFUL), run_dir=tmp_path / "run")
    events, messages, _ = run(spec)
    said = [message for message in messages if "raised" in message]
    assert len(said) == 1 + _perplexity_rose(events)
    assert "raised the output error of the sub-blocks by" in said[0]
    assert "try --threshold auto" in said[0]
    kinds = [type(event).__name__ for event in events]
    assert kinds.index("RunFinished") > max(index for index, kind in enumerate(kinds) if kind == "Notice")
    recorded = [event.message for event in RunDirectory(tmp_path / "run").events() if isinstance(event, Notice)]
    report, live = Report(spec), Live()
    for event in events:
        report.add(event)
        live.update(event)
    for message in said:
        assert message in recorded
        assert f"Note: {message}" in report.text()
        assert message in live.result()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    for message in said:
        assert captured.out.count(message) == 1
        assert message in captured.err


def _perplexity_rose(events: list) -> bool:
    _, initial, rebuilt = [event for event in events if isinstance(event, PerplexityMeasured)]
    return rose(initial, rebuilt)


def test_a_perplexity_that_rises_is_said(workspace):
    """A trained model is needed, since every mask of a random one is as good: its own texts are evaluated."""
    spec = job(workspace, **HARMFUL)
    events, messages, _ = run(
        replace(spec, model="storyteller", calibration="storyteller", evaluation=("storyteller",))
    )
    assert _perplexity_rose(events)
    (message,) = [message for message in messages if "raised the perplexity from" in message]
    assert "on storyteller (evaluation split)" in message
    assert "try --threshold auto" in message


def measured(losses: list[float], high: float | None = None) -> PerplexityMeasured:
    mean = math.exp(sum(losses) / len(losses))
    return PerplexityMeasured("rebuilt", "text", 16, 16 * len(losses), mean, 1.0, "none", None, high, losses)


def test_perplexities_are_compared_window_by_window():
    before = [3.0, 5.0, 4.0, 6.0]
    assert rose(measured(before), measured([loss + 0.01 for loss in before]))
    assert not rose(measured(before), measured([loss - 0.01 for loss in before]))
    assert not rose(measured(before), measured(before))
    assert not rose(measured(before), measured([3.5, 4.6, 4.5, 5.5])), "by chance"
    assert rose(measured(before), measured([*before[:3], math.inf]))
    recorded = replace(measured(before, high=100.0), losses=[])
    assert rose(recorded, measured([loss + 0.2 for loss in before]))
    assert not rose(recorded, measured([loss + 0.05 for loss in before])), "within the interval"
    assert rose(measured([3.0]), measured([3.1]))


def test_sparsity_ratio_0_measures_the_dense_model(workspace, tmp_path, capsys):
    data = [*flags(workspace), "--sparsity_ratio", "0"]
    idle = ["--prune_method", "wanda", "--prune_barber", "--threshold", "0.5"]
    assert main([*data, *idle, "--save_model", str(tmp_path / "model"), "--save_ppl", str(tmp_path / "ppl")]) == 0
    captured = capsys.readouterr()
    sentence = (
        "The dense model is measured, since --sparsity_ratio 0 prunes nothing, and --prune_method, --prune_barber, "
        "--threshold, --calibration do nothing."
    )
    assert sentence in captured.err
    assert f"Note: {sentence}" in captured.out
    assert "dense, nothing pruned" in captured.out
    assert "evaluation.npy" in captured.out
    saved, own = (load(path) for path in (tmp_path / "model", workspace / "model"))
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    assert (tmp_path / "ppl" / "log_dense.txt").exists()
    assert main([*data, "--run_dir", str(tmp_path / "run")]) == 2
    assert "--sparsity_ratio above 0" in capsys.readouterr().err
    assert main([*data, "--sparsity_type", "2:4", "--prune_method", "wanda"]) == 2
    assert "the ratio given is 0" in capsys.readouterr().err


def test_sparsity_ratio_0_of_the_bundled_model_alone(capsys):
    assert main(["--sparsity_ratio", "0", "--eval_windows", "2", "--seqlen", "64", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "Note: The dense model is measured, since --sparsity_ratio 0 prunes nothing.\n" in captured.out
    assert "Prompt:" in captured.out
    assert "initial:" not in captured.out


def load(folder) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()
