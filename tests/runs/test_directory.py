"""The run directory, the job and the stages: files read back equal what was written, and the model ends dense."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import (
    JobPlanned,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    RunFinished,
    Stage,
    StageReached,
    SubBlockRebuilt,
    TextGenerated,
)
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.loading import load
from barber.progress import Eta
from barber.runs.apply import at_stage
from barber.runs.directory import RunDirectory, read_masks
from barber.runs.packed_masks import pack, unpack
from tests.support.golden_data import GOLDEN
from tests.support.tiny import llama, tokenizer


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder with a tokenizer, and a text for it."""
    llama(num_hidden_layers=2).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    lines = [json.dumps({"text": " ".join(["the cat sat on a mat and saw big red dog run to town"] * 3)})] * 12
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path


def spec_for(folder, **changes) -> JobSpec:
    config = PruneConfig(Sparsity.parse("50%"), "wanda", granularity="block", threshold=0.5)
    text = str(folder / "text.jsonl")
    base = JobSpec(
        model=str(folder / "model"), prune=config, calibration=text, evaluation=(text,), nsamples=4, seqlen=16,
        prompts=("the cat",), run_dir=folder / "run", device="cpu",
    )  # fmt: skip
    return replace(base, **changes)


def hashes(loaded) -> dict:
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_masks_survive_packing(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack(pack(mask), (rows, columns)), mask)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("retain", [False, True])
def test_a_recorded_run_is_read_back_unchanged(folder, method, retain):
    config = PruneConfig(
        Sparsity.parse("2:4"), method, granularity="layer", threshold=0.5, retain_reconstruction=retain
    )
    loaded = load(str(folder / "model"), device="cpu")
    dense = hashes(loaded)
    live, states = [], {}
    for event in run_job(spec_for(folder, prune=config), loaded):
        live.append(event)
        if isinstance(event, StageReached):
            states[event.stage] = hashes(loaded)
    assert all(torch.equal(value, dense[name]) for name, value in loaded.model.state_dict().items())

    run = RunDirectory(folder / "run")
    kept = [
        e for e in live if not isinstance(e, (Progress, JobPlanned)) and (not isinstance(e, TextGenerated) or e.done)
    ]
    recorded = [e for e in run.events() if not isinstance(e, JobPlanned)]
    assert recorded == [e for e in kept if e in recorded]
    assert sum(isinstance(e, SubBlockRebuilt) for e in recorded) == 4
    for event in live:
        if isinstance(event, (LayerInitialised, SubBlockRebuilt)):
            stage = Stage.INITIAL if isinstance(event, LayerInitialised) else Stage.REBUILT
            stored = run.masks(event.layer, stage)
            assert all(torch.equal(stored[name], mask) for name, mask in event.masks.items())
    for stage, state in states.items():
        with at_stage(loaded, run, stage):
            assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
        assert all(torch.equal(v, dense[k]) for k, v in loaded.model.state_dict().items())
    assert run.environment["model_hash"]
    perplexities = json.loads((folder / "run" / "perplexity.json").read_text())
    assert [p["stage"] for p in perplexities] == ["dense", "initial", "rebuilt"]
    texts = [json.loads(line) for line in (folder / "run" / "generations.jsonl").read_text().splitlines()]
    assert [t["stage"] for t in texts] == ["dense", "initial", "rebuilt"]


@pytest.mark.parametrize("stop_at", [LayerInitialised, SubBlockRebuilt, StageReached, Progress])
def test_a_stopped_job_leaves_the_model_dense(folder, stop_at):
    loaded = load(str(folder / "model"), device="cpu")
    dense = hashes(loaded)
    events = run_job(spec_for(folder), loaded)
    for event in events:
        if isinstance(event, stop_at) and not isinstance(event, Progress | StageReached):
            break
        if isinstance(event, stop_at) and getattr(event, "phase", "rebuild") == "rebuild":
            break
    else:
        raise AssertionError("the job ended before the stop")
    events.close()
    assert all(torch.equal(value, dense[name]) for name, value in loaded.model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in loaded.model.parameters())


def test_a_run_that_cannot_be_written_leaves_the_model_dense(folder):
    """The run directory is deleted during the job, which has the effect of a full disk."""
    loaded = load(str(folder / "model"), device="cpu")
    dense, trainable = hashes(loaded), [p.requires_grad for p in loaded.model.parameters()]
    loaded.model.model.layers[0].train()
    training = [module.training for module in loaded.model.modules()]

    def consume() -> None:
        for event in run_job(spec_for(folder), loaded):
            if isinstance(event, StageReached):
                shutil.rmtree(folder / "run")

    with pytest.raises(UserError, match="cannot be written") as caught:
        consume()
    assert caught.value.__traceback__ is not None, "a reference to the exception exists, as in a debugger or logger"
    assert all(torch.equal(value, dense[name]) for name, value in loaded.model.state_dict().items())
    assert [p.requires_grad for p in loaded.model.parameters()] == trainable
    assert [module.training for module in loaded.model.modules()] == training


def test_files_of_one_name_have_different_data_set_names(folder):
    (folder / "other").mkdir()
    (folder / "other" / "text.jsonl").write_text((folder / "text.jsonl").read_text())
    specs = (str(folder / "text.jsonl"), str(folder / "other" / "text.jsonl"), str(folder / "text.jsonl"))
    events = run_job(spec_for(folder, evaluation=specs, prune=None, run_dir=None, prompts=()))
    names = [event.dataset for event in events if isinstance(event, PerplexityMeasured)]
    assert len(names) == len(set(names)) == 2


def test_masks_must_have_the_sparsity_asked(folder):
    list(run_job(spec_for(folder, prompts=())))
    config = PruneConfig(Sparsity.parse("70%"), "masks", barber=False, initial_masks=str(folder / "run"))
    with pytest.raises(UserError, match=r"prune 50\.00% of the weights, but the sparsity given is 70%"):
        list(run_job(spec_for(folder, prune=config, run_dir=None)))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_overflowing_activations_are_an_error(folder, method):
    loaded = load(str(folder / "model"), device="cpu")
    with torch.no_grad():
        loaded.model.model.layers[1].input_layernorm.weight.fill_(3e38)
    config = PruneConfig(Sparsity.parse("50%"), method, barber=False)
    with pytest.raises(UserError, match="are not finite"):
        list(run_job(spec_for(folder, prune=config, run_dir=None, prompts=()), loaded))


def test_one_weight_in_two_layers_is_refused():
    model = llama(num_hidden_layers=2)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(UserError, match="share one tensor"):
        DecoderView(model)


def test_masks_of_a_run_are_initial_masks_of_another(folder):
    loaded = load(str(folder / "model"), device="cpu")
    first = [e for e in run_job(spec_for(folder, prompts=()), loaded) if isinstance(e, SubBlockRebuilt)]
    again = PruneConfig(
        Sparsity.parse("50%"), "masks", granularity="block", threshold=0.5, initial_masks=str(folder / "run")
    )
    second = [
        e
        for e in run_job(spec_for(folder, prune=again, run_dir=None, prompts=()), loaded)
        if isinstance(e, SubBlockRebuilt)
    ]
    assert len(first) == len(second) == 4
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(one.masks[name], two.masks[name]) for name in one.masks)


def test_a_masks_file_is_read_and_checked(folder):
    loaded = load(str(folder / "model"), device="cpu")
    view = DecoderView(loaded.model)
    masks = {
        f"{layer.index}.{w.name}": torch.arange(w.view.numel()).view(w.view.shape) % 4 < 2
        for layer in view.layers
        for w in layer.weights
    }
    save_file(masks, folder / "masks.safetensors")
    config = PruneConfig(Sparsity.parse("2:4"), "masks", barber=False, initial_masks=str(folder / "masks.safetensors"))
    events = list(run_job(spec_for(folder, prune=config, run_dir=None), loaded))
    (finished,) = [e for e in events if isinstance(e, RunFinished)]
    assert finished.zeros * 2 == finished.weights
    wrong = PruneConfig(Sparsity.parse("1:4"), "masks", barber=False, initial_masks=str(folder / "masks.safetensors"))
    with pytest.raises(UserError, match="does not have 1:4"):
        list(run_job(spec_for(folder, prune=wrong, run_dir=None), loaded))
    del masks["1.mlp.up_proj"]
    save_file(masks, folder / "masks.safetensors")
    with pytest.raises(UserError, match=r"no mask for layers\.1\.mlp\.up_proj"):
        list(run_job(spec_for(folder, prune=config, run_dir=None), loaded))


def test_masks_of_another_shape_are_refused(folder):
    (folder / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read_masks(folder / "bad.safetensors")
    with pytest.raises(UserError, match="holds no run"):
        read_masks(folder / "model")


def test_a_saved_model_loads_and_has_the_measured_perplexity(folder):
    spec = spec_for(folder, save_model=folder / "pruned", run_dir=None)
    last = [e for e in run_job(spec) if isinstance(e, PerplexityMeasured)][-1]
    dense = replace(spec, model=str(folder / "pruned"), prune=None, save_model=None, calibration="storyteller")
    # Without calibration the whole text would be used, so the test takes its second half.
    lines = (folder / "text.jsonl").read_text().splitlines()
    (folder / "half.jsonl").write_text("\n".join(lines[len(lines) // 2 :]))
    (again,) = [
        e
        for e in run_job(replace(dense, evaluation=(str(folder / "half.jsonl"),)))
        if isinstance(e, PerplexityMeasured)
    ]
    assert again.perplexity == pytest.approx(last.perplexity, rel=1e-6)


def test_saved_calibration_tokens_can_be_used_again(folder):
    first = spec_for(folder, save_data=folder / "tokens.npy", run_dir=None, prompts=())
    masks = [e.masks for e in run_job(first) if isinstance(e, SubBlockRebuilt)]
    assert np.load(folder / "tokens.npy").shape == (4, 16)
    second = replace(first, save_data=None, calibration=str(folder / "tokens.npy"), evaluation=())
    again = [e.masks for e in run_job(second) if isinstance(e, SubBlockRebuilt)]
    assert len(masks) == len(again) == 4
    assert all(torch.equal(a[n], b[n]) for a, b in zip(masks, again, strict=True) for n in a)


def test_a_rebuild_without_swaps_has_a_notice(folder):
    tokens = str(GOLDEN / "calibration_tokens.npy")
    config = PruneConfig(Sparsity.parse("50%"), "wanda", granularity="output1", threshold=0.01)
    spec = JobSpec(
        model=str(GOLDEN / "tiny-llama"), prune=config, calibration=tokens, evaluation=(), nsamples=4, seqlen=64
    )
    events = list(run_job(spec))
    assert [e.swaps for e in events if isinstance(e, RunFinished)] == [0]
    assert any("no weights were swapped" in getattr(e, "message", "") for e in events)


def test_magnitude_alone_needs_no_calibration(folder):
    config = PruneConfig(Sparsity.parse("50%"), "magnitude", barber=False)
    spec = spec_for(folder, prune=config, calibration="no such data", run_dir=None, prompts=())
    assert any(isinstance(e, RunFinished) for e in run_job(spec))


def test_progress_covers_the_whole_job(folder):
    eta, fractions = Eta(), []
    for event in run_job(spec_for(folder)):
        eta.update(event)
        fractions.append(eta.fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


def test_dense_weights_are_restored_bit_for_bit():
    model = llama()
    view = DecoderView(model)
    dense = DenseWeights(view)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in view.layers:
        for weight in layer.weights:
            weight.assign(torch.zeros_like(weight.view))
    dense.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
