"""The model card: it says how the model was made, names no folder of this machine, and is a file of the saved model."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from barber.cli import build_parser, main
from barber.config import PruneConfig, Sparsity
from barber.events import LayerInitialised, MaskCounts, PerplexityMeasured, RunStarted, Stage
from barber.job_spec import JobSpec
from barber.jobs.card import History, model_card
from barber.jobs.options import job_from
from barber.jobs.presets import FIRST_LOOK
from barber.models.saving import folder_digests
from tests.support.jobs import flags, save_inputs
from tests.support.tiny import llama

PRUNE = ["--prune_method", "wanda", "--sparsity_type", "2:4", "--prune_barber", "--threshold", "auto"]


def history(*more) -> History:
    found = History()
    calibration = {"source": "c4", "seed": 3, "samples": 128, "seqlen": 2048, "fingerprint": "x"}
    events = [
        RunStarted("facebook/opt-125m", {}, calibration, [], "cpu", "float32"),
        LayerInitialised(0, {"a": MaskCounts(1000, 500), "b": MaskCounts(1000, 501)}, 0.1),
        LayerInitialised(1, {"a": MaskCounts(1000, 500)}, 0.1),
        *more,
    ]
    assert list(found.follow(events)) == events
    return found


def read(card: str) -> tuple[dict, str]:
    """The front matter and the text of a card."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def spec(**changes) -> JobSpec:
    prune = PruneConfig(Sparsity.parse("2:4"), "sparsegpt", threshold="auto")
    return replace(JobSpec("facebook/opt-125m", prune=prune, evaluation=("wikitext2",)), **changes)


def test_the_front_matter_is_that_of_the_hub():
    front, text = read(model_card(spec(), history()))
    assert front["base_model"] == "facebook/opt-125m"
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"2:4", "sparsegpt", "sparse"} <= set(front["tags"])
    assert all(isinstance(tag, str) for tag in front["tags"])
    assert "# facebook/opt-125m, 2:4 pruned" in text


@pytest.mark.parametrize("model", ["storyteller", "/home/someone/models/tiny"])
def test_a_model_that_is_not_of_the_hub_has_no_base_model(model):
    front, text = read(model_card(spec(model=model), history()))
    assert "base_model" not in front
    assert "/home" not in text
    assert f"`{Path(model).name}`" in text


def test_the_card_says_how_the_model_was_made():
    measured = [
        PerplexityMeasured(stage, "wiki | text", 2048, 4096, value, 1.0, "bos", value - 1, value + 1)
        for stage, value in ((Stage.DENSE, 27.5), (Stage.INITIAL, 60.25), (Stage.REBUILT, 36.0))
    ]
    _, text = read(model_card(spec(), history(*measured)))
    for words in (
        "1,501 of the 3,000 weights",
        "(50.0333%)",
        "2 zeros in every 4 consecutive inputs",
        "SparseGPT",
        "swaps chosen by validation error",
        "128 sequences of 2,048 tokens of c4, seed 3",
        "| wiki \\| text | 4,096 tokens in windows of 2,048 | 27.500 (26.500 to 28.500) | 60.250 (59.250 to 61.250) |",
    ):
        assert words in text


def test_the_command_of_the_card_makes_the_model_again():
    given = spec(run_dir=Path("/a/run"), save_model=Path("/a/model"), prompts=("private words",), cache_dir="/a/cache")
    text = model_card(given, history())
    assert "/a/" not in text
    assert "private words" not in text
    line = text.split("```\n")[1].strip()
    job = job_from(vars(build_parser().parse_args(shlex.split(line)[2:])))
    assert job == replace(spec(), seqlen=2048)


def test_a_bundled_job_has_its_command_without_a_prompt():
    text = model_card(replace(FIRST_LOOK, save_model=Path("/a/model"), prompts=("other",)), history())
    line = text.split("```\n")[1].strip()
    job = job_from(vars(build_parser().parse_args(shlex.split(line)[2:])))
    assert str(job.prune) == str(FIRST_LOOK.prune)
    assert (job.calibration, job.nsamples, job.seqlen) == ("storyteller", 64, 256)
    assert "--prompt" not in line


def test_names_cannot_break_out_of_the_card():
    text = model_card(spec(model="/x/a```b|<b>\n# Title"), history())
    assert "\n# Title" not in text.split("````")[0]
    assert "<b>" not in text.split("````")[0]


def test_a_job_that_prunes_nothing_says_so():
    text = model_card(spec(prune=None), History())
    assert "measured and not pruned" in text
    assert "--sparsity_ratio 0" in text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("workspace"), llama(num_hidden_layers=2))


@pytest.mark.parametrize("way", [[], ["--stream"]])
def test_a_saved_model_has_its_card(workspace, way, tmp_path):
    saved, run = tmp_path / "saved", tmp_path / "run"
    outputs = ["--save_model", str(saved), "--run_dir", str(run)]
    assert main([*flags(workspace), *PRUNE, *way, *outputs]) == 0
    card = (saved / "README.md").read_text("utf-8")
    assert "(50.0000%)" in card
    for stage in Stage:
        assert stage in card.split("## Perplexity")[1]
    assert str(workspace) not in card
    assert str(tmp_path) not in card
    before = folder_digests(saved)
    assert main(["--resume", str(run)]) == 0
    assert folder_digests(saved) == before
    assert main(["--resume", str(run), "--delete"]) == 0
    assert not saved.exists(), "the card is a file of the model"


def test_a_changed_card_is_a_file_of_the_user(workspace, tmp_path, capsys):
    saved, run = tmp_path / "saved", tmp_path / "run"
    assert main([*flags(workspace), *PRUNE, "--save_model", str(saved), "--run_dir", str(run)]) == 0
    (saved / "README.md").write_text("mine")
    assert main(["--resume", str(run), "--delete"]) == 2
    assert "was not deleted" in capsys.readouterr().err
    assert (saved / "README.md").read_text() == "mine"


def test_a_saved_dense_model_has_a_card(workspace, tmp_path):
    assert main([*flags(workspace), "--sparsity_ratio", "0", "--save_model", str(tmp_path / "saved")]) == 0
    assert "dense" in (tmp_path / "saved" / "README.md").read_text("utf-8")
