"""The command line, with the published flags: parse, run the job, show its events."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from barber.config import METHODS, Allocation, Granularity, Metric, Order, Refiner, Target
from barber.console import check_arguments, interruptible, path
from barber.errors import UserError, first_line

if TYPE_CHECKING:
    from barber.job_spec import JobSpec
    from barber.pruning.distributed import Ranks


OUTPUTS = ("save_model", "run_dir", "save_data", "save_ppl", "save_zeroshot")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help.\n")


def build_parser() -> argparse.ArgumentParser:
    """Flags that are absent stay out of the namespace, so that defaults can depend on what was given."""
    parser = _Parser(
        prog="main.py",
        description="Prune a language model in one shot and rebuild its mask (LLM-Barber). Without --model, the "
        "bundled model runs with settings worth seeing.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--model", help="hub id or Hugging Face folder (default: the bundled storyteller)")
    flag("--seed", type=int, help="seed of the calibration sampling (default 0)")
    flag("--nsamples", type=int, help="calibration sequences (default 128)")
    flag("--seqlen", type=int, help="tokens per sequence (default 2048, or the model's maximum if that is smaller)")
    flag("--sparsity_ratio", type=float, help="share of the weights to prune, between 0 and 1")
    flag("--sparsity_type", help="unstructured (default) or n:m, n zeros in every m inputs, like 2:4")
    flag("--prune_method", choices=METHODS, help="initial mask")
    flag("--prune_barber", action="store_true", help="rebuild the initial mask")
    flag("--prune_metric", choices=[str(metric) for metric in Metric], help="saliency of the rebuild (default WD)")
    flag("--prune_granularity", choices=[str(g) for g in Granularity], help="swap groups (default output1)")
    flag("--threshold", help="share of the gaining pairs that are swapped, 0 to 1 (default 0.01), or auto")
    flag("--rounds", type=int, help="rounds of swaps at most (default 1; 4 with --threshold auto)")
    flag("--refiner", choices=[str(refiner) for refiner in Refiner], help="what improves the mask (default barber)")
    flag("--target", choices=[str(target) for target in Target], help="what sub-blocks are compared with")
    flag("--allocation", choices=[str(a) for a in Allocation], help="ratios of the layers (default uniform)")
    flag("--order", choices=[str(order) for order in Order], help="initialise the whole model first (paper, default)")
    flag("--reconstruct", action="store_true", help="re-fit the kept weights of each sub-block, zeros staying zeros")
    flag("--retain_reconstruction", action="store_true", help="keep SparseGPT's updated weights in the rebuild")
    flag("--initial_masks", metavar="PATH", help="masks file or run directory to take the initial mask from")
    flag("--calibration", metavar="SPEC", help="c4 (default), wikitext2, ptb, storyteller, or a .txt/.jsonl/.npy file")
    flag("--eval_data", metavar="SPEC[,SPEC]", help="perplexity data, same choices (default wikitext2)")
    flag("--eval_windows", type=int, metavar="N", help="at most N perplexity windows per data set (default all)")
    flag("--prompt", help="text to continue with the dense, the initial and the rebuilt model")
    flag("--datasets_cache_dir", metavar="DIR", help="where data sets are kept")
    flag("--cache_dir", metavar="DIR", help="where downloaded models are kept")
    flag("--save_data", metavar="FILE", type=path, help="write the calibration tokens (.npy)")
    flag("--save_model", metavar="DIR", type=path, help="write the pruned model as a Hugging Face folder")
    flag("--save_ppl", metavar="DIR", type=path, help="write the perplexities")
    flag("--save_zeroshot", metavar="DIR", type=path, help="run zero-shot tasks and write their results")
    flag("--zeroshot_tasks", metavar="TASK[,TASK]", help="lm-eval tasks (default: the published seven)")
    flag("--limit", type=int, metavar="N", help="at most N items per zero-shot task")
    flag("--run_dir", metavar="DIR", type=path, help="record the run: masks, events, histograms")
    flag("--resume", metavar="DIR", type=path, help="go on with the run that was begun in this --run_dir")
    flag("--delete", action="store_true", help="delete the model that --save_model wrote, after the evaluation")
    flag("--stream", action="store_true", help="read the model layer by layer (by itself where it does not fit)")
    flag("--max_memory", metavar="SIZE", help="of the device at most, like 12GiB (default: what is free)")
    flag("--device", help="auto (default), cpu, cuda, cuda:1 ...")
    flag("--compute", help="matrix products of the pruning: native (default), bfloat16, or tf32 on CUDA")
    flag("--dtype", help="auto (default), float32, bfloat16, float16")
    flag("--trust_remote_code", action="store_true", help="run Python code that a model brings along")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 for a user's error, 130 for an interrupt."""
    logging.captureWarnings(True)
    who = ""
    try:
        check_arguments(sys.argv[1:] if argv is None else argv)
        given = vars(build_parser().parse_args(argv))
        _check_values(given)
        # Torch and transformers take seconds to import: --help and a mistyped flag need not wait for them.
        from barber.pruning.distributed import join, leave

        ranks = join()
        who = f"[process {ranks.rank}] " if ranks.world > 1 else ""
        try:
            _run(given, ranks)
        finally:
            leave()
    except UserError as error:
        sys.stderr.write(f"{who}error: {error}\n")
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a name that is too long, a folder that may not be entered, a full disk
        place = f"{error.filename!r} cannot be used" if error.filename else "The system refused"
        sys.stderr.write(f"{who}error: {place} ({error.strerror or first_line(error)}): give another place.\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the model on disk is as it was.\n")
        return 130
    return 0


def _check_values(given: dict) -> None:
    """UserError for what argparse lets through: "--flag=--" as an empty list, and numbers that no library takes."""
    for flag, value in given.items():
        if isinstance(value, list):
            raise UserError(f"--{flag} has no value: give one, see --help.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"The number given for --{flag} is not allowed: it must be below 2**63 in size.")


def _job(given: dict) -> tuple[JobSpec, bool]:
    """The job, and whether it goes on with one that was begun before."""
    from barber.jobs.options import job_from
    from barber.runs.resume import difference, read_job

    folder = given.get("resume")
    asked = {flag: value for flag, value in given.items() if flag not in ("resume", "save_ppl", "delete")}
    if folder is None:
        return job_from(given), False
    if asked and (found := difference(folder, job_from(asked | {"run_dir": folder}))):
        raise UserError(
            f"The run in {folder} was begun otherwise ({'; '.join(found)}): leave these flags out, --resume knows them."
        )
    return read_job(folder), True


def _run(given: dict, ranks: Ranks) -> None:
    from transformers.utils import logging as transformers_logging

    from barber.events import Estimated, Notice
    from barber.jobs.job import run_job
    from barber.jobs.outputs import check_outputs
    from barber.jobs.report import Report, told, write_results
    from barber.progress import Eta

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    spec, resumed = _job(given)
    if ranks.writes:
        check_outputs({flag: given.get(flag) for flag in OUTPUTS})
    summary, eta = Report(spec), Eta()
    with (
        interruptible(),
        _bar(ranks.writes) as bar,
        contextlib.closing(run_job(spec, resumed=resumed, ranks=ranks)) as events,
    ):
        for event in events:
            eta.update(event)
            summary.add(event)
            if isinstance(event, Notice | Estimated) and ranks.writes:
                bar.write(event.message if isinstance(event, Notice) else told(event), file=sys.stderr)
            _show(bar, eta, event)
    if not ranks.writes:
        return
    write_results(summary, given.get("save_ppl"), given.get("save_zeroshot"))
    sys.stdout.write(summary.text())
    if given.get("delete") and summary.model_path:
        shutil.rmtree(summary.model_path)
        sys.stdout.write(f"Deleted the saved model {summary.model_path}.\n")


def _bar(shown: bool):
    from tqdm import tqdm

    return tqdm(
        total=100, file=sys.stderr, disable=not shown, bar_format="{percentage:3.0f}% |{bar:30}| {desc}", leave=False
    )


def _show(bar, eta, event) -> None:
    """Phase, place and time left on stderr."""
    from barber.events import Progress

    if isinstance(event, Progress):
        left = "" if eta.seconds_left is None else f", {eta.seconds_left:.0f} s left"
        bar.n = round(100 * eta.fraction)
        bar.set_description_str(f"{event.phase} {event.where} {event.done}/{event.total}{left}", refresh=False)
        bar.update(0)
        bar.refresh() if event.done == event.total else None
