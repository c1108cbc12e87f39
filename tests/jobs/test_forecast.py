"""The estimate before a job: that of the job itself, without its weights."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from barber.config import Sparsity
from barber.errors import UserError
from barber.events import Estimated
from barber.jobs.forecast import forecast
from barber.jobs.job import run_job
from barber.jobs.presets import FIRST_LOOK

SMALL = replace(FIRST_LOOK, nsamples=8, seqlen=64, eval_windows=2)


def estimated(spec) -> Estimated:
    """What the job itself expects, once it has loaded the model."""
    with closing(run_job(spec)) as events:
        return next(event for event in events if isinstance(event, Estimated))


@pytest.mark.parametrize("changes", [{}, {"seqlen": None}, {"stream": True}, {"max_memory": "100MB"}])
def test_the_forecast_is_the_estimate_of_the_job(changes):
    spec = replace(SMALL, **changes)
    before, then = forecast(spec), estimated(spec)
    for name in ("device", "device_bytes", "disk_bytes", "streamed", "activations"):
        assert getattr(before, name) == getattr(then, name), name
    assert before.host_bytes == pytest.approx(then.host_bytes, rel=0.001)  # layerwise, the job counts buffers, too
    assert then.seconds / 10 < before.seconds < 10 * then.seconds  # the rate of products is measured each time


def test_a_job_without_calibration_has_no_forecast():
    assert forecast(replace(SMALL, prune=replace(SMALL.prune, method="magnitude", barber=False))) is None


@pytest.mark.parametrize(
    ("changes", "pattern", "sentence"),
    [
        ({"model": "no-such-model"}, "60%", "no-such-model"),
        ({"seqlen": 100_000}, "60%", "Sequence length 100000 is beyond"),
        ({"max_memory": "1KiB"}, "60%", "storyteller needs about"),
        ({}, "1:7", "does not fit"),
        ({}, "0.001%", "prunes no weight"),
    ],
)
def test_what_cannot_run_is_refused(changes, pattern, sentence):
    prune = replace(SMALL.prune, sparsity=Sparsity.parse(pattern))
    with pytest.raises(UserError, match=sentence):
        forecast(replace(SMALL, prune=prune, **changes))
