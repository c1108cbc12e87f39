"""The data of whole jobs: the default evaluation sets, skipped ones, and what the report shows of them."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis import frames
from barber.cli import main
from barber.config import PruneConfig, Sparsity
from barber.data.hub import remember_tokens, tokenizer_fingerprint
from barber.errors import UserError
from barber.events import Notice, PerplexityMeasured, Progress, ZeroShotMeasured
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.jobs.options import job_from
from barber.jobs.report import Report
from barber.registry import DATA_SOURCES
from barber.runs.directory import RunDirectory
from barber.runs.resume import read_job
from tests.support.golden_data import GOLDEN
from tests.support.jobs import ROOT
from tests.support.tiny import llama, story, tokenizer

MODEL = {"model": "m"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model with a tokenizer and one without, ids for calibration, and a text."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("model", "bare"):
        llama().save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / "model")
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, 300, (8, 16)))
    (folder / "text.txt").write_text(story(1, 400))
    return folder


def flags(workspace, *more: str, model: str = "model") -> list[str]:
    return [
        "--model", str(workspace / model), "--prune_method", "wanda", "--sparsity_ratio", "0.5", "--device", "cpu",
        "--calibration", str(workspace / "ids.npy"), "--nsamples", "4", "--seqlen", "16", *more,
    ]  # fmt: skip


def test_the_default_evaluation_sets():
    assert job_from(MODEL).evaluation == ("wikitext2",)
    assert job_from(MODEL | {"save_ppl": "p"}).evaluation == ("wikitext2", "ptb", "c4")
    assert job_from({"save_ppl": "p"}).evaluation == ("storyteller",)
    assert job_from(MODEL | {"save_ppl": "p", "eval_data": "ptb"}).evaluation == ("ptb",)
    assert job_from(MODEL | {"eval_data": "none", "save_ppl": "p"}).evaluation == ()
    assert [job_from(MODEL | given).evaluation_required for given in ({}, {"eval_data": "c4"})] == [False, True]


def test_a_comma_in_the_path_of_a_file_does_not_separate(tmp_path):
    one, other = tmp_path / "a, b,c.txt", tmp_path / "d.txt"
    for path in (one, other):
        path.write_text("the cat")
    for names in ([str(one)], [str(one), "ptb"], ["ptb", str(one), str(other)], [str(other), str(one)]):
        assert job_from(MODEL | {"eval_data": ",".join(names)}).evaluation == tuple(names)
    assert job_from(MODEL | {"eval_data": "ptb, c4,"}).evaluation == ("ptb", "c4")
    assert job_from(MODEL | {"eval_data": "a,~nosuchuser,b"}).evaluation == ("a", "~nosuchuser", "b")


def test_without_tokenizer_or_hub_a_model_is_pruned_and_saved(workspace, tmp_path, capsys):
    assert main(flags(workspace, "--save_model", str(tmp_path / "m"), model="bare")) == 0
    captured = capsys.readouterr()
    assert (tmp_path / "m" / "model.safetensors").exists()
    assert "Perplexity is not measured on wikitext2, since the model has no tokenizer" in captured.out


@pytest.mark.parametrize("way", ["whole", "layer by layer", "in one pass"])
def test_a_model_without_tokenizer_or_evaluation_is_pruned_recorded_and_saved(way, workspace, tmp_path, capsys):
    more = {"whole": ["--reconstruct"], "layer by layer": ["--stream"], "in one pass": ["--order", "one-pass"]}[way]
    saved, run = tmp_path / "saved", tmp_path / "run"
    outputs = ["--save_model", str(saved), "--run_dir", str(run), "--save_ppl", str(tmp_path / "ppl")]
    rebuild = ["--prune_barber", "--threshold", "auto", "--eval_data", "none"]
    assert main(flags(workspace, *rebuild, *more, *outputs, model="bare")) == 0
    assert "not measured" not in capsys.readouterr().out
    weights = [m.weight for m in AutoModelForCausalLM.from_pretrained(saved).model.layers.modules() if is_linear(m)]
    assert 2 * sum(int((weight == 0).sum()) for weight in weights) == sum(weight.numel() for weight in weights)
    assert json.loads((tmp_path / "ppl" / "perplexity.json").read_text()) == []
    assert main(["--resume", str(run)]) == 0
    assert frames.perplexities(RunDirectory(run).events()).empty


def is_linear(module) -> bool:
    return isinstance(module, torch.nn.Linear)


def test_a_model_without_tokenizer_needs_token_ids(workspace, tmp_path, capsys):
    text = ["--calibration", str(workspace / "text.txt"), "--eval_data", "none"]
    assert main(flags(workspace, *text, model="bare")) == 2
    assert "give token ids as a .npy file" in capsys.readouterr().err


def test_one_notice_names_the_published_data_sets_that_are_not_available(workspace, tmp_path, capsys):
    """Of the three, wikitext2 is in the cache, as an earlier run has left it."""
    cache, known = tmp_path / "cache", tokenizer()
    key = {
        "data": [DATA_SOURCES["wikitext2"].hub.path, DATA_SOURCES["wikitext2"].hub.options],
        "split": "test",
        "tokenizer": tokenizer_fingerprint(AutoTokenizer.from_pretrained(workspace / "model")),
        "seqlen": 16,
    }
    remember_tokens(key, str(cache), torch.tensor(known(story(3, 400)).input_ids))
    folder = ["--datasets_cache_dir", str(cache)]
    assert main(flags(workspace, "--save_ppl", str(tmp_path / "p"), *folder)) == 0
    table = (tmp_path / "p" / "log_wanda_0.01.txt").read_text()
    (line,) = [line for line in table.splitlines() if "not measured" in line]
    assert line.startswith("Note: Perplexity is not measured on ptb, c4, since the hub cannot be reached")
    rows = json.loads((tmp_path / "p" / "perplexity.json").read_text())
    assert {row["dataset"] for row in rows} == {"wikitext2 (test split)"}
    assert (
        main(flags(workspace, "--save_ppl", str(tmp_path / "q"), "--datasets_cache_dir", str(tmp_path / "empty"))) == 0
    )
    assert json.loads((tmp_path / "q" / "perplexity.json").read_text()) == []
    captured = capsys.readouterr()
    assert captured.out.count("Perplexity is not measured on wikitext2, ptb, c4, since") == 1


def test_requested_or_sole_evaluation_data_must_be_available(workspace, tmp_path, capsys):
    cache = ["--datasets_cache_dir", str(tmp_path / "cache")]
    assert main(flags(workspace, "--eval_data", "ptb", *cache)) == 2
    assert "Data set ptb" in capsys.readouterr().err
    dense = ["--model", str(workspace / "model"), "--device", "cpu", "--seqlen", "16", *cache]
    assert main(dense) == 2
    assert "Data set wikitext2" in capsys.readouterr().err
    assert main([*dense, "--save_ppl", str(tmp_path / "p")]) == 2
    assert "None of wikitext2, ptb, c4 can be loaded" in capsys.readouterr().err
    assert main([*dense, "--window_start", "bos", "--eval_data", "none", "--model", str(workspace / "bare")]) == 2
    assert "needs a tokenizer" in capsys.readouterr().err


def test_the_report_shows_the_first_token_of_windows_and_intervals(workspace, capsys):
    text = ["--eval_data", str(workspace / "text.txt")]
    for more, begins in (([], "bos"), (["--window_start", "none"], "none")):
        assert main(flags(workspace, *text, *more)) == 0
        lines = capsys.readouterr().out.splitlines()
        row = next(line for line in lines if line.startswith("text.txt"))
        assert f" {begins} " in row
        assert row.count("(") == 2  # the intervals of the dense and the pruned model
        assert "window start" in next(line for line in lines if line.startswith("perplexity"))


def test_a_standard_error_of_zero_is_a_number():
    report = Report(JobSpec())
    report.add(ZeroShotMeasured("dense", "boolq", {"acc": 1.0, "f1": 0.5}, {"acc": 0.0, "f1": None}, 3))
    assert "0.0000" in report.zero_shot()
    assert report.zero_shot().splitlines()[2].split()[-2] == "-"


def test_the_report_names_the_overflow_of_a_dense_model(workspace, tmp_path, capsys):
    model = llama()
    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
        linear.weight.data.mul_(1e4)  # each is a number of float16, their product is none
    model.half().save_pretrained(tmp_path / "hot")
    tokenizer().save_pretrained(tmp_path / "hot")
    data = ["--eval_data", str(workspace / "text.txt"), "--seqlen", "16", "--device", "cpu", "--dtype", "float16"]
    assert main(["--model", str(tmp_path / "hot"), *data]) == 0
    assert "not finite in" in capsys.readouterr().out


def test_a_job_of_any_size_can_be_stopped_while_its_data_is_drawn(workspace):
    prune = PruneConfig(Sparsity.parse("50%"), "wanda")
    spec = JobSpec(
        model=str(workspace / "model"), prune=prune, calibration="storyteller", evaluation=(), nsamples=2**16,
        seqlen=16, device="cpu",
    )  # fmt: skip
    events = run_job(spec)
    for event in events:
        if isinstance(event, Progress) and event.phase == "data" and event.done >= 32:
            break
    events.close()


def test_a_broken_task_file_ends_the_job_before_the_model_is_loaded(workspace, tmp_path):
    (tmp_path / "broken.yaml").write_text("task: [a\n b: c")
    spec = JobSpec(model=str(workspace / "nowhere"), zeroshot_tasks=(str(tmp_path / "broken.yaml"),), evaluation=())
    with pytest.raises(UserError, match="it is not YAML in line 2"):
        list(run_job(spec))


def test_rows_without_text_are_reported_once(workspace, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"body": story(seed) if seed % 3 else None}) for seed in range(60)))
    spec = JobSpec(
        model=str(workspace / "model"), prune=PruneConfig(Sparsity.parse("50%"), "wanda"), calibration=str(path),
        evaluation=(str(path),), nsamples=2, seqlen=16, device="cpu", text_field="body",
    )  # fmt: skip
    events = list(run_job(spec))
    messages = [event.message for event in events if isinstance(event, Notice) and "skipped" in event.message]
    assert messages == ["20 of 60 rows of text.jsonl hold no text and were skipped."]
    measured = [event for event in events if isinstance(event, PerplexityMeasured)]
    assert [event.window_start for event in measured] == ["bos"] * 3
    assert all(math.isfinite(event.low) and event.low < event.perplexity < event.high for event in measured)


def test_a_run_of_an_earlier_version_resumes_with_its_own_windows(tmp_path, monkeypatch, capsys):
    run = tmp_path / "begun"
    shutil.copytree(GOLDEN / "runs-0.1.0" / "begun", run)
    assert read_job(run).window_start == "none"
    monkeypatch.chdir(ROOT)  # its paths are relative
    assert main(["--resume", str(run)]) == 0
    assert "calibration_tokens.npy (second half)      64     512  none " in capsys.readouterr().out
