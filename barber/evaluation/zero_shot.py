"""Zero-shot tasks through lm-eval, on the model in memory."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
import yaml

from barber.errors import UserError, first_line
from barber.events import Event, Progress, ZeroShotMeasured, ZeroShotSkipped
from barber.hub_access import quick_offline
from barber.models.modes import eval_mode

# As published: the seven tasks that LLM-Barber reports.
PUBLISHED_TASKS = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
STORY_TASK = "story_ending"  # bundled: needs no network


def check_tasks(tasks: Sequence[str]) -> None:
    """UserError naming the tasks that cannot be run; a task is lm-eval's by name, "story_ending", or a YAML file.

    Names ask for no data, which is cheap enough to come before any pruning; a file is built whole, as its author may
    have made any mistake in it.
    """
    unknown = [name for name in tasks if not (name in PUBLISHED_TASKS or _stands_alone(name))]
    if unknown:
        unknown = [name for name in unknown if name not in _task_manager(with_all=True).task_index]
    if unknown:
        raise UserError(
            f"Zero-shot task {', '.join(map(repr, unknown))} is unknown: name tasks that `lm-eval ls tasks` lists, "
            f"such as {PUBLISHED_TASKS[0]}, or {STORY_TASK}, or the YAML file of a task."
        )
    for name in tasks:
        if name != STORY_TASK and _stands_alone(name):
            with contextlib.suppress(Unreachable):
                _load(name)


def zero_shot(
    model,
    tokenizer,
    stage: str,
    tasks: Sequence[str] = PUBLISHED_TASKS,
    limit: int | None = None,
    batch_size: int = 8,
) -> Iterator[Event]:
    """Measure `model` on each task: Progress before each, then ZeroShotMeasured, or ZeroShotSkipped with the reason.

    A name that stands for several tasks (a group like "mmlu") gives one ZeroShotMeasured for each of them and one for
    itself. limit: at most this many items a task. Values and standard errors are lm-eval's own; the model is neither
    loaded again nor changed. UserError before any work for unknown tasks, a limit below 1 or a missing tokenizer.
    """
    if tokenizer is None:
        raise UserError("The model has no tokenizer, which zero-shot tasks need: add the tokenizer to its folder.")
    if limit is not None and limit < 1:
        raise UserError(f"Limit {limit} is not allowed: give 1 or more items a task, or none for all of them.")
    check_tasks(tasks)
    phase = f"zero-shot {stage}"
    for index, name in enumerate(tasks):
        yield Progress(phase, index, len(tasks), name)
        try:
            loaded = _load(name)
        except UserError as error:
            yield ZeroShotSkipped(name, str(error))
        else:
            results = _evaluate(model, tokenizer, loaded, limit, batch_size)
            if isinstance(results, str):
                yield ZeroShotSkipped(name, f"Task {name} cannot be run on this model ({results}).")
            else:
                yield from _measured(results, str(stage))
    yield Progress(phase, len(tasks), len(tasks))


def _stands_alone(name: str) -> bool:
    """Whether a task needs nothing of lm-eval's index, which takes seconds to build."""
    return name == STORY_TASK or (name.endswith((".yaml", ".yml")) and Path(name).is_file())


@cache
def _task_manager(with_all: bool):
    """lm-eval's finder of tasks: of all its tasks, or only of those that are given as a file or a dict."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task file leaves out
    return TaskManager(include_defaults=with_all)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep lm-eval's prints and progress bars off the terminal, which is the front end's; errors are still raised."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _file(name: str) -> str:
    """The bundled task's YAML file; any other name as it is."""
    from barber.bundled import TASKS_DIR

    return str(TASKS_DIR / f"{name}.yaml") if name == STORY_TASK else name


class Unreachable(UserError):
    """The data of a task is out of reach now; the task itself may be right."""


def _load(name: str) -> list:
    """lm-eval's task and group objects of a name, with their data. Raises UserError if they cannot be loaded."""
    try:
        with quick_offline(), _silence():
            loaded = _task_manager(with_all=not _stands_alone(name)).load([_file(name)])
    except ConnectionError:
        raise Unreachable(
            f"The data of task {name} cannot be loaded because the hub cannot be reached: connect to the network."
        ) from None
    except yaml.YAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise UserError(f"Task {name} cannot be loaded because it is not YAML{line}: correct it.") from None
    except FileNotFoundError as error:
        gone = error.filename or first_line(error)
        raise UserError(
            f"Task {name} cannot be loaded because a file that it names is missing ({gone}): correct it."
        ) from None
    except Exception as error:  # a task runs its authors' code and its data comes from anywhere: all of it can fail
        raise UserError(
            f"Task {name} cannot be loaded because lm-eval refuses it ({type(error).__name__}: {first_line(error)}): "
            "correct it, or leave it out."
        ) from None
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise UserError(f"Task {name} runs code that the model writes, which is not safe: use lm-eval itself for it.")
    within = {child for children in loaded["group_map"].values() for child in children}
    return [item for key, item in (loaded["groups"] | loaded["tasks"]).items() if key not in within]


def _evaluate(model, tokenizer, tasks: list, limit: int | None, batch_size: int) -> dict | str:
    """lm-eval's results for loaded tasks, or in some words why there are none."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    try:
        with eval_mode(model), _silence():
            # HFLM gives a tokenizer that has no padding token one: it gets a copy.
            scorer = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
            return lm_eval.simple_evaluate(
                scorer, tasks=tasks, limit=limit, log_samples=False, task_manager=_task_manager(with_all=False)
            )
    except torch.OutOfMemoryError:  # the job's to explain: the other tasks would fail alike
        raise
    except Exception as error:  # a task's own code, or a model that does not fit it
        if str(error):
            return f"lm-eval stopped with {type(error).__name__}: {first_line(error)}"
        return "its answers may be longer than the positions of the model"


def _measured(results: dict, stage: str) -> Iterator[Event]:
    """One event for each task and group in lm-eval's results."""
    for name, values in results["results"].items():
        # Keys read "acc,none" and "acc_stderr,none": metric, filter. The usual filter "none" is left out of the names.
        numbers = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
        errors = {key.replace("_stderr", "", 1): value for key, value in numbers.items() if "_stderr" in key}
        metrics = {key: float(value) for key, value in numbers.items() if "_stderr" not in key}
        stderr = {key: errors[key] if isinstance(errors.get(key), float) else None for key in metrics}
        yield ZeroShotMeasured(stage, name, metrics, stderr, int(values.get("sample_len", 0)))
