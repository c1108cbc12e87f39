"""The tables of recorded runs: complete, stopped, without rebuild; and the same values in CSV and JSON."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import frames
from analysis.tables import as_csv, as_json, histograms, tables
from barber.cli import main
from barber.events import Fate, PerplexityMeasured, Stage
from barber.jobs.job import run_job
from barber.runs.directory import RunDirectory
from tests.support.interrupted import interrupted, whole_run
from tests.support.jobs import job, save_inputs
from tests.support.tiny import llama

pytestmark = pytest.mark.slow

NAMES = [
    "settings", "environment", "notices", "perplexity", "zero_shot", "zero_shot_skipped", "texts", "weights",
    "initial_masks", "mask_flips", "sub_blocks", "choices", "candidates", "refits", "gains", "saliency",
    "saliency_zero",
]  # fmt: skip


@pytest.fixture(scope="module")
def auto(tmp_path_factory) -> RunDirectory:
    """A run with choices, refits and an environment."""
    folder = save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2))
    spec = replace(job(folder, method="wanda", threshold="auto", reconstruct=True), run_dir=folder / "run")
    list(run_job(spec))
    return RunDirectory(folder / "run")


def test_a_run_has_every_table(auto):
    found = tables(auto)
    assert list(found) == NAMES
    filled = {name for name, frame in found.items() if not frame.empty}
    assert filled >= set(NAMES) - {"notices", "zero_shot", "zero_shot_skipped", "texts", "saliency_zero"}
    assert found["mask_flips"].equals(frames.flips(auto.events()))
    assert len(found["weights"]) == len(found["initial_masks"]) == 14
    assert found["initial_masks"]["zeros"].sum() == found["mask_flips"]["zeros"].sum()


def test_histograms_are_those_of_every_matrix(auto):
    events = auto.events()
    rows = histograms(events)
    for (layer, name), part in rows.groupby(["layer", "name"], sort=False):
        bins = frames.saliency(events, layer, name)
        assert part[["left", "right", *map(str, Fate)]].reset_index(drop=True).equals(bins)
    assert rows.groupby(["layer", "name"]).ngroups == 14


def test_settings_name_no_folder_that_the_run_writes(auto):
    found = tables(auto)
    settings = dict(found["settings"].itertuples(index=False))
    assert (settings["method"], settings["threshold"], settings["nsamples"]) == ("wanda", "auto", 8)
    assert settings["calibration.samples"] == 8
    texts = json.dumps(settings, default=str) + found["environment"].to_csv()
    assert str(auto.path) not in texts
    environment = dict(found["environment"].itertuples(index=False))
    assert environment["model_hash"] == auto.environment["model_hash"]
    assert "model_config.hidden_size" in environment


@pytest.mark.parametrize(
    ("order", "count", "empty"),
    [
        ("no rebuild", None, {"mask_flips", "sub_blocks", "choices", "saliency", "gains", "environment"}),
        ("paper", 8, {"mask_flips", "sub_blocks", "refits"}),
        ("paper", 16, {"choices", "refits"}),
    ],
)
def test_a_stopped_run_and_one_without_rebuild_have_the_same_tables(order, count, empty, tmp_path):
    path = whole_run(order) if count is None else interrupted(order, tmp_path / "run", count)
    found = tables(RunDirectory(path))
    assert list(found) == NAMES
    assert all(found[name].empty and len(found[name].columns) for name in empty)
    assert not found["perplexity"].empty
    assert found["texts"]["text"].tolist()[0] == " cat"
    row = found["zero_shot"].iloc[0]
    assert (row["task"], row["metric"], row["value"], row["items"]) == ("story_ending", "acc", 0.5, 4)
    assert math.isnan(row["stderr"])
    assert found["zero_shot_skipped"].to_dict("records") == [{"task": "piqa", "reason": "no data"}]
    for write in (as_csv, as_json):
        assert write(found)


def test_csv_and_json_have_the_same_values(auto):
    found = tables(auto)
    archive, data = as_csv(found), json.loads(as_json(found))
    assert list(data) == NAMES
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        assert files.namelist() == [f"{name}.csv" for name in NAMES]
        for name in ("mask_flips", "sub_blocks", "candidates", "saliency"):
            read = pd.read_csv(files.open(f"{name}.csv"), keep_default_na=False, na_values={"fraction": [""]})
            assert len(read) == len(data[name]) == len(found[name])
            for column in ("layer", "relative", "left", "before"):
                if column in read:
                    assert read[column].tolist() == [row[column] for row in data[name]] == found[name][column].tolist()
    assert as_csv(tables(auto)) == archive, "equal tables are equal bytes"


def test_numbers_that_are_not_finite_are_null():
    events = [PerplexityMeasured(Stage.DENSE, "text", 8, 8, math.inf, 0.1)]
    data = json.loads(as_json({"perplexity": frames.perplexities(events)}))
    assert data["perplexity"][0]["perplexity"] is None
    assert data["perplexity"][0]["low"] is None


def test_the_command_writes_what_the_name_asks_for(auto, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tables", str(auto.path)]) == 0
    assert zipfile.is_zipfile(tmp_path / "run-tables.zip")
    assert main(["tables", str(auto.path), "--output", "tables.json"]) == 0
    assert list(json.loads(Path("tables.json").read_text("utf-8"))) == NAMES
    for words, sentence in (
        ([str(auto.path), "--output", "tables.xlsx"], "neither in .zip nor in .json"),
        ([str(auto.path)], "there already"),
        ([str(tmp_path)], "holds no run"),
    ):
        assert main(["tables", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-tables.zip", "tables.json"]
