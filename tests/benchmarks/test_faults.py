"""The fault benchmark, on a few of its cases: processes that are killed at their writes."""

from __future__ import annotations

import pytest

from benchmarks import faults


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with the finished run "finished"."""
    workspace = faults.build(tmp_path_factory.mktemp("workspace"))
    assert faults.attempt(workspace.flags("finished")).code == 0
    return workspace


def test_killed_runs_resume_to_the_same_results(workspace):
    notes: list[str] = []
    wanted = faults.results(workspace, "finished")
    verdicts = [verdict for _, verdict in faults.kills(workspace, range(3, 150, 14), wanted, notes)]
    assert len(verdicts) > 8
    assert set(verdicts) == {faults.RIGHT}, notes


def test_other_results_are_counted_as_a_mixture(workspace):
    """A run that ends with exit code 0 and other results than expected does not count as right."""
    ended = faults.Ended(0, "", "")
    wanted = faults.results(workspace, "finished")
    assert faults.classify(workspace, "finished", ended, wanted, []) == faults.RIGHT
    assert faults.classify(workspace, "finished", ended, wanted | {"perplexity": []}, []) == faults.MIXTURE
    assert faults.classify(workspace, "finished", faults.Ended(1, "", "Traceback"), wanted, []) == faults.TRACEBACK
