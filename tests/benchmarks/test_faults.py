"""The count of faults, on a few of its cases: real processes that die at real writes."""

from __future__ import annotations

import pytest

from benchmarks import faults


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with the run "finished"."""
    world = faults.build(tmp_path_factory.mktemp("world"))
    assert faults.attempt(world.flags("finished")).code == 0
    return world


def test_runs_that_die_end_as_if_nothing_had_been(world):
    notes: list[str] = []
    wanted = faults.results(world, "finished")
    verdicts = [verdict for _, verdict in faults.kills(world, range(3, 150, 14), wanted, notes)]
    assert len(verdicts) > 8
    assert set(verdicts) == {faults.RIGHT}, notes


def test_what_is_not_the_same_is_counted_as_a_mixture(world):
    """The judge is no rubber stamp: a run that ends well with other results than wanted is none of the right ones."""
    ended = faults.Ended(0, "", "")
    wanted = faults.results(world, "finished")
    assert faults.judge(world, "finished", ended, wanted, []) == faults.RIGHT
    assert faults.judge(world, "finished", ended, wanted | {"perplexity": []}, []) == faults.MIXTURE
    assert faults.judge(world, "finished", faults.Ended(1, "", "Traceback"), wanted, []) == faults.TRACEBACK
