"""Layer ratios: exact sums for any shape, OWL's band, and runs that prune as many weights as the uniform one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from barber.config import Allocation, PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import JobPlanned, LayerInitialised, Progress, RunFinished, StageReached
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.kernels.ratios import BAND, layer_ratios, outliers, share_out
from barber.models.decoder import DecoderView
from barber.models.providers import ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.allocation import allocate
from barber.pruning.context import PruningContext
from barber.pruning.prune import prune
from barber.registry import INITIAL_MASKS
from tests.support.families import build, copy_weights
from tests.support.tiny import llama, tokenizer

UNEVEN = [Allocation.OWL, Allocation.SALIENCY]


def sequences(samples: int = 4) -> CalibrationSet:
    tokens = torch.randint(3, 96, (samples, 24), generator=torch.Generator().manual_seed(1))
    return CalibrationSet(tokens=tokens, source="random tokens", seed=1)


def with_outliers(family: str = "llama"):
    """A random model whose second layer has one input that is far larger than the others."""
    model = build(family)
    norms = [p for layer in DecoderView(model).layers[1:] for p in layer.module.parameters() if p.dim() == 1]
    with torch.no_grad():
        for norm in norms:
            norm[3] += 40
    return model


def zeros_of(model, config: PruneConfig) -> dict[tuple[int, str], int]:
    events = list(prune(model, sequences(), config))
    found = {
        (event.layer, name): counts.zeros
        for event in events
        if isinstance(event, LayerInitialised)
        for name, counts in event.modules.items()
    }
    assert isinstance(events[-1], RunFinished)
    assert events[-1].zeros == sum(found.values()) <= events[-1].zero_valued
    return found


@given(st.data())
def test_plans_are_exact(data):
    """Any sizes from one weight on, any ratios, any possible total."""
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
    ratios = [data.draw(st.floats(-0.2, 1.2)) for _ in sizes]
    total = data.draw(st.integers(0, sum(sizes) - len(sizes)))
    counts = share_out(sizes, ratios, total)
    assert sum(counts) == total
    assert all(0 <= count < size for count, size in zip(counts, sizes, strict=True))
    assert counts == share_out(sizes, ratios, total)
    free = [i for i, size in enumerate(sizes) if 0 < counts[i] < size - 1]
    offsets = [(counts[i] / sizes[i] - ratios[i], 1 / sizes[i]) for i in free]
    for offset, step in offsets:
        for other, its in offsets:
            assert abs(offset - other) <= step + its + 1e-9, "all differ from their ratio by the same, up to one zero"


@given(st.lists(st.integers(2, 5000), min_size=1, max_size=8), st.floats(0, 0.5))
def test_equal_ratios_share_evenly(sizes, ratio):
    total = math.floor(ratio * sum(sizes))
    counts = share_out(sizes, [0.7] * len(sizes), total)
    assert all(abs(count - size * total / sum(sizes)) < 1 for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("total", [-1, 8])
def test_an_impossible_plan_is_refused(total):
    with pytest.raises(UserError, match=f"{total} of 10 weights cannot be pruned"):
        share_out([1, 4, 5], [0.5, 0.5, 0.5], total)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_ratios_keep_the_mean_and_the_width_of_the_band(shares, ratio):
    ratios = layer_ratios(shares, ratio)
    assert math.fsum(ratios) / len(ratios) == pytest.approx(ratio)
    assert max(ratios) - min(ratios) == pytest.approx(2 * BAND if max(shares) > min(shares) else 0)
    for share, pruned in zip(shares, ratios, strict=True):
        assert all(pruned <= other + 1e-12 for its, other in zip(shares, ratios, strict=True) if share > its)


def test_ratios_are_the_published_ones():
    assert layer_ratios([0.01, 0.02, 0.03], 0.7) == pytest.approx([0.78, 0.7, 0.62])
    assert layer_ratios([0.0, 0.0, 0.0, 0.04], 0.5) == pytest.approx([0.54, 0.54, 0.54, 0.38])


def test_outliers_are_counted_against_the_common_mean():
    """The mean of 1000 scores is 2 (ten are 100, the others about 1); the means of the two tensors differ from it."""
    few, many = torch.full((10,), 100.0), torch.full((990,), 1.0)
    assert outliers([few.view(2, 5), many.view(33, 30)]) == 10
    assert outliers([few]) == outliers([many]) == outliers([torch.zeros(3, 3)]) == 0


@pytest.mark.parametrize("allocation", UNEVEN)
@pytest.mark.parametrize("method", INITIAL_MASKS)
def test_runs_prune_as_much_as_the_uniform_one(method, allocation):
    """Every method, and the layer with more outliers keeps more."""
    sparsity = Sparsity(0.37)
    uniform = zeros_of(with_outliers(), PruneConfig(sparsity, method, barber=False))
    plan = zeros_of(with_outliers(), PruneConfig(sparsity, method, barber=False, allocation=allocation))
    assert plan.keys() == uniform.keys()
    assert sum(plan.values()) == sum(uniform.values())
    sizes = {
        (layer.index, w.name): w.view.numel() for layer in DecoderView(build("llama")).layers for w in layer.weights
    }
    mean = sum(uniform.values()) / sum(sizes.values())
    for (layer, name), size in sizes.items():
        assert abs(plan[layer, name] - size * (mean + (-BAND if layer else BAND))) <= 1


@pytest.mark.parametrize("allocation", UNEVEN)
@pytest.mark.parametrize("family", ["gpt2", "opt-350m"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_other_families_and_the_rebuild_keep_the_count(family, method, allocation):
    """Conv1D and linears on the layer itself; masks, events and weights agree."""
    sparsity = Sparsity(0.6)
    total = sum(zeros_of(with_outliers(family), PruneConfig(sparsity, method)).values())
    model = with_outliers(family)
    assert sum(zeros_of(model, PruneConfig(sparsity, method, allocation=allocation, threshold=0.5)).values()) == total
    assert sum(int((w.view == 0).sum()) for layer in DecoderView(model).layers for w in layer.weights) == total


@pytest.mark.parametrize("ratio", [0.01, 0.99])
@pytest.mark.parametrize("allocation", UNEVEN)
def test_extreme_ratios_leave_every_matrix_a_weight(ratio, allocation):
    uniform = zeros_of(with_outliers(), PruneConfig(Sparsity(ratio), barber=False))
    plan = zeros_of(with_outliers(), PruneConfig(Sparsity(ratio), barber=False, allocation=allocation))
    assert sum(plan.values()) == sum(uniform.values())
    for layer in DecoderView(build("llama")).layers:
        for weight in layer.weights:
            assert 0 <= plan[layer.index, weight.name] < weight.view.numel()


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("allocation", UNEVEN)
def test_the_plan_leaves_the_model_dense_and_reports_every_step(method, allocation):
    model = with_outliers().requires_grad_(False)
    view, data = DecoderView(model), sequences()
    before = copy_weights(view)
    context = PruningContext(view, ResidentProvider(view), ActivationStore(view.device), batch=2)
    events = list(allocate(context, data, PruneConfig(Sparsity(0.5), method, allocation=allocation)))
    assert all(isinstance(event, Progress) and event.phase == "allocation" for event in events)
    assert [event.done for event in events] == list(range(1, events[0].total + 1))
    assert {event.where for event in events} == {"layer 0", "layer 1"}
    assert all(torch.equal(weight, before[key]) for key, weight in copy_weights(view).items())


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_run_that_stops_in_its_allocation_leaves_the_model_dense(steps):
    model = with_outliers()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    events = prune(model, sequences(), PruneConfig(Sparsity(0.5), "wanda", allocation="saliency"))
    for event in events:
        if isinstance(event, Progress) and event.done == steps:
            assert event.phase == "allocation"
            break
    events.close()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad


def test_runs_are_deterministic():
    config = PruneConfig(Sparsity(0.5), "random", barber=False, allocation="saliency")
    runs = []
    for _ in range(2):
        events = list(prune(with_outliers(), sequences(), config))
        runs.append([event.masks for event in events if isinstance(event, LayerInitialised)])
        assert sum(isinstance(event, StageReached) for event in events) == 1
    for one, two in zip(*runs, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("allocation", Allocation)
def test_the_planned_phases_of_a_job_are_those_of_its_progress(tmp_path, allocation):
    """The planned phases for the ETA are the real ones, in order; magnitude needs data for its allocation."""
    llama(num_hidden_layers=2).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat sat on a mat and saw big red dog run to town " * 60)
    spec = JobSpec(
        model=str(tmp_path / "model"),
        prune=PruneConfig(Sparsity(0.5), "magnitude", barber=False, allocation=allocation),
        calibration=str(tmp_path / "text.txt"),
        evaluation=(str(tmp_path / "text.txt"),),
        nsamples=3,
        seqlen=16,
        device="cpu",
        eval_windows=2,
    )
    events = list(run_job(spec))
    (planned,) = [event for event in events if isinstance(event, JobPlanned)]
    begun = events[events.index(planned) :]
    assert list(planned.phases) == list(dict.fromkeys(event.phase for event in begun if isinstance(event, Progress)))
    assert ("allocation" in planned.phases) == (allocation is not Allocation.UNIFORM)


def test_an_allocation_needs_calibration():
    config = PruneConfig(Sparsity(0.5), "magnitude", barber=False, allocation="owl")
    with pytest.raises(UserError, match="allocation owl needs calibration data"):
        next(prune(build("llama"), None, config))


@pytest.mark.parametrize("allocation", UNEVEN)
def test_inputs_that_overflow_are_named(allocation):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = 1e30
    with pytest.raises(UserError, match=r"layers\.1.* not finite"):
        list(prune(model, sequences(), PruneConfig(Sparsity(0.5), "magnitude", barber=False, allocation=allocation)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sparsity": Sparsity.parse("2:4"), "allocation": "owl"}, "unstructured ratio"),
        ({"sparsity": Sparsity(0.5), "method": "masks", "initial_masks": "a", "allocation": "owl"}, "leave the alloc"),
        ({"sparsity": Sparsity(0.5), "allocation": "fair"}, "Allocation 'fair' is unknown"),
    ],
)
def test_impossible_allocations(values, words):
    with pytest.raises(UserError, match=words):
        PruneConfig(**values)
