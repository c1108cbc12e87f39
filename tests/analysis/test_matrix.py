"""What the masks of one matrix keep: properties over generated masks of many shapes, and a real run directory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import frames, matrix, matrix_figures
from analysis.matrix import CELLS, Heads, MaskPair, Overview, overview, transitions, window
from barber.config import Granularity, Order, Sparsity
from barber.events import Fate, Stage
from barber.runs.directory import RunDirectory
from barber.runs.packed_masks import pack
from barber.runs.recorder import create, record
from tests.analysis.test_frames import LIMIT, run

SHAPES = [(1, 1), (5, 7), (64, 48), (129, 131), (300, 1021), (2, 5000)]


def generated(shape: tuple[int, int], seed: int = 0) -> tuple[MaskPair, np.ndarray, np.ndarray]:
    """Random masks that prune more in later columns, of which a tenth changed: packed, and both as bool (out, in)."""
    rng = np.random.default_rng(seed)
    initial = rng.random(shape) < np.linspace(0.2, 0.8, shape[1])
    rebuilt = initial ^ (rng.random(shape) < 0.1)
    packed = (pack(torch.from_numpy(mask)).numpy() for mask in (initial, rebuilt))
    return MaskPair(*packed, shape), initial, rebuilt


def fate_of(initial: bool, rebuilt: bool) -> Fate:
    if initial == rebuilt:
        return Fate.PRUNED if initial else Fate.KEPT
    return Fate.GROWN if initial else Fate.CUT


@pytest.fixture(params=SHAPES, ids=str)
def masks(request) -> tuple[MaskPair, np.ndarray, np.ndarray]:
    return generated(request.param)


def test_any_rows_are_those_of_the_mask(masks):
    pair, initial, rebuilt = masks
    height = pair.shape[0]
    for start, stop in ((0, height), (height // 2, height), (height // 3, height // 3 + 1)):
        before, after = pair.rows(start, stop)
        assert (before == initial[start:stop]).all()
        assert (after == rebuilt[start:stop]).all()


def test_portions_are_all_rows_in_order(masks, monkeypatch):
    pair, initial, _ = masks
    monkeypatch.setattr(matrix, "_PORTION", 3 * pair.shape[1])
    portions = [before for before, _ in pair.portions()]
    assert max(len(part) for part in portions) <= 3
    assert (np.concatenate(portions) == initial).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (10**6, 10**6), (-4, -1)])
def test_a_window_lies_inside_and_has_the_fate_of_each_weight(masks, row, column):
    pair, initial, rebuilt = masks
    part = window(pair, row, column, 32)
    height, width = part.fates.shape
    assert (height, width) == tuple(min(32, end) for end in pair.shape)
    assert 0 <= part.row <= pair.shape[0] - height
    assert 0 <= part.column <= pair.shape[1] - width
    assert part.row in (max(row, 0), pair.shape[0] - height)
    names = matrix.fate_names(part)
    for r, c in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        at = part.row + r, part.column + c
        assert names[r][c] == fate_of(initial[at], rebuilt[at])


def test_a_window_lists_its_changed_weights(masks):
    pair, initial, rebuilt = masks
    listed = matrix.changed_weights(window(pair, 0, 0, 256))
    part = (slice(0, 256), slice(0, 256))
    assert len(listed) == (initial[part] != rebuilt[part]).sum()
    for row in listed.itertuples():
        assert row.fate == fate_of(initial[row.row, row.column], rebuilt[row.row, row.column])


def test_a_window_is_never_larger_than_its_limit():
    pair, *_ = generated((300, 1021))
    assert window(pair, 0, 0, 5000).fates.shape == (matrix.WINDOW, matrix.WINDOW)
    assert window(pair, 0, 0, 0).fates.shape == (1, 1)


def test_the_overview_counts_every_weight_once(masks):
    pair, initial, rebuilt = masks
    whole = overview(pair)
    fates = {str(fate): 0 for fate in Fate}
    for before in (False, True):
        for after in (False, True):
            fates[fate_of(before, after)] += int(((initial == before) & (rebuilt == after)).sum())
    assert whole.counts == fates
    assert np.allclose(whole.rows["initial"], 1 - initial.mean(axis=1))
    assert np.allclose(whole.rows["rebuilt"], 1 - rebuilt.mean(axis=1))
    assert np.allclose(whole.columns["initial"], 1 - initial.mean(axis=0))
    assert np.allclose(whole.columns["rebuilt"], 1 - rebuilt.mean(axis=0))


def test_blocks_are_means_of_their_weights(masks):
    pair, initial, rebuilt = masks
    whole = overview(pair)
    tall, wide = whole.block
    assert max(whole.kept.shape) <= CELLS
    assert whole.kept.shape == whole.changed.shape == (-(-pair.shape[0] // tall), -(-pair.shape[1] // wide))
    for r, c in np.ndindex(whole.kept.shape):
        block = (slice(r * tall, (r + 1) * tall), slice(c * wide, (c + 1) * wide))
        assert whole.kept[r, c] == pytest.approx(1 - rebuilt[block].mean())
        assert whole.changed[r, c] == pytest.approx((initial[block] != rebuilt[block]).mean())


def test_the_coarse_table_has_the_means_of_its_blocks():
    pair, _, rebuilt = generated((256, 512))
    table = matrix.coarse(overview(pair), "kept")
    assert table.shape == (16, 17)
    assert table["from row"].tolist() == list(range(0, 256, 16))
    assert table.columns[2] == "from column 32"
    assert table["from column 32"][1] == pytest.approx(100 * (1 - rebuilt[16:32, 32:64].mean()), abs=1e-3)


@pytest.mark.parametrize("length", [1, 100, 128, 129, 1000])
def test_means_of_a_long_axis_cover_it_once(length):
    frame = pd.DataFrame({"initial": np.linspace(0, 1, length), "rebuilt": np.linspace(1, 0, length)})
    means = matrix.averaged(frame)
    assert len(means) <= CELLS
    assert means["first"].iloc[0] == 0
    assert means["last"].iloc[-1] == length - 1
    assert (means["first"].iloc[1:].to_numpy() == means["last"].iloc[:-1].to_numpy() + 1).all()
    first = means.iloc[0]
    assert first["initial"] == pytest.approx(frame["initial"][: int(first["last"]) + 1].mean())


@pytest.mark.parametrize("m", [2, 3, 4, 8, 9, 16])
def test_transitions_are_those_of_every_group(m):
    pair, initial, rebuilt = generated((40, 50), seed=m)
    table = transitions(pair, m)
    width = 50 // m * m
    found: dict[tuple[str, str], int] = {}
    for before, after in zip(initial[:, :width].reshape(-1, m), rebuilt[:, :width].reshape(-1, m), strict=True):
        key = tuple("".join("0" if bit else "1" for bit in group) for group in (before, after))
        found[key] = found.get(key, 0) + 1
    assert {(row.before, row.after): row.groups for row in table.itertuples()} == found
    assert table["groups"].is_monotonic_decreasing


def test_transitions_of_a_matrix_narrower_than_a_group_are_none():
    pair, *_ = generated((5, 7))
    assert transitions(pair, 8).empty


def test_rare_patterns_are_folded_and_no_group_is_lost():
    pair, *_ = generated((64, 48))
    table = transitions(pair, 4)
    whole, few = matrix.folded(table, most=16), matrix.folded(table, most=5)
    assert len(whole) == 16
    assert matrix.OTHER not in whole.index
    assert [*few.index] == [*few.columns] == [*sorted(few.index[:-1]), matrix.OTHER]
    assert len(few) == 5
    assert whole.to_numpy().sum() == few.to_numpy().sum() == table["groups"].sum()
    named = few.index[0]
    assert few.loc[named, named] == whole.loc[named, named]


MODULES = pd.DataFrame(
    [
        (0, "attention", "self_attn.q_proj", [64, 48]),
        (0, "attention", "self_attn.k_proj", [32, 48]),
        (0, "attention", "self_attn.odd", [17, 48]),
        (0, "attention", "self_attn.o_proj", [48, 64]),
        (0, "mlp", "mlp.up_proj", [64, 48]),
    ],
    columns=["layer", "kind", "name", "shape"],
)
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 48}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("self_attn.q_proj", Heads("rows", 16, 4)),
        ("self_attn.k_proj", Heads("rows", 16, 2)),
        ("self_attn.o_proj", Heads("columns", 16, 4)),
        ("self_attn.odd", None),
        ("mlp.up_proj", None),
    ],
)
def test_heads_are_found_by_the_recorded_config(name, found):
    assert matrix.heads(CONFIG, MODULES, 0, name) == found
    assert matrix.heads({"text_config": CONFIG}, MODULES, 0, name) == found
    assert matrix.heads({}, MODULES, 0, name) is None


def test_heads_without_a_width_share_the_hidden_size():
    fused = pd.DataFrame(
        [(0, "attention", "attn.c_attn", [144, 48]), (0, "attention", "attn.c_proj", [48, 48])],
        columns=MODULES.columns,
    )
    config = {"n_head": 4, "n_embd": 48}
    assert matrix.heads(config, fused, 0, "attn.c_attn") == Heads("rows", 12, 12)
    assert matrix.heads(config, fused, 0, "attn.c_proj") == Heads("columns", 12, 4)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_head_keeps_the_mean_of_its_rows_or_columns(axis):
    pair, initial, rebuilt = generated((64, 48))
    table = matrix.by_head(overview(pair), Heads(axis, 16, 3))
    part = (slice(16, 32), slice(None)) if axis == "rows" else (slice(None), slice(16, 32))
    assert table["initial"][1] == pytest.approx(1 - initial[part].mean())
    assert table["rebuilt"][1] == pytest.approx(1 - rebuilt[part].mean())
    assert len(table) == (4 if axis == "rows" else 3)


@pytest.fixture(scope="module", params=Order)
def recorded(request, tmp_path_factory) -> tuple[RunDirectory, list]:
    """A real run in each order, with its events."""
    path = create(tmp_path_factory.mktemp("run") / request.param)
    events = run(1, order=request.param, sparsity=Sparsity.parse("2:4"), granularity=Granularity.LAYER)
    written = list(record(path, (event for event in events)))
    return RunDirectory(path), written


def test_a_matrix_of_a_run_directory_has_the_counts_of_its_events(recorded):
    directory, events = recorded
    for row in frames.flips(events).itertuples():
        pair = matrix.read(directory, row.layer, row.name)
        whole = overview(pair)
        assert (whole.counts["grown"], whole.counts["cut"]) == (row.grown, row.cut)
        assert whole.counts["pruned"] + whole.counts["cut"] == row.zeros
        assert sum(whole.counts.values()) == row.weights
        table = transitions(pair, 4)
        assert table["groups"].sum() == row.weights / 4
        assert set("".join(table["before"])) == {"0", "1"}
        assert all(pattern.count("0") == 2 for pattern in [*table["before"], *table["after"]])


def test_a_packed_mask_is_read_alone(recorded):
    directory, events = recorded
    name = frames.flips(events)["name"][0]
    bits, shape = directory.packed_mask(0, Stage.REBUILT, name)
    mask = directory.masks(0, Stage.REBUILT)[name]
    assert (bits == pack(mask)).all()
    assert shape == list(mask.shape)
    assert directory.packed_mask(0, Stage.REBUILT, "no such module") is None
    assert directory.packed_mask(9, Stage.REBUILT, name) is None
    assert matrix.read(directory, 0, "no such module") is None


def test_a_run_without_a_rebuilt_mask_has_kept_and_pruned_weights_only(tmp_path):
    path = create(tmp_path / "run")
    events = [event for event in run(1) if type(event).__name__ != "SubBlockRebuilt"]
    list(record(path, (event for event in events)))
    modules = frames.masked(events)
    assert len(modules) == 7
    counts = overview(matrix.read(RunDirectory(path), 0, modules["name"].iloc[0])).counts
    assert counts["grown"] == counts["cut"] == 0 < counts["pruned"]


@pytest.fixture(scope="module")
def large() -> tuple[MaskPair, Overview]:
    pair, *_ = generated((1024, 2816))
    return pair, overview(pair)


def test_every_figure_of_a_large_matrix_is_small(large):
    pair, whole = large
    part = window(pair, 100, 200, 256)
    frame = pd.DataFrame({"initial": np.linspace(0, 1, 64), "rebuilt": np.linspace(1, 0, 64)})
    pictures = {
        "density": matrix_figures.density(whole, "changed", part),
        "rows": matrix_figures.shares(whole.rows, "row"),
        "columns": matrix_figures.shares(whole.columns, "column"),
        "heads": matrix_figures.head_shares(frame, Heads("rows", 16, 64)),
        "patterns": matrix_figures.pattern_transitions(matrix.folded(transitions(pair, 8))),
    }
    sizes = {name: len(picture.to_json()) for name, picture in pictures.items()}
    assert all(1_000 < size < LIMIT for size in sizes.values()), sizes
    for picture in pictures.values():
        assert picture.layout.paper_bgcolor == picture.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_the_density_outlines_the_window(large):
    pair, whole = large
    figure = matrix_figures.density(whole, "kept", window(pair, 100, 200, 64))
    (outline,) = figure.layout.shapes
    assert (outline.y0, outline.y1, outline.x0, outline.x1) == (99.5, 163.5, 199.5, 263.5)
    assert np.asarray(figure.data[0].z).shape == whole.kept.shape
