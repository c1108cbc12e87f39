"""The command line: a process for the whole path, and `main` for each user error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from barber.cli import main
from barber.jobs.report import gap_recovered
from tests.support.tiny import SHARED, llama, tokenizer

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PRUNE = ["--prune_method", "magnitude", "--sparsity_ratio", "0.5"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A model folder, a text file, and damaged copies of both."""
    folder = tmp_path_factory.mktemp("workspace")
    model = llama(num_hidden_layers=2, max_position_embeddings=512)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    model.save_pretrained(folder / "bare")
    (folder / "text.txt").write_text("the cat sat on a mat and saw big red dog run to town " * 120)
    (folder / "short.txt").write_text("the cat")
    (folder / "empty.txt").write_text("")
    weights = load_file(folder / "bare" / "model.safetensors")
    for name, damage in (("nan", torch.nan), ("inf", torch.inf)):
        copy = folder / name
        model.save_pretrained(copy)
        tokenizer().save_pretrained(copy)
        broken = {key: value.clone() for key, value in weights.items()}
        broken["model.layers.1.mlp.up_proj.weight"][0, 0] = damage
        save_file(broken, copy / "model.safetensors", metadata={"format": "pt"})
    torn = {key: value for key, value in weights.items() if key != "model.layers.0.mlp.up_proj.weight"}
    misshapen = weights | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 5)}
    for name, tensors in (("torn", torn), ("misshapen", misshapen)):
        model.save_pretrained(folder / name)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    model.save_pretrained(folder / "mumbling")
    (folder / "mumbling" / "tokenizer.json").write_text("{")
    model.save_pretrained(folder / "quantised")
    config = json.loads((folder / "quantised" / "config.json").read_text())
    (folder / "quantised" / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    pickled = folder / "pickled"
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    remote = folder / "remote"
    model.save_pretrained(remote)
    config = json.loads((remote / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "evil.py").write_text("raise SystemExit('the code ran')")
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("mine")
    return folder


def arguments(workspace, *more: str, model: str = "model") -> list[str]:
    text = str(workspace / "text.txt")
    return [
        "--model", str(workspace / model), "--calibration", text, "--eval_data", text, "--nsamples", "2",
        "--seqlen", "16", "--device", "cpu", *more,
    ]  # fmt: skip


def run(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "main.py"), *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, check=False)


def test_the_whole_path(workspace, tmp_path):
    result = run(
        *arguments(workspace, *PRUNE, "--prune_barber", "--prune_granularity", "block", "--threshold", "0.5"),
        "--save_model", str(tmp_path / "m"), "--save_ppl", str(tmp_path / "p"), "--run_dir", str(tmp_path / "run"),
        "--save_data", str(tmp_path / "data.npy"),
        "--zeroshot_tasks", "story_ending", "--save_zeroshot", str(tmp_path / "z"), "--limit", "3",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "(50.0000%)" in result.stdout
    assert "text.txt (second half)" in result.stdout
    assert "Traceback" not in result.stderr
    assert "rebuild" in result.stderr, "progress is shown on stderr"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    linears = [m.weight for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(int((w == 0).sum()) for w in linears) * 2 == sum(w.numel() for w in linears)
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("the cat").input_ids
    assert "magnitude 50%" in (tmp_path / "p" / "log_magnitude_0.5.txt").read_text()
    assert len(json.loads((tmp_path / "p" / "perplexity.json").read_text())) == 3
    zero_shot = json.loads((tmp_path / "z" / "zeroshot.json").read_text())
    assert {(row["stage"], row["task"]) for row in zero_shot} == {
        ("dense", "story_ending"),
        ("initial", "story_ending"),
        ("rebuilt", "story_ending"),
    }
    assert (tmp_path / "run" / "masks" / "layer_001.safetensors").exists()


def test_delete_removes_only_what_the_run_wrote(workspace, tmp_path, capsys):
    (tmp_path / "neighbour").mkdir()
    assert main(arguments(workspace, *PRUNE, "--save_model", str(tmp_path / "m"), "--delete")) == 0
    assert "Deleted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["neighbour"]


def test_without_pruning_flags_the_dense_model_is_measured(workspace, capsys):
    assert main(arguments(workspace)) == 0
    out = capsys.readouterr().out
    assert "nothing pruned" in out
    assert "text.txt" in out


def test_n_m_sets_the_ratio(workspace, capsys):
    flags = ["--prune_method", "wanda", "--sparsity_type", "1:4", "--prune_barber", "--threshold", "0.5"]
    assert main(arguments(workspace, *flags)) == 0
    assert "(25.0000%)" in capsys.readouterr().out


def test_the_default_sequence_length_is_limited_by_the_model_with_a_notice(workspace, capsys):
    args = [arg for arg in arguments(workspace, *PRUNE) if arg not in ("--seqlen", "16")]
    assert main(args) == 0
    assert "Sequence length 512: the published default is 2048" in capsys.readouterr().err


MISTAKES = {
    "unknown model": (["--model", "no/such/model/anywhere"], "neither a folder"),
    "not on the hub": (["--model", "nobody/nothing"], "hub cannot be reached"),
    "pickle": (["--model", "{workspace}/pickled", *PRUNE], "pickle checkpoints"),
    "remote code": (["--model", "{workspace}/remote", *PRUNE], "its own Python code"),
    "no tokenizer": (["--model", "{workspace}/bare", *PRUNE], "tokenizer"),
    "nan weights": (["--model", "{workspace}/nan", *PRUNE], "layers.1.mlp.up_proj"),
    "inf weights": (["--model", "{workspace}/inf", *PRUNE], "layers.1.mlp.up_proj"),
    "ratio 1": (["--prune_method", "wanda", "--sparsity_ratio", "1"], "between 0 and 1"),
    "ratio -1": (["--prune_method", "wanda", "--sparsity_ratio", "-1"], "between 0 and 1"),
    "no ratio": (["--prune_method", "wanda"], "No sparsity was given"),
    "no method": (["--sparsity_ratio", "0.5"], "No initial mask"),
    "malformed pattern": (["--prune_method", "wanda", "--sparsity_type", "2:x"], "cannot be read"),
    "unknown pattern": (["--prune_method", "wanda", "--sparsity_type", "blocky"], "unstructured, or n:m"),
    "4:2": (["--prune_method", "wanda", "--sparsity_type", "4:2"], "0 < n < m"),
    "contradiction": (
        ["--prune_method", "wanda", "--sparsity_type", "2:4", "--sparsity_ratio", "0.6"],
        "leave the ratio",
    ),
    "indivisible": (["--prune_method", "wanda", "--sparsity_type", "2:5"], "choose an m that divides"),
    "threshold": ([*PRUNE, "--prune_barber", "--threshold", "1.5"], "from 0 to 1"),
    "threshold nan": ([*PRUNE, "--prune_barber", "--threshold", "nan"], "from 0 to 1"),
    "seqlen beyond": ([*PRUNE, "--seqlen", "513"], "512 positions"),
    "seqlen 0": ([*PRUNE, "--seqlen", "0"], "equence length"),
    "no samples": ([*PRUNE, "--prune_barber", "--nsamples", "0"], "Samples 0 is not allowed"),
    "empty text": ([*PRUNE, "--prune_barber", "--calibration", "{workspace}/empty.txt"], "empty"),
    "short text": ([*PRUNE, "--prune_barber", "--calibration", "{workspace}/short.txt"], "short.txt"),
    "no such text": ([*PRUNE, "--prune_barber", "--calibration", "{workspace}/none.txt"], "none.txt"),
    "unknown data": ([*PRUNE, "--prune_barber", "--calibration", "c5"], "c5"),
    "offline data": ([*PRUNE, "--prune_barber", "--calibration", "wikitext2"], "wikitext2"),
    "full folder": ([*PRUNE, "--save_model", "{workspace}/full"], "not empty"),
    "file as folder": ([*PRUNE, "--save_model", "{workspace}/text.txt"], "not empty"),
    "unwritable": ([*PRUNE, "--save_model", "/proc/nowhere/m"], "cannot be written"),
    "unwritable ppl": ([*PRUNE, "--save_ppl", "/proc/nowhere"], "cannot be written"),
    "unwritable run": ([*PRUNE, "--run_dir", "/proc/nowhere/r"], "cannot be written"),
    "full run": ([*PRUNE, "--run_dir", "{workspace}/full"], "not empty"),
    "unknown task": ([*PRUNE, "--zeroshot_tasks", "no_such_task"], "no_such_task"),
    "limit": ([*PRUNE, "--zeroshot_tasks", "story_ending", "--limit", "0"], "from 1 to 1000000"),
    "no masks": (["--initial_masks", "{workspace}/none", "--sparsity_ratio", "0.5"], "does not exist"),
    "ratio that prunes nothing": ([*PRUNE, "--sparsity_ratio", "0.00001"], "prunes no weight"),
    "no such run": (["--initial_masks", "{workspace}/none"], "does not exist"),
    "rebuild settings alone": ([*PRUNE, "--threshold", "0.5"], "add --prune_barber"),
    "missing weights": (["--model", "{workspace}/torn", *PRUNE], "lacks 1 weights"),
    "broken tokenizer": (["--model", "{workspace}/mumbling", *PRUNE], "tokenizer"),
    "misshapen": (["--model", "{workspace}/misshapen", *PRUNE], "does not fit its config.json"),
    "quantised": (["--model", "{workspace}/quantised", *PRUNE], "quantised"),
    "run without pruning": (["--run_dir", "{workspace}/r"], "the job does not prune"),
    "one place twice": ([*PRUNE, "--run_dir", "{workspace}/x", "--save_model", "{workspace}/x"], "separate paths"),
    "results in the model": (
        [*PRUNE, "--save_ppl", "{workspace}/x/p", "--save_model", "{workspace}/x"],
        "separate paths",
    ),
    "deleted results": (
        [*PRUNE, "--save_ppl", "{workspace}/x", "--save_model", "{workspace}/x", "--delete"],
        "separate paths",
    ),
    "data of another format": ([*PRUNE, "--save_data", "{workspace}/tokens.csv"], "ends in .npy"),
    "data in a full folder": ([*PRUNE, "--save_data", "{workspace}/full"], "new or empty folder"),
    "endless name": ([*PRUNE, "--save_model", "{workspace}/" + "n" * 300], "cannot be written"),
    "long prompt": ([*PRUNE, "--prompt", "the cat " * 600, "--run_dir", "{workspace}/r"], "shorten it"),
    "too many samples": ([*PRUNE, "--nsamples", "100000000"], "from 1 to 65536"),
    "too many tokens": ([*PRUNE, "--nsamples", "65536", "--seqlen", "1000000"], "more than 268435456 tokens"),
    "too few to hold out": ([*PRUNE, "--prune_barber", "--threshold", "auto"], "got 2: give 4 or more"),
    "windows": ([*PRUNE, "--eval_windows", "0"], "Evaluation windows 0"),
    "seed": ([*PRUNE, "--seed", "-1"], "Seed -1"),
    "no model named": (["--model", ""], "--model is empty"),
    "refiner's own": ([*PRUNE, "--prune_barber", "--refiner", "dsnot", "--rounds", "2"], "of the refiner barber, not"),
    "method's own": (
        [*PRUNE, "--prune_barber", "--retain_reconstruction"],
        "not of magnitude",
    ),
    "chosen by auto": (
        [*PRUNE, "--prune_barber", "--threshold", "auto", "--prune_granularity", "layer"],
        "is chosen by --threshold auto",
    ),
    "target of nothing": ([*PRUNE, "--target", "block"], "of the rebuild and of --reconstruct"),
    "order of nothing": ([*PRUNE, "--order", "paper"], "of the rebuild and of --reconstruct"),
    "limit of nothing": ([*PRUNE, "--limit", "3"], "add --zeroshot_tasks"),
    "two masks": (["--initial_masks", "{workspace}/none", *PRUNE], "give one of them"),
    "delete alone": ([*PRUNE, "--delete"], "--save_model"),
    "meta device": ([*PRUNE, "--device", "meta"], "cannot be used"),
    "device": ([*PRUNE, "--device", "quantum"], "cannot be used"),
    "dtype": ([*PRUNE, "--dtype", "int3"], "bfloat16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_user_error_is_one_sentence(workspace, mistake, capsys):
    flags, words = MISTAKES[mistake]
    before = sorted(workspace.rglob("*"))
    assert main(arguments(workspace, *(flag.format(workspace=workspace) for flag in flags))) == 2
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1].split("\r")[-1]
    assert message.startswith("error: ")
    assert words in message
    assert captured.out == ""
    assert sorted(workspace.rglob("*")) == before, "nothing is half-written"


def test_a_user_error_ends_the_process_without_traceback(workspace):
    result = run(*arguments(workspace, "--prune_method", "wanda", "--sparsity_type", "2:x"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def stories260k(tmp_path, *flags: str) -> dict[str, float]:
    """Perplexity by stage of a real model on complete stories, calibrated on 64 sequences of other stories."""
    lines = (SHARED / "text" / "tinystories.jsonl").read_text().splitlines()
    (tmp_path / "evaluation.jsonl").write_text("\n".join(lines[:58]))
    (tmp_path / "calibration.jsonl").write_text("\n".join(lines[58:]))
    result = run(
        "--model", str(SHARED / "models" / "stories260K"), *flags, "--nsamples", "64", "--seqlen", "256",
        "--save_ppl", str(tmp_path / "p"), "--eval_windows", "64",
        "--calibration", str(tmp_path / "calibration.jsonl"), "--eval_data", str(tmp_path / "evaluation.jsonl"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "p" / "perplexity.json").read_text())
    return {row["stage"]: row["perplexity"] for row in rows}


REAL = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="../shared with stories260K is not there")


@REAL
def test_the_published_figure_on_a_real_model(tmp_path):
    """On complete stories, the published rebuild lowers the perplexity from about 43 to about 19; dense is 4.3."""
    flags = [*PRUNE, "--prune_barber", "--prune_granularity", "block", "--threshold", "0.1"]
    value = stories260k(tmp_path, *flags)
    assert value["dense"] == pytest.approx(4.25, rel=0.1)
    assert value["initial"] == pytest.approx(43, rel=0.15)
    assert value["rebuilt"] == pytest.approx(19, rel=0.15)


@REAL
@pytest.mark.parametrize(
    ("method", "pattern", "flags", "least"),
    [
        ("magnitude", ["--sparsity_ratio", "0.5"], [], 0.55),
        ("wanda", ["--sparsity_ratio", "0.5"], [], 0.35),
        ("magnitude", ["--sparsity_type", "2:4"], [], 0.38),
        ("magnitude", ["--sparsity_ratio", "0.5"], ["--reconstruct"], 0.78),
    ],
)
def test_auto_recovers_more_on_a_real_model(tmp_path, method, pattern, flags, least):
    auto = ["--prune_barber", "--threshold", "auto", *flags]
    assert gap_recovered(**stories260k(tmp_path, "--prune_method", method, *pattern, *auto)) >= least


def test_a_mistyped_flag_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--prune_methd", "wanda"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --prune_methd wanda; see --help.\n"


def test_the_python_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = example.replace("samples=64, seqlen=256", "samples=4, seqlen=64")
    result = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "RunFinished"
