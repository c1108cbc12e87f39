"""The two orders of a run: counts, weights, events and stops; batch sizes and stores change masks only by rounding."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch

from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet
from barber.errors import UserError
from barber.events import LayerInitialised, Progress, RunFinished, RunStarted, Stage, StageReached, SubBlockRebuilt
from barber.kernels.masks import zero_count
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.providers import ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.context import PruningContext
from barber.pruning.prune import prune
from barber.registry import INITIAL_MASKS
from tests.support.families import build, copy_weights
from tests.support.jobs import equal_share, masks_in_events, same, values_in_events
from tests.support.tiny import llama

pytestmark = pytest.mark.slow

ORDERS = ("one-pass", "paper")
SWAPS = {
    "fixed": {"granularity": "block", "threshold": 0.3},
    "auto": {"threshold": "auto", "rounds": 2},
    "2:4": {"threshold": 0.5},
}
CPU = torch.device("cpu")
MEMORY = ActivationStore(CPU)


def sequences(samples: int = 8, seqlen: int = 24) -> CalibrationSet:
    tokens = torch.randint(3, 96, (samples, seqlen), generator=torch.Generator().manual_seed(1))
    return CalibrationSet(tokens=tokens, source="random tokens", seed=1)


def config(pattern: str = "50%", **settings) -> PruneConfig:
    return PruneConfig(Sparsity.parse(pattern), **{"order": "one-pass"} | settings)


@pytest.mark.parametrize("swaps", SWAPS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "opt-350m", "falcon", "gpt_neox", "gemma2"])
def test_one_pass(family, method, swaps):
    """Exact counts, events in order, and the model's weights at each StageReached."""
    model, sparsity = build(family), "2:4" if swaps == "2:4" else "30%"
    view = DecoderView(model)
    dense, events, shown = copy_weights(view), [], {}
    for event in prune(model, sequences(), config(sparsity, method=method, **SWAPS[swaps])):
        events.append(event)
        if isinstance(event, StageReached):
            shown[event.stage] = copy_weights(view)
    main_events = [e for e in events if isinstance(e, LayerInitialised | SubBlockRebuilt | StageReached | RunFinished)]
    blocks = [(layer.index, block) for layer in view.layers for block in layer.sub_blocks]
    kinds = [LayerInitialised, SubBlockRebuilt] * len(blocks) + [StageReached, StageReached, RunFinished]
    assert isinstance(events[0], RunStarted)
    assert [type(event) for event in main_events] == kinds
    assert list(shown) == [Stage.INITIAL, Stage.REBUILT]
    for (index, block), initial, rebuilt in zip(blocks, main_events[::2], main_events[1::2], strict=False):
        names = [weight.name for weight in block.weights]
        assert initial.layer == rebuilt.layer == index
        assert list(initial.modules) == list(rebuilt.modules) == names
        asked, within = Sparsity.parse(sparsity), INITIAL_MASKS[method].within
        zeros = {w.name: zero_count(*w.view.shape, asked, within) for w in block.weights}
        assert {name: int(mask.sum()) for name, mask in initial.masks.items()} == zeros
        assert sum(int(mask.sum()) for mask in rebuilt.masks.values()) == sum(zeros.values())
        for event in (initial, rebuilt):
            assert {n: m.zeros for n, m in event.modules.items()} == {n: int(m.sum()) for n, m in event.masks.items()}
            for mask in event.masks.values() if swaps == "2:4" else ():
                assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    found, changed = masks_in_events(events), values_in_events(events)
    assert any(stage == Stage.INITIAL for *_, stage in changed) == (method == "sparsegpt")
    for (index, name, stage), mask in found.items():
        wanted = changed.get((index, name, stage), dense[index, name]).masked_fill(mask, 0)
        assert torch.equal(shown[stage][index, name], wanted), f"{stage} {index}.{name}"
    assert all(torch.equal(weight, shown[Stage.REBUILT][key]) for key, weight in copy_weights(view).items())
    assert main_events[-1].zeros == sum(
        int(mask.sum()) for (*_, stage), mask in found.items() if stage == Stage.REBUILT
    )
    assert main_events[-1].swaps > 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-350m"])
def test_stopped_at_any_event_leaves_the_model_dense(family, order):
    model, data = build(family), sequences(4)
    model.train()
    view = DecoderView(model)
    dense, kept = copy_weights(view), DenseWeights(view)
    settings = config(order=order, method="sparsegpt", granularity="block", threshold=0.3, target="dense-stream")
    total = sum(not isinstance(event, RunFinished) for event in prune(model, data, settings))
    assert all(bool((weight != dense[key]).any()) for key, weight in copy_weights(view).items()), (
        "a complete run leaves the model pruned"
    )
    kept.restore()
    assert total > 20
    for count in range(1, total + 1):
        events = prune(model, data, settings)
        for _ in range(count):
            next(events)
        events.close()
        assert all(torch.equal(weight, dense[key]) for key, weight in copy_weights(view).items()), (
            f"after {count} events"
        )
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


@cache
def carried_out(family: str, order: str, method: str, swaps: str, batch: int, place: ActivationStore = MEMORY) -> list:
    model = build(family)
    view = DecoderView(model)
    context = PruningContext(view, ResidentProvider(view), place, batch=batch)
    pattern = "2:4" if swaps == "2:4" else "50%"
    settings = config(pattern, order=order, method=method, **SWAPS[swaps])
    return list(prune(model, sequences(), settings, context=context))


CASES = [
    ("llama", "one-pass", "wanda", "auto"),
    ("llama", "paper", "sparsegpt", "fixed"),
    ("opt-350m", "one-pass", "sparsegpt", "fixed"),
    ("opt", "paper", "magnitude", "2:4"),
    ("gpt2", "one-pass", "wanda", "2:4"),
    ("gemma2", "paper", "wanda", "auto"),
    ("falcon", "one-pass", "magnitude", "fixed"),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_batch_size_changes_only_rounding(case):
    one = carried_out(*case, batch=1)
    for batch in (2, 8):
        other = carried_out(*case, batch=batch)
        assert equal_share(masks_in_events(one), masks_in_events(other)) >= 0.999
        kinds, others = (Counter(type(event) for event in events) for events in (one, other))
        assert {kind for kind in kinds if kinds[kind] != others[kind]} <= {Progress}, "only Progress is rarer"
        assert [e.zeros for e in one if isinstance(e, RunFinished)] == [
            e.zeros for e in other if isinstance(e, RunFinished)
        ]
        for a, b in zip(
            *([e for e in events if isinstance(e, SubBlockRebuilt)] for events in (one, other)), strict=True
        ):
            assert a.error_before == pytest.approx(b.error_before, rel=1e-4)
            assert a.error_after == pytest.approx(b.error_after, rel=1e-2)


@pytest.mark.parametrize("where", ["host", "folder"])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_activation_store_changes_nothing(case, where, tmp_path):
    place = ActivationStore(CPU, host=True) if where == "host" else ActivationStore(CPU, folder=tmp_path)
    there, here = (carried_out(*case, batch=2, place=kept) for kept in (place, MEMORY))
    for read in (masks_in_events, values_in_events):
        assert same(read(there), read(here))
    assert [e.error_after for e in there if isinstance(e, SubBlockRebuilt)] == [
        e.error_after for e in here if isinstance(e, SubBlockRebuilt)
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_orders_differ_only_after_the_first_rebuild(method):
    """Before the first attention both orders have the same stream, and after it different ones."""
    found = []
    for order in ORDERS:
        model = llama(vocab_size=96)
        found.append(
            masks_in_events(list(prune(model, sequences(), config(order=order, method=method, **SWAPS["fixed"]))))
        )
    one, other = found
    assert one.keys() == other.keys()
    attention = [key for key in one if key[1].startswith("self_attn")]
    assert len(attention) == 8
    assert all(torch.equal(one[key], other[key]) for key in attention)
    assert method == "magnitude" or not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "masks", "initial_masks": "run"}, "has masks already"),
        ({"method": "wanda", "barber": False}, "has no rebuild"),
        ({"order": "two-pass"}, "choose one of paper, one-pass"),
    ],
)
def test_settings_without_effect_in_one_pass_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)
