"""Frames and figures of the results of a real sweep."""

from __future__ import annotations

import csv
import math
import shutil
import statistics

import pytest

from analysis import sweeps
from barber.errors import UserError
from barber.jobs.grid import jobs_of
from barber.jobs.sweep import run_sweep
from tests.support.jobs import save_inputs
from tests.support.tiny import llama

SEEDS = [0, 1, 2]
PATTERNS = ["30%", "50%", "2:4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep with one job that failed."""
    place = save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=1), rows=16)
    shutil.copy(place / "evaluation.npy", place / "more.npy")
    jobs = jobs_of(
        {
            "model": str(place / "model"), "calibration": str(place / "calibration.npy"),
            "evaluation": f"{place / 'evaluation.npy'},{place / 'more.npy'}", "eval_windows": 4,
            "nsamples": 4, "seqlen": 24, "device": "cpu", "granularity": "block", "threshold": 0.3,
            "method": ["magnitude", "wanda"], "sparsity": PATTERNS, "seed": SEEDS, "rebuild": False,
            "runs": [{"rebuild": True}],
        }
    )  # fmt: skip
    (place / "sweep" / "runs" / jobs[-1].name).mkdir(parents=True)
    (place / "sweep" / "runs" / jobs[-1].name / "config.json").write_text("{}")
    (place / "sweep" / "sweep.json").write_text("{}")
    list(run_sweep(jobs, place / "sweep"))
    return place / "sweep"


def test_results_have_a_row_for_each_finished_job_and_data_set(folder):
    results = sweeps.results(folder)
    assert len(results) == 2 * (2 * len(PATTERNS) * 2 * len(SEEDS) - 1)
    assert sweeps.settings_of(results) == ["sparsity", "method", "rebuild"]
    with (folder / "results.csv").open(newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    for row in results.itertuples():
        source = rows[row.job]
        assert row.dense == float(source[f"{row.dataset} dense"])
        assert row.initial == float(source[f"{row.dataset} initial"])
        final = source[f"{row.dataset} rebuilt"]
        assert row.perplexity == (float(final) if row.rebuild == "True" else row.initial)
    plain = results[results["rebuild"] == "False"]
    assert (plain["recovered"].dropna() == 0).all()


def test_averages_are_over_the_seeds(folder):
    results = sweeps.results(folder)
    averages = sweeps.over_seeds(results)
    assert len(averages) == 2 * 2 * len(PATTERNS) * 2
    settings = ["dataset", *sweeps.settings_of(results)]
    values = {key: list(part["perplexity"]) for key, part in results.groupby(settings)}
    for row in averages.to_dict("records"):
        own = values[tuple(row[name] for name in settings)]
        assert row["seeds"] == len(own)
        assert math.isclose(row["perplexity"], statistics.fmean(own))
        assert math.isclose(row["perplexity_std"], statistics.stdev(own), abs_tol=1e-9)
    assert set(averages["seeds"]) == {2, 3}


def test_curves_have_a_line_for_each_combination_and_bars(folder):
    averages = sweeps.over_seeds(sweeps.results(folder))
    dataset = averages["dataset"].iloc[0]
    part = averages[averages["dataset"] == dataset]
    figure = sweeps.curves(part)
    lines = {trace.name: trace for trace in figure.data}
    names = {"magnitude", "wanda", "magnitude, rebuild", "wanda, rebuild"}
    assert lines.keys() == names | {f"{name} 2:4" for name in names} | {"2:4"}
    assert {name for name, trace in lines.items() if trace.showlegend is not False} == names | {"2:4"}
    for name in names:
        assert list(lines[name].x) == [0.3, 0.5]
        assert "lines" in lines[name].mode
        assert list(lines[f"{name} 2:4"].x) == [0.5]
        assert lines[f"{name} 2:4"].mode == "markers"
    row = part[(part["method"] == "wanda") & (part["rebuild"] == "False") & (part["sparsity"] == "50%")].iloc[0]
    assert math.isclose(lines["wanda"].y[1], row["perplexity"], rel_tol=1e-4)
    assert math.isclose(lines["wanda"].error_y.array[1], row["perplexity_std"], rel_tol=1e-4)
    assert not lines["magnitude"].error_y.visible, "magnitude does not depend on the seed"
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert len(figure.to_json()) < 300_000
    assert math.isclose(figure.layout.shapes[0].y0, row["dense"], rel_tol=1e-6)


def test_only_numbers_make_an_axis(folder):
    results = sweeps.results(folder)
    assert sweeps.numeric_axes(results) == ["sparsity"]
    assert list(sweeps.place("sparsity", results["sparsity"].drop_duplicates())) == [0.3, 0.5, 0.5]
    figure = sweeps.curves(sweeps.over_seeds(results).assign(nsamples="8"), "nsamples")
    assert {tuple(trace.x) for trace in figure.data} == {(8.0, 8.0)}, "of both data sets"


def test_the_table_is_text(folder):
    table = sweeps.table(sweeps.over_seeds(sweeps.results(folder)))
    assert len(table) == 24
    assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())
    assert any("±" in cell for cell in table["perplexity"])
    assert set(table["seeds"]) == {"2", "3"}


def test_a_sweep_without_results_and_a_folder_without_sweep(folder, tmp_path):
    head, *rows = (folder / "results.csv").read_text().splitlines()
    (tmp_path / "results.csv").write_text(
        "\n".join([head, *(row.replace("finished", "waiting") for row in rows)]) + "\n"
    )
    results = sweeps.results(tmp_path)
    assert results.empty
    assert {"perplexity", "dataset", "method", "seconds"} <= set(results.columns)
    with pytest.raises(UserError, match="holds no sweep"):
        sweeps.results(tmp_path / "nothing")
