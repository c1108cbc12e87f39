"""The time left of a job, over the real events of a run with the times at which they came."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from barber.config import AUTO, PruneConfig, Sparsity
from barber.events import Event, JobPlanned, Progress
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from barber.progress import RISE, Eta

Stamped = list[tuple[float, Event]]

SPEC = JobSpec(
    prune=PruneConfig(Sparsity(0.6), "wanda", threshold=AUTO),
    calibration="storyteller",
    evaluation=("storyteller",),
    nsamples=16,
    seqlen=128,
    eval_windows=16,
    device="cpu",
)


def record(spec: JobSpec, **how) -> Stamped:
    """The planning and progress of a run, from 0 on."""
    clock = Eta().clock
    stamped = [(clock(), event) for event in run_job(spec, **how) if isinstance(event, JobPlanned | Progress)]
    start = next(at for at, event in stamped if isinstance(event, JobPlanned))
    return [(at - start, event) for at, event in stamped if at >= start]


@pytest.fixture(scope="module")
def stamped() -> Stamped:
    return record(SPEC)


def replay(stamped: Stamped) -> list[tuple[float, float]]:
    """The time and the time left after each event."""
    now = 0.0
    eta, shown = Eta(clock=lambda: now), []
    for now, event in stamped:
        eta.update(event)
        if eta.seconds_left is not None:
            shown.append((now, eta.seconds_left))
    return shown


def slower(stamped: Stamped, phase: str, factor: float) -> Stamped:
    """The same events, with a phase that takes a multiple of its time."""
    moved, before, now = [], 0.0, 0.0
    for at, event in stamped:
        now += (at - before) * (factor if getattr(event, "phase", "") == phase else 1)
        before = at
        moved.append((now, event))
    return moved


def check_calm(shown: list[tuple[float, float]]) -> None:
    """The time left rises by no more than RISE seconds a second."""
    for (before, left), (now, later) in pairwise(shown):
        assert later <= left + RISE * (now - before) + 1e-9


def test_the_time_left_falls_to_nothing(stamped):
    shown = replay(stamped)
    check_calm(shown)
    assert isinstance(stamped[0][1], JobPlanned)
    assert shown[0] == (0.0, pytest.approx(sum(stamped[0][1].phases.values())))
    lefts = [left for _, left in shown]
    assert lefts[-1] < 0.1 * lefts[0]


@pytest.mark.parametrize("phase", ["perplexity dense", "initial mask", "rebuild", "perplexity rebuilt"])
@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_phase_at_another_speed_makes_no_jump(stamped, phase, factor):
    check_calm(replay(slower(stamped, phase, factor)))


def test_a_whole_job_at_another_speed_is_recognised(stamped):
    """Three times slower than expected: towards the end, the time left is right within a factor of two."""
    expected = sum(stamped[0][1].phases.values())
    events = [(at * 3 * expected / stamped[-1][0], event) for at, event in stamped]
    shown, end = replay(events), events[-1][0]
    check_calm(shown)
    for now, left in shown:
        if 0.7 * end < now < 0.9 * end:
            assert (end - now) / 2.5 < left < 2.5 * (end - now)


def test_what_a_resumed_run_has_finished_says_nothing_about_its_speed(tmp_path):
    spec = replace(SPEC, run_dir=tmp_path / "run")
    events = run_job(spec)
    for event in events:
        if isinstance(event, Progress) and event.phase == "rebuild" and event.done / event.total > 0.6:
            break
    events.close()
    resumed = record(spec, resumed=True)
    plan = resumed[0][1]
    assert plan.finished["initial mask"] == 1
    assert 0 < plan.finished["rebuild"] < 1
    assert plan.finished["perplexity dense"] == 1
    first = replay(resumed)[0][1]
    assert first == pytest.approx(sum(cost * (1 - plan.finished.get(name, 0)) for name, cost in plan.phases.items()))
    check_calm(replay(resumed))
