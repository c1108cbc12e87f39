"""Make an example of the app from a recorded run: its events, and the masks of a few layers.

python scripts/example_run.py RUN_DIR NAME [--layers 0 15] [--title TITLE]

The masks of all layers of a real model would be too large to come with the app. Folders are removed from the names of
the model and the data: they mean nothing on another machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from barber.atomic_files import write_json, write_lines
from barber.events import RunFinished, RunStarted
from barber.runs.checksums import EVENTS
from barber.runs.directory import RunDirectory
from barber.runs.resume import read_job
from ui.describe import describe
from ui.history import EXAMPLES, Card, State, perplexities

NAMES = ("model", "calibration", "evaluation", "run_dir")  # of a job, which may be paths


def last(name: object) -> object:
    """The last part of a path, or of each of several."""
    if isinstance(name, list):
        return [last(one) for one in name]
    return Path(name).name if isinstance(name, str) else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--layers", type=int, nargs="*", default=[0])
    parser.add_argument("--title", default=None)
    given = parser.parse_args()
    run, target = RunDirectory(given.run), EXAMPLES / given.name
    events, spec = run.events(), read_job(given.run)
    (finished,) = (event for event in events if isinstance(event, RunFinished))
    (target / "masks").mkdir(parents=True)
    for layer in given.layers:
        name = f"masks/layer_{layer:03}.safetensors"
        shutil.copyfile(given.run / name, target / name)
    events = [replace(one, model=last(one.model)) if isinstance(one, RunStarted) else one for one in events]
    write_json(target / "config.json", next(one for one in events if isinstance(one, RunStarted)).to_dict())
    lines = (json.dumps(one.to_dict(), separators=(",", ":")).encode() + b"\n" for one in events)
    write_lines(target / EVENTS, lines)
    job = {name: last(value) if name in NAMES else value for name, value in spec.to_dict().items()}
    card = Card(
        given.name,
        given.title or describe(replace(spec, model=last(spec.model))),
        (given.run / "config.json").stat().st_mtime,
        job,
        State.FINISHED,
        seconds=finished.seconds,
        perplexities=perplexities(events),
    )
    write_json(EXAMPLES / f"{given.name}.json", asdict(card))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
