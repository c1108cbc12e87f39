"""The command line: the published flags, which run a job and show its events, and further commands by name."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from barber.console import check_arguments, interruptible
from barber.errors import UserError, first_line
from barber.parsing import Parser
from barber.settings import FLAGS

if TYPE_CHECKING:
    from barber.job_spec import JobSpec
    from barber.pruning.distributed import Ranks


RESULTS = ("save_ppl", "save_zeroshot")

OUTPUTS = ("save_model", "run_dir", "save_data", *RESULTS)

SUBCOMMANDS = {  # main.py NAME ...: (arguments after NAME) -> exit code
    "apply": "barber.commands.apply:main",
    "masks": "barber.commands.masks:main",
    "sweep": "barber.commands.sweep:main",
    "report": "analysis.commands.report:main",
    "tables": "analysis.commands.tables:main",
}

OF_THE_APP = ("analysis", "jinja2", "pandas", "plotly")  # not part of an installed engine


def build_parser() -> Parser:
    """The parser of the published flags."""
    parser = Parser(
        description="Prune a language model in one shot and rebuild its mask (LLM-Barber). Without --model, the "
        "bundled model runs with example settings.",
        epilog=f"Further commands, each with --help: {', '.join(SUBCOMMANDS)}.",
    )
    for flag in FLAGS:
        parser.add_flag(flag)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user error, 130 for an interrupt."""
    logging.captureWarnings(True)
    who = ""
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        check_arguments(words)
        if words and words[0] in SUBCOMMANDS:
            return _subcommand(words[0])(words[1:])
        given = vars(build_parser().read(words))
        # Imported late, since torch and transformers take seconds, which --help and flag errors do not need.
        from barber.pruning.distributed import join, leave

        ranks = join()
        who = f"[process {ranks.rank}] " if ranks.world > 1 else ""
        try:
            _run_command(given, ranks)
        finally:
            leave()
    except UserError as error:
        sys.stderr.write("".join(f"{who}error: {sentence}\n" for sentence in str(error).split("\n")))
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that is too long, a folder without permission, a full disk
        place = f"{error.filename!r} cannot be used" if error.filename else "The system refused"
        sys.stderr.write(f"{who}error: {place} ({error.strerror or first_line(error)}): give another path.\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the model on disk is as it was.\n")
        return 130
    return 0


def _subcommand(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a subcommand. Raises UserError where the installed engine lacks it."""
    try:
        return resolve_name(SUBCOMMANDS[name])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OF_THE_APP:
            raise
        raise UserError(
            f"The command {name} needs {error.name}, which is not part of the installed engine: run `python main.py "
            f"{name}` in the checkout, with the packages of its requirements.txt."
        ) from None


def _job(given: dict) -> tuple[JobSpec, bool]:
    """The job, and whether it resumes an earlier one."""
    from barber.jobs.options import job_from, with_flags
    from barber.runs.resume import job_difference, read_job

    folder = given.get("resume")
    if folder is None:
        return job_from(given).absolute(), False
    job = read_job(folder)
    if given.get("delete") and not job.save_model:
        raise UserError(
            f"--delete removes the model of --save_model, but the run in {folder} saves none: leave it out."
        )
    if found := job_difference(folder, with_flags(job, given)):
        raise UserError(
            f"The run in {folder} has other settings ({'; '.join(found)}): leave these flags out, since --resume reads "
            "them from the run."
        )
    return job, True


def _run_command(given: dict, ranks: Ranks) -> None:
    from barber.events import Estimated, Notice, Saved
    from barber.jobs.job import run_job
    from barber.jobs.options import without_pruning
    from barber.jobs.outputs import check_outputs
    from barber.jobs.report import Report, format_estimate, write_results
    from barber.models.loading import quiet_transformers
    from barber.models.saving import folder_digests, remove_model
    from barber.progress import Eta
    from barber.runs.saved_model import noted_files

    quiet_transformers()
    spec, resumed = _job(given)
    if ranks.writes:  # for a resumed run, the job checks them
        check_outputs({flag: given.get(flag) for flag in (RESULTS if resumed else OUTPUTS)})
    summary, eta, written = Report(spec), Eta(), {}
    notices = [sentence for sentence in [without_pruning(given)] if sentence]
    try:
        with (
            interruptible(),
            progress_bar(ranks.writes) as bar,
            contextlib.closing(run_job(spec, resumed=resumed, ranks=ranks, notices=notices)) as events,
        ):
            for event in events:
                eta.update(event)
                summary.add(event)
                if isinstance(event, Notice | Estimated) and ranks.writes:
                    bar.write(event.message if isinstance(event, Notice) else format_estimate(event), file=sys.stderr)
                if given.get("delete") and isinstance(event, Saved) and event.what == "model":
                    written = noted_files(spec.run_dir, spec.save_model) if spec.run_dir else folder_digests(event.path)
                show_progress(bar, eta, event)
    except Exception:
        if ranks.writes and summary.has_results:  # keeps results that were measured before the failure
            sys.stdout.write(summary.text())
        raise
    if not ranks.writes:
        return
    try:
        sys.stdout.write(summary.text())
        sys.stdout.flush()
    finally:  # a closed terminal must not lose results
        write_results(summary, given.get("save_ppl"), given.get("save_zeroshot"))
    if given.get("delete") and summary.model_path:
        remove_model(summary.model_path, written)
        sys.stdout.write(f"Deleted the saved model {summary.model_path}.\n")


def progress_bar(shown: bool):
    from tqdm import tqdm

    return tqdm(
        total=100, file=sys.stderr, disable=not shown, bar_format="{percentage:3.0f}% |{bar:30}| {desc}", leave=False
    )


def show_progress(bar, eta, event, before: str = "") -> None:
    """Show phase, position and time left on stderr. before: what precedes them."""
    from barber.events import Progress

    if isinstance(event, Progress):
        left = "" if eta.seconds_left is None else f", {eta.seconds_left:.0f} s left"
        bar.n = round(100 * eta.fraction)
        bar.set_description_str(f"{before}{event.phase} {event.where} {event.done}/{event.total}{left}", refresh=False)
        bar.update(0)
        bar.refresh() if event.done == event.total else None
