"""The masks of a run as one file: python main.py masks RUN_DIR --output FILE.safetensors."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from barber.console import path
from barber.errors import UserError
from barber.events import Stage
from barber.parsing import Parser


def main(words: Sequence[str]) -> int:
    """Run the command; return its exit code. Raises UserError."""
    return _parser().obey(words, run)


def _parser() -> Parser:
    parser = Parser.of("masks", "Write the masks of a run into one file, bit-packed.")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=path, help="the folder of a recorded run")
    parser.add_argument(
        "--stage",
        choices=[str(Stage.INITIAL), str(Stage.REBUILT)],
        help="the initial or the rebuilt masks (default: the last that the run has)",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=path, required=True, help="the new file, which ends in .safetensors"
    )
    return parser


def run(given: Namespace) -> str:
    """Write the file; return what was written. Raises UserError."""
    from barber.runs.directory import RunDirectory
    from barber.runs.masks_file import write_masks

    if given.output.suffix != ".safetensors":
        raise UserError(f"--output {given.output} does not end in .safetensors, as the file is: give such a name.")
    masks = RunDirectory(given.run_dir).stage_masks(getattr(given, "stage", None))
    write_masks(masks, given.output)
    return f"Wrote the {masks.stage} masks of {masks.model} to {given.output}.\n"
