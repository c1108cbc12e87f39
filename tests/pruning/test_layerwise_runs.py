"""Runs with layerwise loading: the same bits as in memory, with one layer in memory at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from barber.cli import main
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import Estimated, JobPlanned, Notice, PerplexityMeasured, Progress, RunStarted, SubBlockRebuilt
from barber.jobs.job import run_job
from barber.jobs.setup import HEADROOM, memory_limit
from barber.models.providers import LayerwiseProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.prune import prune
from tests.support.families import build
from tests.support.jobs import equal_share, flags, job, masks_in_events, recorded, same, save_inputs, values_in_events
from tests.support.layerwise import assert_same, named, rewrite, stream
from tests.support.tiny import llama

pytestmark = pytest.mark.slow

RUNS = {
    "paper": {"method": "wanda", "granularity": "block", "threshold": 0.3},
    "one-pass": {"method": "wanda", "granularity": "block", "threshold": 0.3, "order": "one-pass"},
    "sparsegpt": {"method": "sparsegpt", "retain_reconstruction": True, "threshold": 0.3},
    "sparsegpt one-pass": {
        "method": "sparsegpt", "retain_reconstruction": True, "order": "one-pass", "granularity": "block",
        "threshold": 0.3,
    },
    "auto": {"method": "magnitude", "threshold": "auto", "rounds": 2, "reconstruct": True},
    "dense-stream": {"method": "wanda", "threshold": 0.3, "target": "dense-stream", "order": "one-pass"},
    "owl": {"method": "wanda", "allocation": "owl", "threshold": 0.3},
    "owl one-pass": {"method": "wanda", "allocation": "owl", "threshold": 0.3, "order": "one-pass"},
    "no rebuild": {"method": "sparsegpt", "barber": False},
    "magnitude alone": {"method": "magnitude", "barber": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory):
    made = {}

    def workspace(family: str):
        if family not in made:
            made[family] = save_inputs(tmp_path_factory.mktemp(family), build(family))
        return made[family]

    return workspace


def of(events: list, kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("settings", RUNS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-350m", "gemma2", "falcon-alibi"])
def test_a_layerwise_run_equals_that_in_memory(workspaces, family, settings, tmp_path):
    spec = job(workspaces(family), **RUNS[settings])
    whole = list(run_job(replace(spec, save_model=tmp_path / "whole")))
    streamed = list(run_job(replace(spec, stream=True, save_model=tmp_path / "streamed", run_dir=tmp_path / "run")))
    assert [e.streamed for e in of(whole + streamed, Estimated)] == [False, True] * (settings != "magnitude alone")
    assert same(masks_in_events(whole), masks_in_events(streamed))
    assert same(values_in_events(whole), values_in_events(streamed))
    assert same(masks_in_events(whole), recorded(tmp_path / "run"))
    assert same(values_in_events(whole), recorded(tmp_path / "run", "weights"))
    measured = [
        [(e.stage, e.dataset, e.tokens) for e in of(events, PerplexityMeasured)] for events in (whole, streamed)
    ]
    assert measured[0] == measured[1]
    assert [e.perplexity for e in of(whole, PerplexityMeasured)] == pytest.approx(
        [e.perplexity for e in of(streamed, PerplexityMeasured)], rel=1e-6
    )
    assert [e.error_after for e in of(whole, SubBlockRebuilt)] == [e.error_after for e in of(streamed, SubBlockRebuilt)]
    assert_same(*(named(AutoModelForCausalLM.from_pretrained(tmp_path / name)) for name in ("whole", "streamed")))


@pytest.mark.parametrize("settings", [name for name in RUNS if "auto" not in name])
def test_no_more_than_one_layer_is_in_memory(workspaces, settings):
    """At every event, also if the run stops there; afterwards every layer is on the meta device."""
    streamed = stream(workspaces("llama") / "model")
    context = PruningContext(
        streamed.view, LayerwiseProvider(streamed, torch.device("cpu")), ActivationStore(torch.device("cpu"))
    )
    tokens = torch.randint(3, 96, (4, 24), generator=torch.Generator().manual_seed(1))
    calibration = CalibrationSet(tokens, "random tokens", 1)

    def here() -> int:
        return sum(not any(p.is_meta for p in layer.module.parameters()) for layer in streamed.view.layers)

    def begin():
        return prune(
            streamed.loaded.model, calibration, job(workspaces("llama"), **RUNS[settings]).prune, context=context
        )

    counts = []
    for _ in begin():
        counts.append(here())
    assert max(counts) == 1
    assert here() == 0
    for stop in {counts.index(1) + 1, len(counts) // 2}:
        events = begin()
        for _ in range(stop):
            next(events)
        events.close()
        assert here() == 0


def test_texts_are_left_out_with_a_notice(workspaces):
    events = list(run_job(replace(job(workspaces("llama"), barber=False), stream=True, prompts=("the cat",))))
    assert [event.message for event in of(events, Notice)] == [
        "No texts are generated: the model is read layer by layer, which takes too long for each word."
    ]


def test_zero_shot_tasks_are_refused(workspaces):
    spec = replace(job(workspaces("llama")), stream=True, zeroshot_tasks=("story_ending",))
    with pytest.raises(UserError, match="Zero-shot tasks need the whole of"):
        list(run_job(spec))


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("order", ["paper", "one-pass"])
def test_nan_in_a_later_layer_is_named(order, evaluated, tmp_path):
    workspace = save_inputs(tmp_path, build("llama"))
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[name][3, 5] = torch.nan
        return tensors

    rewrite(workspace / "model", spoil)
    spec = replace(job(workspace, order=order), stream=True, evaluation=job(workspace).evaluation if evaluated else ())
    with pytest.raises(UserError, match=r"Weight layers\.1\.mlp\.up_proj\.weight of the model holds NaN"):
        list(run_job(spec))


def test_the_estimate_comes_before_the_work(workspaces):
    for streamed in (True, False):
        events = list(run_job(replace(job(workspaces("llama")), stream=streamed)))
        kinds = [type(event) for event in events]
        before = events[: kinds.index(Estimated)]
        assert {event.phase for event in of(before, Progress)} == {"load", "data"}
        assert kinds.count(Estimated) == 1
        assert kinds.index(Estimated) < kinds.index(JobPlanned) < kinds.index(RunStarted)


def test_a_model_that_does_not_fit_is_loaded_layer_by_layer(tmp_path):
    """Activations that do not fit are stored on disk; smaller batches change masks only by rounding."""
    workspace = save_inputs(tmp_path, llama(num_hidden_layers=24))
    spec = job(workspace, threshold=0.3, samples=64, method="wanda")
    roomy, tight = (list(run_job(replace(spec, max_memory=limit))) for limit in ("1GiB", "1800KB"))
    for events, streamed, activations in ((roomy, False, "host"), (tight, True, "disk")):
        (estimate,) = of(events, Estimated)
        assert (estimate.streamed, estimate.activations) == (streamed, activations)
        assert (estimate.disk_bytes > 0) == (activations == "disk")
    assert of(tight, Estimated)[0].host_bytes <= 1_800_000
    assert equal_share(masks_in_events(roomy), masks_in_events(tight)) >= 0.999
    assert sum(map(torch.Tensor.sum, masks_in_events(roomy).values())) == sum(
        map(torch.Tensor.sum, masks_in_events(tight).values())
    )


@pytest.mark.parametrize("more", [[], ["--stream"]])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("20KB", "iB for one layer and one sequence of 24 tokens, but 20 KiB may be used"),
        ("nonsense", "'nonsense' is not a size"),
        ("12", "'12' is not a size"),
        ("0GB", "'0GB' is not a size"),
        ("-3GiB", "'-3GiB' is not a size"),
        ("infGB", "'infGB' is not a size"),
        ("nanGB", "'nanGB' is not a size"),
        ("", "--max_memory is empty"),
    ],
)
def test_an_insufficient_memory_limit_is_a_user_error(workspaces, size, message, more, capsys):
    pruning = ["--prune_method", "wanda", "--sparsity_ratio", "0.5", "--prune_barber"]
    assert main([*flags(workspaces("llama"), *pruning, *more), f"--max_memory={size}"]) == 2
    captured = capsys.readouterr()
    error = captured.err.strip().splitlines()[-1].split("\r")[-1]
    assert error.startswith("error: ")
    assert message in error
    assert captured.out == ""


def test_memory_sizes_are_parsed():
    cpu = torch.device("cpu")
    assert memory_limit("12GiB", cpu) == 12 * 2**30
    assert memory_limit("800MB", cpu) == 800 * 10**6
    assert memory_limit("1.5GiB", cpu) == 3 * 2**29
    assert memory_limit(None, cpu) > 0
    assert memory_limit("800MB", cpu, held=2**50) == 800 * 10**6
    assert memory_limit(None, cpu, held=2**50) > HEADROOM * 2**50
