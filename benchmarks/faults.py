"""Cause faults in runs and their outputs, and count how they end: right, or refused in one sentence.

python benchmarks/faults.py [--places 2] [--every 5]

A small random model is pruned, rebuilt and saved. Then, each time in a process of its own:
- a run is killed before each of its writes (fsync, rename, unlink, mkdir), and resumed;
- bits of every file of a run are flipped, of a finished one and of one that was killed half way, and it is resumed;
- lines of events.jsonl are damaged otherwise, files and folders of the run are lost;
- what the run reads is changed before it is resumed;
- outputs are named where they cannot be.
"right" is a run with the same masks, perplexities and saved model as an undisturbed one; "refused" ends with
exit code 2 and one sentence, before anything is lost. The rest is counted as tracebacks, as silent mixtures (exit code
0, and different results) or as lost results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from barber.cli import main as barber
from barber.errors import UserError
from barber.jobs.report import table
from barber.models.saving import folder_digests
from barber.runs.directory import RunDirectory

KILLED = 137
MANY = 10**6  # more writes than any run has
WRITES = ("fsync", "replace", "unlink", "mkdir", "rmdir")
RIGHT, REFUSED, TRACEBACK, MIXTURE, LOST = "right", "refused", "tracebacks", "silent mixtures", "lost"


@dataclass(frozen=True)
class Workspace:
    """A model, data and masks on disk, and the flags of a job on them."""

    folder: Path

    def flags(self, name: str) -> list[str]:
        """A whole job, recorded in the folder `name` and saved beside it."""
        return [
            "--model", str(self.folder / "model"), "--calibration", str(self.folder / "calibration.npy"),
            "--eval_data", str(self.folder / "evaluation.npy"), "--nsamples", "4", "--seqlen", "16", "--device", "cpu",
            "--initial_masks", str(self.folder / "masks"), "--prune_barber", "--prune_granularity", "block",
            "--threshold", "0.3", "--run_dir", str(self.run(name)), "--save_model", str(self.model(name)),
        ]  # fmt: skip

    def run(self, name: str) -> Path:
        return self.folder / name / "run"

    def model(self, name: str) -> Path:
        return self.folder / name / "saved"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code and its messages."""

    code: int
    out: str
    err: str


def build(folder: Path) -> Workspace:
    """A workspace in a folder; its masks are those of a first run."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, initializer_range=0.2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for seed, name in enumerate(("calibration", "evaluation")):
        np.save(folder / f"{name}.npy", np.random.default_rng(seed).integers(3, 64, (8, 16)))
    workspace = Workspace(folder)
    first = [*workspace.flags("first")[:12], "--prune_method", "sparsegpt", "--sparsity_ratio", "0.5"]
    ended = attempt([*first, "--run_dir", str(folder / "masks")])
    assert ended.code == 0, ended.err
    return workspace


def attempt(arguments: list[str], kill_at: int | None = None) -> Ended:
    """The command line in a process of its own, which is killed before its write of this number."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        child = os.fork()
        if not child:
            code = 1
            try:
                for stream, file in ((1, out), (2, err)):
                    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                if kill_at is not None:
                    die_at(kill_at)
                code = barber(arguments)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(status, out.read_text(), err.read_text())


def die_at(number: int) -> None:
    """Kill this process before its write of this number."""
    count = 0

    def deadly(real: Callable) -> Callable:
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                os._exit(KILLED)
            return real(*arguments, **options)

        return operation

    for name in WRITES:
        setattr(os, name, deadly(getattr(os, name)))


def results(workspace: Workspace, name: str) -> dict:
    """All results of a run and the model it saved, without times."""
    run = RunDirectory(workspace.run(name))
    state = {
        (layer, stage, part): {key: tensor.tolist() for key, tensor in getattr(run, part)(layer, stage).items()}
        for layer in run.layers()
        for stage in ("initial", "rebuilt")
        for part in ("masks", "weights")
    }
    rows = json.loads((run.path / "perplexity.json").read_text())
    found = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return state | {"perplexity": found, "model": folder_digests(workspace.model(name))}


def classify(workspace: Workspace, name: str, ended: Ended, expected: dict, notes: list[str]) -> str:
    """The verdict on an end. notes: collects the ends that are neither right nor refused."""
    verdict = RIGHT
    if "Traceback" in ended.err or ended.code not in (0, 2):
        verdict = TRACEBACK
    elif ended.code == 2:
        verdict = REFUSED if ended.err.strip().splitlines()[-1].split("\r")[-1].startswith("error: ") else TRACEBACK
    else:
        try:
            verdict = RIGHT if results(workspace, name) == expected else MIXTURE
        except (OSError, ValueError, UserError):
            verdict = MIXTURE
    if verdict not in (RIGHT, REFUSED):
        notes.append(f"{name}: {verdict}, exit code {ended.code}: {(ended.err.strip() or '-').splitlines()[-1]}")
    return verdict


def copied(workspace: Workspace, source: str, name: str) -> Path:
    """A copy of a run under another name, with a job that writes there; its run directory."""
    shutil.copytree(workspace.folder / source, workspace.folder / name)
    return workspace.run(name)


def kills(workspace: Workspace, writes: range, expected: dict, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Kill a run before each of its writes and resume it; start it again where its job was not recorded yet."""
    for number in writes:
        killed = attempt(workspace.flags("kill"), kill_at=number).code == KILLED
        if killed:
            ended = attempt(["--resume", str(workspace.run("kill"))])
            if not (workspace.run("kill") / "job.json").exists():
                ended = attempt(workspace.flags("kill"))
            verdict = classify(workspace, "kill", ended, expected, notes)
            yield "killed before a write", LOST if verdict == REFUSED else verdict
            if verdict != RIGHT:
                notes.append(f"kill at write {number}: {ended.err.strip()[-300:]}")
        shutil.rmtree(workspace.folder / "kill", ignore_errors=True)
        if not killed:
            break


def harmed(
    workspace: Workspace, source: str, harm: Callable[[Path], None], expected: dict, notes: list[str], what: str
) -> str:
    """The verdict on a copy of a run that was damaged and resumed. Its job has the path of the source."""
    away = workspace.folder / "away"
    (workspace.folder / source).rename(away)
    try:
        shutil.copytree(away, workspace.folder / source)
        harm(workspace.run(source))
        ended = attempt(["--resume", str(workspace.run(source))])
        verdict = classify(workspace, source, ended, expected, notes)
        if verdict not in (RIGHT, REFUSED):
            notes.append(what)
        return verdict
    finally:
        shutil.rmtree(workspace.folder / source)
        away.rename(workspace.folder / source)


def flips(
    workspace: Workspace, source: str, places: int, expected: dict, notes: list[str]
) -> Iterator[tuple[str, str]]:
    """Flip a bit at some places of each file of a run."""
    for file in sorted(path for path in workspace.run(source).rglob("*") if path.is_file()):
        name = file.relative_to(workspace.run(source))
        size = file.stat().st_size
        for index in range(min(places, size)):
            place = (2 * index + 1) * size // (2 * min(places, size))

            def flip(run: Path, name=name, place=place, index=index) -> None:
                data = bytearray((run / name).read_bytes())
                data[place] ^= 1 << (5 * index) % 8
                (run / name).write_bytes(data)

            what = f"bit flipped in {name} at {place}"
            yield f"bit flipped, {source} run", harmed(workspace, source, flip, expected, notes, what)


def damages(workspace: Workspace, source: str, expected: dict, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Damage lines of events.jsonl, and lose files and folders."""
    for number in (0, 2, -2):
        for line in (b"", b"\0" * 64, b"7", b"[" * 5000, b'{"event": "Nothing"}', b"\xff\xfe"):

            def change(run: Path, number=number, line=line) -> None:
                lines = (run / "events.jsonl").read_bytes().split(b"\n")
                lines[number] = line
                (run / "events.jsonl").write_bytes(b"\n".join(lines))

            yield (
                "line of events.jsonl damaged",
                harmed(workspace, source, change, expected, notes, f"line {number}: {line}"),
            )
    for path in sorted(workspace.run(source).iterdir()):

        def lose(run: Path, name=path.name) -> None:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

        yield "file or folder lost", harmed(workspace, source, lose, expected, notes, f"lost {path.name}")


def changed_inputs(workspace: Workspace, source: str, expected: dict, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Change what a run reads, resume it, and put it back."""

    def tensor(name: str) -> Callable[[], None]:
        def change() -> None:
            file = workspace.folder / "model" / "model.safetensors"
            tensors = load_file(file)
            tensors[name].view(-1)[0] += 0.5
            save_file(tensors, file, metadata={"format": "pt"})

        return change

    def setting(name: str, value: object) -> Callable[[], None]:
        def change() -> None:
            file = workspace.folder / "model" / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

        return change

    def tokens(name: str) -> Callable[[], None]:
        def change() -> None:
            file = workspace.folder / f"{name}.npy"
            np.save(file, np.load(file)[::-1])

        return change

    def masks() -> None:
        file = workspace.folder / "masks" / "masks" / "layer_000.safetensors"
        tensors = load_file(file)
        save_file({name: value.flip(0) for name, value in tensors.items()}, file)

    ways = [
        tensor("model.embed_tokens.weight"), tensor("model.layers.1.input_layernorm.weight"),
        tensor("model.norm.weight"), tensor("lm_head.weight"), tensor("model.layers.0.mlp.up_proj.weight"),
        setting("rms_norm_eps", 0.1), setting("hidden_act", "relu"), tokens("calibration"), tokens("evaluation"), masks,
    ]  # fmt: skip
    for number, way in enumerate(ways):
        kept = workspace.folder / "kept"
        names = ("model", "masks", "calibration.npy", "evaluation.npy")
        kept.mkdir()
        for name in names:
            place = workspace.folder / name
            shutil.copytree(place, kept / name) if place.is_dir() else shutil.copy2(place, kept / name)
        try:
            verdict = harmed(workspace, source, lambda run, way=way: way(), expected, notes, f"changed input {number}")
            yield "input changed", MIXTURE if verdict == RIGHT else verdict
        finally:
            for name in names:
                place = workspace.folder / name
                shutil.rmtree(place) if place.is_dir() else place.unlink()
                shutil.move(kept / name, place)
            kept.rmdir()


def bad_outputs(workspace: Workspace, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Give impossible output paths: refused before the work, and existing files stay."""
    place = workspace.folder / "outputs"
    place.mkdir()
    (place / "file").write_text("mine")
    os.mkfifo(place / "fifo")
    (place / "link").symlink_to("link")
    (place / "full").mkdir()
    (place / "full" / "mine").write_text("mine")
    (place / ".new.part").mkdir()
    (place / ".new.part" / "mine").write_text("mine")
    before = folder_digests(place)
    targets = {
        "save_ppl": ["file", "fifo", "link", "file/below", "/dev/null", "/dev/full"],
        "save_model": ["file", "fifo", "link", "full", "new", "file/below", "/dev/null"],
        "run_dir": ["file", "fifo", "link", "full", "file/below"],
        "save_data": ["file", "fifo", "link", "full", "file/below.npy"],
    }
    flags = [*workspace.flags("first")[:12], "--prune_method", "magnitude", "--sparsity_ratio", "0.5"]
    for flag, names in targets.items():
        for name in names:
            ended = attempt([*flags, f"--{flag}", str(place / name)])
            verdict = classify(workspace, name, ended, {}, notes)
            right = verdict == REFUSED and not ended.out and folder_digests(place) == before
            if not right:
                notes.append(f"--{flag} {name}: {ended.err.strip()[-300:]}")
            yield "output where it cannot be", verdict if right or verdict != REFUSED else LOST
    shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=2, help="bits flipped in each file")
    parser.add_argument("--first", type=int, default=1, help="number of the first of these writes")
    parser.add_argument("--every", type=int, default=5, help="kill before every so many writes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not live on in forked processes
    began, notes, counts = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory() as place:
        workspace = build(Path(place))
        ended = attempt(workspace.flags("finished"))
        assert ended.code == 0, ended.err
        expected = results(workspace, "finished")
        writes = 20
        while attempt(workspace.flags("begun"), kill_at=writes).code == KILLED and not half_way(workspace):
            shutil.rmtree(workspace.folder / "begun", ignore_errors=True)
            writes += 7
        cases = [
            kills(workspace, range(arguments.first, MANY, arguments.every), expected, notes),
            *(flips(workspace, source, arguments.places, expected, notes) for source in ("finished", "begun")),
            damages(workspace, "finished", expected, notes),
            damages(workspace, "begun", expected, notes),
            changed_inputs(workspace, "begun", expected, notes),
            bad_outputs(workspace, notes),
        ]
        for kind, verdict in (case for part in cases for case in part):
            counts.setdefault(kind, Counter())[verdict] += 1
    columns = [RIGHT, REFUSED, TRACEBACK, MIXTURE, LOST]
    rows = [[kind, count.total(), *(count[column] for column in columns)] for kind, count in counts.items()]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(columns) + 2))])
    print(table(["what happened", "cases", *columns], [[str(cell) for cell in row] for row in rows]))
    print("\n".join(notes), f"{time.monotonic() - began:.0f} s", sep="\n")


def half_way(workspace: Workspace) -> bool:
    """Whether the run "begun" has rebuilt something, and not all."""
    path = workspace.run("begun") / "events.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sum(b'"SubBlockRebuilt"' in line for line in lines) == 3


if __name__ == "__main__":
    main()
