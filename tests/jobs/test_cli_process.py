"""The command line as a process: its standard streams, environment and interrupts, and many wrong command lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from barber.cli import main
from barber.config import Sparsity
from barber.errors import UserError
from barber.pruning.distributed import join

ROOT = Path(__file__).parents[2]
SMALL = ["--nsamples", "4", "--seqlen", "32", "--eval_windows", "2", "--prune_method", "magnitude"]
SMALL += ["--sparsity_ratio", "0.5"]
LONG = ["--nsamples", "512", "--seqlen", "256", "--prune_method", "wanda", "--sparsity_ratio", "0.5", "--prune_barber"]
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
NARROW = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def start(arguments: list[str], program: tuple[str, ...] = ("main.py",), **how: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | how.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.Popen([sys.executable, *program, *arguments], cwd=ROOT, env=environment, **streams)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def sentence(err: str) -> str:
    """The one message on stderr besides the progress."""
    assert "Traceback" not in err, err
    assert "Exception ignored" not in err, err
    (message,) = err.removesuffix("\n").split("\n")
    return message.rsplit("\r", 1)[-1]


def test_a_full_stdout_is_a_user_error_and_loses_no_results(tmp_path):
    with open("/dev/full", "w") as full:
        code, _, err = finish(start([*SMALL, "--save_ppl", str(tmp_path / "p")], stdout=full))
    assert code == 2
    assert sentence(err).startswith("error: ")
    assert "space" in sentence(err)
    assert (tmp_path / "p" / "perplexity.json").stat().st_size


def test_a_full_stderr_does_not_end_a_run():
    with open("/dev/full", "w") as full:
        code, out, _ = finish(start(SMALL, stderr=full))
    assert code == 0
    assert "(50.0000%)" in out


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_end_a_run(tmp_path, streams):
    command = f'exec "$0" main.py "$@" {streams}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable, *SMALL, "--save_ppl", str(tmp_path / "p")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert (tmp_path / "p" / "perplexity.json").exists()


@pytest.mark.parametrize(("arguments", "codes"), [(SMALL, {141}), (["--help"], {0, 141})])
def test_a_broken_pipe_is_silent(arguments, codes):
    """argparse itself ignores the error where the help is longer than a buffer."""
    process = start(arguments)
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)
    assert code in codes
    assert "rror" not in err
    assert "Traceback" not in err


def test_a_narrow_encoding_replaces_other_characters():
    code, out, err = finish(start([*SMALL, "--prompt", "Ein Igel läuft"], env={"PYTHONIOENCODING": "ascii"}))
    assert code == 0, err
    assert r"Ein Igel l\xe4uft" in out


@pytest.mark.parametrize("argument", [b"\xff\xfe", "Igel läuft".encode()])
def test_an_argument_that_is_not_valid_text_is_refused(argument):
    environment = NARROW if argument.isascii() or argument[0] != 0xFF else {}
    code, _, err = finish(start([*SMALL, "--prompt", argument], env=environment))
    assert code == 2
    assert "is not text in this locale" in sentence(err)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"RANK": ""}, "RANK"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
        ({"RANK": "2"}, "RANK"),
        ({"RANK": "first"}, "RANK"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch, change, name):
    for variable, value in (TORCHRUN | change).items():
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=rf"^(WORLD_SIZE is set, but )?{name} is .* torchrun"):
        join()


def test_a_process_whose_peers_never_start_is_a_user_error():
    patient = "import barber.pruning.distributed as d, datetime, sys; d.START_TIMEOUT = datetime.timedelta(seconds=2); "
    code, _, err = finish(start(SMALL, ("-c", patient + "from barber.cli import main; sys.exit(main())"), env=TORCHRUN))
    assert code == 2
    assert "cannot be reached" in err
    assert "Traceback" not in err


def alive(process: subprocess.Popen) -> None:
    """Wait until the interpreter handles SIGINT and has started the program."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        if caught & 1 << (signal.SIGINT - 1):
            time.sleep(0.3)
            return
        time.sleep(0.01)
    raise AssertionError("the interpreter did not start")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("after", [0.0, 1.0, 2.5])
def test_an_interrupt_during_the_start(after, times):
    process = start(LONG)
    alive(process)
    time.sleep(after)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    code, out, err = finish(process)
    assert code == 128 + signal.SIGINT
    assert sentence(err).startswith("Stopped")
    assert out == ""


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupted_run_leaves_no_temporary_files(tmp_path, number, times):
    process = start([*LONG, "--stream"], env={"TMPDIR": str(tmp_path)})
    os.set_blocking(process.stderr.fileno(), True)
    seen = b""
    while b"initial mask layer" not in seen:
        seen += (piece := os.read(process.stderr.fileno(), 1000))
        assert piece, seen
    assert any(path.name.startswith("barber-") for path in tmp_path.iterdir())
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.005)
    code, _, err = finish(process)
    assert code == 128 + number
    assert "Traceback" not in err
    assert not any(path.name.startswith("barber-") for path in tmp_path.iterdir())


def test_wrong_command_lines_are_user_errors():
    """benchmarks/command_lines.py without --every runs all of them."""
    command = [sys.executable, "benchmarks/command_lines.py", "--every", "23"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.splitlines()[-1].split()[0]) > 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save_model", "{here}/loop"], "cannot be written"),
        (["--save_ppl", "{here}/loop"], "cannot be written"),
        (["--run_dir", "{here}/loop/x"], "cannot be written"),
        (["--save_model", "~no-such-user/m"], "unknown user"),
        (["--model", "~no-such-user/m"], "unknown user"),
        (["--calibration", "~no-such-user/m.txt", "--prune_method", "wanda"], "unknown user"),
        (["--resume", "n" * 300], "cannot be used"),
        (["--save_ppl", "{here}/" + "n" * 300], "cannot be written"),
        (["--device=--"], "has no value"),
        (["--rounds", "9" * 400, "--prune_barber"], "2**63"),
        (["--eval_windows", "9" * 400], "2**63"),
        (["--sparsity_type", "sNaN:4"], "cannot be read"),
    ],
)
def test_a_wrong_path_or_number_is_one_sentence(tmp_path, capsys, flags, words):
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    assert main([*SMALL, *(flag.format(here=tmp_path) for flag in flags)]) == 2
    assert words in sentence(capsys.readouterr().err)


def test_a_signalling_nan_is_no_sparsity():
    with pytest.raises(UserError, match="cannot be read"):
        Sparsity.parse("sNaN")
