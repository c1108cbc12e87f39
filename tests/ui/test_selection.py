"""The selected weight matrix: what a run offers, what is selected first, and what the views of a matrix say of it."""

from __future__ import annotations

import pytest

from analysis import frames, matrix
from barber.errors import UserError
from barber.events import LayerInitialised
from barber.runs.recorder import create, record
from tests.analysis.test_frames import run
from ui import matrix_tab
from ui.hub import Hub
from ui.selection import Matrix, first, select

NOTHING = Matrix(None, None, None)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Hub:
    return Hub(tmp_path_factory.mktemp("runs"))


def recorded(hub: Hub, events: list) -> str:
    """The id of a run with these events."""
    name = hub.new_run()
    list(record(create(hub.path(name)), (event for event in events)))
    return name


@pytest.fixture(scope="module")
def rebuilt(hub) -> str:
    return recorded(hub, run(2))


@pytest.fixture(scope="module")
def only_initial(hub) -> str:
    return recorded(hub, run(2, barber=False))


def test_the_most_changed_matrix_is_selected_first(hub, rebuilt):
    row, layer, module, shown = first(hub, rebuilt, NOTHING)
    best = frames.most_changed(frames.flips(hub.events(rebuilt)))
    assert row["visible"]
    assert (shown.run, shown.layer, shown.module) == (rebuilt, *best)
    assert (layer["value"], module["value"]) == best
    assert layer["choices"] == [0, 1]
    assert len(module["choices"]) == 7


def test_each_end_of_a_run_draws_its_views_again(hub, rebuilt):
    assert first(hub, rebuilt, NOTHING)[-1] != first(hub, rebuilt, NOTHING)[-1]


def test_a_run_without_masks_has_nothing_to_select(hub):
    events = run(1)
    before = events[: next(i for i, event in enumerate(events) if isinstance(event, LayerInitialised))]
    name = recorded(hub, before)
    row, *_, shown = first(hub, name, NOTHING)
    assert not row["visible"]
    assert (shown.run, shown.layer, shown.module) == (name, None, None)
    assert matrix_tab.read(hub, shown) is None


def test_a_run_without_a_rebuild_offers_its_initial_masks(hub, only_initial):
    *_, shown = first(hub, only_initial, NOTHING)
    assert (shown.layer, shown.module) == (0, "self_attn.q_proj")
    counts = matrix.overview(matrix_tab.read(hub, shown)).counts
    assert counts["pruned"] == counts["kept"] > 0 == counts["grown"] == counts["cut"]


def test_another_layer_keeps_the_module(hub, rebuilt):
    shown = Matrix(rebuilt, 0, "mlp.up_proj", "mark")
    layer, module, after = select(hub, shown, 1, "mlp.up_proj")
    assert after == Matrix(rebuilt, 1, "mlp.up_proj", "mark", chosen=True)
    assert (layer["value"], module["value"]) == (1, "mlp.up_proj")


@pytest.mark.parametrize(("layer", "module"), [(1, "no such module"), (1, None), (7, "mlp.up_proj"), (None, None)])
def test_a_matrix_that_does_not_exist_is_not_selected(hub, rebuilt, layer, module):
    shown = Matrix(rebuilt, 0, "mlp.up_proj", "mark")
    after = select(hub, shown, layer, module)[-1]
    if layer == 1:
        assert after == shown._replace(layer=1, module="self_attn.q_proj", chosen=True)
    else:
        assert not isinstance(after, Matrix)


def test_the_endpoint_describes_a_matrix_and_refuses_others(hub, rebuilt):
    answer = matrix_tab.describe_matrix(hub, Matrix(rebuilt, 1, "mlp.up_proj"), 2, 3, 4)
    assert sum(answer["counts"].values()) == answer["shape"][0] * answer["shape"][1]
    assert (answer["window"]["row"], answer["window"]["column"]) == (2, 3)
    assert [len(line) for line in answer["window"]["fates"]] == [4] * 4
    for wrong in (Matrix(rebuilt, 9, "mlp.up_proj"), Matrix(rebuilt, 1, "no"), Matrix(hub.new_run(), 1, "no")):
        with pytest.raises(UserError, match="has no mask of module") as caught:
            matrix_tab.describe_matrix(hub, wrong, 0, 0, 4)
        assert str(hub.runs) not in str(caught.value)
    with pytest.raises(UserError, match="not the id of a run"):
        matrix_tab.describe_matrix(hub, Matrix("../other", 1, "no"), 0, 0, 4)


def test_values_that_cannot_be_read_have_a_reason(hub, rebuilt):
    """The run is of a model that was made in memory, so that no files have its weights."""
    part = matrix.window(matrix_tab.read(hub, Matrix(rebuilt, 1, "mlp.up_proj")), 0, 0, 4)
    weights, why = matrix_tab.dense_weights(hub, Matrix(rebuilt, 1, "mlp.up_proj"), part)
    assert weights is None
    assert "LlamaForCausalLM" in why


def test_a_choice_stays_when_the_views_of_its_run_are_drawn_again(hub, rebuilt, only_initial):
    *_, shown = first(hub, rebuilt, NOTHING)
    assert first(hub, rebuilt, shown)[-1][1:3] == shown[1:3] == frames.most_changed(frames.flips(hub.events(rebuilt)))
    other = next(name for name in ("mlp.up_proj", "mlp.gate_proj") if name != shown.module)
    *_, chosen = select(hub, shown, 1, other)
    assert chosen.chosen
    assert first(hub, rebuilt, chosen)[-1][1:3] == (1, other)
    assert first(hub, only_initial, chosen)[-1][1:3] != (1, other)
