"""Zero-shot tasks, evaluated by lm-eval on the model in memory."""

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

# task -> items, answers of each item, and tokens of an answer with its question, about; for the estimate of time
REQUESTS = {
    "boolq": (3270, 1, 150),  # both answers are one token, so that one pass has both
    "rte": (277, 1, 80),
    "hellaswag": (10042, 4, 90),
    "winogrande": (1267, 2, 25),
    "arc_easy": (2376, 4, 35),
    "arc_challenge": (1172, 4, 40),
    "openbookqa": (500, 4, 20),
    STORY_TASK: (500, 4, 150),
}
UNKNOWN = (1000, 4, 60)  # assumed of any other task


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UserError with the names of the tasks that cannot be run.

    A task is the name of a task of lm-eval, "story_ending", or the path of a YAML file. Checking a name loads no data,
    so it is fast enough to be done before pruning. A task of a YAML file is loaded completely to find all errors in it.
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
    """Evaluate `model` on each task: yield Progress, then ZeroShotMeasured, or ZeroShotSkipped with the reason.

    A group of tasks (like "mmlu") yields one ZeroShotMeasured for each of its tasks and one for the group. limit: the
    maximum number of items of a task. lm-eval computes the metrics and standard errors; the model is neither reloaded
    nor changed. Raises UserError before the evaluation for unknown tasks, a limit below 1 or a missing tokenizer.
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
    """Whether a task can be loaded without lm-eval's index of tasks, which takes seconds to build."""
    return name == STORY_TASK or (name.endswith((".yaml", ".yml")) and Path(name).is_file())


@cache
def _task_manager(with_all: bool):
    """Return lm-eval's TaskManager, with all its tasks, or only for tasks that are given as a file or a dict."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # lm-eval warns about every key that is missing in a task file
    return TaskManager(include_defaults=with_all)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress lm-eval's prints and progress bars, because the front end uses the terminal; errors are raised."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _file(name: str) -> str:
    """Return the path of the YAML file of the bundled task; any other name is returned unchanged."""
    from barber.bundled import TASKS_DIR

    return str(TASKS_DIR / f"{name}.yaml") if name == STORY_TASK else name


class Unreachable(UserError):
    """The data of a task cannot be downloaded at the moment; the task itself may be correct."""


def _load(name: str) -> list:
    """Return lm-eval's task and group objects of a name, with their data. Raises UserError if they cannot be loaded."""
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
    except Exception as error:  # the code and the data of a task can raise any error
        raise UserError(
            f"Task {name} cannot be loaded because lm-eval refuses it ({type(error).__name__}: {first_line(error)}): "
            "correct it, or leave it out."
        ) from None
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise UserError(f"Task {name} runs code that the model writes, which is not safe: use lm-eval itself for it.")
    within = {child for children in loaded["group_map"].values() for child in children}
    return [item for key, item in (loaded["groups"] | loaded["tasks"]).items() if key not in within]


def _evaluate(model, tokenizer, tasks: list, limit: int | None, batch_size: int) -> dict | str:
    """Return lm-eval's results for loaded tasks, or a str with the reason why there are none."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    try:
        with eval_mode(model), _silence():
            # HFLM adds a padding token to a tokenizer that has none, so it is given a copy.
            scorer = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
            return lm_eval.simple_evaluate(
                scorer, tasks=tasks, limit=limit, log_samples=False, task_manager=_task_manager(with_all=False)
            )
    except torch.OutOfMemoryError:  # the job reports it: the other tasks would fail as well
        raise
    except Exception as error:  # from the code of the task, or because the model is not suitable for it
        if str(error):
            return f"lm-eval stopped with {type(error).__name__}: {first_line(error)}"
        return "its answers may be longer than the positions of the model"


def _measured(results: dict, stage: str) -> Iterator[Event]:
    """Yield one event for each task and group in lm-eval's results."""
    for name, values in results["results"].items():
        # Keys are "metric,filter", like "acc,none" and "acc_stderr,none". The default filter "none" is removed.
        numbers = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
        errors = {key.replace("_stderr", "", 1): value for key, value in numbers.items() if "_stderr" in key}
        metrics = {key: float(value) for key, value in numbers.items() if "_stderr" not in key}
        stderr = {key: errors[key] if isinstance(errors.get(key), float) else None for key in metrics}
        yield ZeroShotMeasured(stage, name, metrics, stderr, int(values.get("sample_len", 0)))
