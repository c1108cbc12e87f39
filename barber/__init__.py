"""Barber: one-shot pruning masks of language models, rebuilt by sub-block error (LLM-Barber, arXiv 2408.10631).

The names below are public. Each is imported on first use: `import barber` does not import torch.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from barber.config import PruneConfig, Sparsity
    from barber.data.token_sets import load_calibration
    from barber.errors import UserError
    from barber.job_spec import JobSpec
    from barber.jobs.job import run_job
    from barber.models.loading import load as load_model
    from barber.pruning.prune import prune
    from barber.runs.directory import RunDirectory

__version__ = "0.1.0"

__all__ = [
    "JobSpec",
    "PruneConfig",
    "RunDirectory",
    "Sparsity",
    "UserError",
    "__version__",
    "load_calibration",
    "load_model",
    "prune",
    "run_job",
]

_WHERE = {
    "JobSpec": "barber.job_spec:JobSpec",
    "PruneConfig": "barber.config:PruneConfig",
    "RunDirectory": "barber.runs.directory:RunDirectory",
    "Sparsity": "barber.config:Sparsity",
    "UserError": "barber.errors:UserError",
    "load_calibration": "barber.data.token_sets:load_calibration",
    "load_model": "barber.models.loading:load",
    "prune": "barber.pruning.prune:prune",
    "run_job": "barber.jobs.job:run_job",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = resolve_name(_WHERE[name])
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
