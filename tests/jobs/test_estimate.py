"""Estimates of a run: more for more work, and of the right size for a known model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from barber.bundled import STORYTELLER
from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import load_calibration
from barber.job_spec import JobSpec
from barber.jobs.costs import costs, passes
from barber.jobs.estimate import Model, estimate
from barber.jobs.speed import Speed, measure_speed
from barber.models.loading import load
from barber.pruning.context import PruningContext
from barber.registry import INITIAL_MASKS, REFINERS, Work

SEVEN = Model(  # LLaMA-2-7B in bfloat16
    layers=32,
    hidden=4096,
    layer_parameters=4 * 4096**2 + 3 * 4096 * 11008,
    block_parameters=3 * 4096 * 11008,
    width=11008,
    spread=3 * (4096 + 11008),
    blocks=(((4096, 4096),) * 4, ((11008, 4096), (11008, 4096), (4096, 11008))) * 32,
    other_bytes=2 * (2 * 32000 * 4096 + 65 * 4096),
    element=2,
)
GIB = 2**30
H100 = Speed(layer=0.003, token=5e-5, head=0.002, opening=0, product=1e-14, sort=1e-11, launch=1e-5)


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


def test_gram_matrices_of_experts_take_memory():
    routed = replace(SEVEN, grams=10**9)
    size = {"samples": 64, "seqlen": 1024, "batch": 2, "whole": False}
    for method, more in (("wanda", 0), ("sparsegpt", 4 * routed.grams)):
        one, other = (estimate(model, config(method=method), **size) for model in (SEVEN, routed))
        assert other.work == one.work + more


@pytest.mark.parametrize("change", ["samples", "seqlen", "batch", "whole"])
def test_needs_grow_with_each_setting(change):
    base = {"samples": 64, "seqlen": 1024, "batch": 2, "whole": False}
    small, large = (
        estimate(SEVEN, config(), **values)
        for values in (base, base | {change: True if change == "whole" else base[change] * 2})
    )
    assert small.least <= large.least
    assert small.activations <= large.activations
    assert small != large


def test_a_7b_model():
    """Weights are 12.6 GiB; hidden states of 128 sequences of 2048 tokens are 2 GiB a copy."""
    whole = estimate(SEVEN, config(), 128, 2048, 2, whole=True)
    layer = estimate(SEVEN, config(), 128, 2048, 2, whole=False)
    assert 24 * GIB < whole.weights < 26 * GIB
    assert 0.75 * GIB < layer.weights < 2 * GIB
    assert 2 * GIB <= layer.activations <= 16 * GIB
    assert 2 * GIB < layer.work < 8 * GIB
    assert layer.least == layer.weights + layer.work


def test_ranks_share_the_work():
    one, four = (estimate(SEVEN, config(), 128, 2048, 2, False, ranks) for ranks in (1, 4))
    assert four.activations == pytest.approx(one.activations / 4)
    assert four.least == one.least


def test_hessians_take_memory():
    plain, hessian = (estimate(SEVEN, config(method=m), 128, 2048, 2, False) for m in ("wanda", "sparsegpt"))
    assert hessian.work - plain.work == 3 * 4 * 11008**2
    narrow = estimate(replace(SEVEN, width=4096), config(method="sparsegpt"), 128, 2048, 2, False)
    assert narrow.work < hessian.work


def planned(prune: PruneConfig | None, speed: Speed = H100, ranks: int = 1, **settings) -> dict[str, float]:
    """The expected seconds of the phases of a job on a 7B model."""
    spec = JobSpec(model="m", prune=prune, **{"nsamples": 128, "seqlen": 2048} | settings)
    return costs(spec, SEVEN, speed, 2048, [166] * len(spec.evaluation), ranks)


@pytest.mark.parametrize("case", RISING)
def test_more_work_takes_longer(case):
    seconds = [sum(planned(one).values()) for one in RISING[case]]
    assert all(a < b for a, b in pairwise(seconds)), seconds


def test_every_method_and_refiner_counts_its_work_on_weights():
    free = replace(H100, product=0, sort=0, launch=0)
    for method in INITIAL_MASKS:
        assert planned(config(method=method, barber=False))["initial mask"] > planned(
            config(method=method, barber=False), free
        ).get("initial mask", 0)
    for refiner in REFINERS:
        assert planned(config(refiner=refiner))["rebuild"] > planned(config(refiner=refiner), free)["rebuild"]
    assert sum(planned(config(method="alps")).values()) > sum(planned(config()).values())


def test_all_of_the_job_is_planned():
    full = {"prompts": ("once", "upon"), "zeroshot_tasks": ("boolq", "another"), "evaluation": ("c4", "ptb")}
    phases = planned(config(), **full)
    stages = ("dense", "initial", "rebuilt")
    assert set(phases) == {"initial mask", "rebuild"} | {
        f"{kind} {stage}" for kind in ("perplexity", "text", "zero-shot") for stage in stages
    }
    assert phases["perplexity dense"] == pytest.approx(2 * 166 * (32 * 0.003 + 0.002))
    assert phases["text dense"] == pytest.approx(2 * planned(config(), prompts=("once",))["text dense"])
    assert planned(None, evaluation=()) == {}
    assert list(planned(None)) == ["perplexity dense"]
    streamed = planned(config(), replace(H100, opening=1.0))
    assert streamed["rebuild"] == pytest.approx(planned(config())["rebuild"] + 32)
    assert (
        planned(config(method="magnitude", barber=False), zeroshot_tasks=("rte",), zeroshot_limit=10)["zero-shot dense"]
        < (planned(config(), zeroshot_tasks=("rte",))["zero-shot dense"])
    )


def test_ranks_share_the_calibration_but_not_the_weights():
    one, four = (planned(config(method="sparsegpt", barber=False), ranks=ranks)["initial mask"] for ranks in (1, 4))
    assert one / 4 < four < one


def test_the_speed_of_the_bundled_model_is_plausible():
    loaded = load(STORYTELLER, device="cpu")
    context = PruningContext.of(loaded.model)
    tokens = load_calibration(STORYTELLER, loaded.tokenizer, samples=4, seqlen=128, seed=0).tokens
    speed = measure_speed(context, tokens, batch=4, head=True)
    assert 1e-6 < speed.layer < 10
    assert 1e-6 < speed.token < 10
    assert 1e-6 < speed.head < 10
    assert speed.opening < 0.1
    assert 1e-14 < speed.product < 1e-8
    assert 1e-12 < speed.sort < 1e-5
    assert measure_speed(context, tokens, batch=4, head=False).head == 0
    assert speed.of(Work(sorts=2), 10, 20) == pytest.approx(400 * speed.sort)
