"""Calibration sequences that the model samples: their distribution, their first token, jobs and refusals."""

from __future__ import annotations

import pytest
import torch

from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import drain, load_calibration, load_evaluation
from barber.errors import UserError
from barber.evaluation.self_calibration import sample_calibration
from barber.events import RunFinished, RunStarted
from barber.job_spec import JobSpec
from barber.jobs.job import run_job
from tests.support.tiny import llama, tokenizer

BOS = 1


def sampled(samples: int = 40, seqlen: int = 48, seed: int = 0, first: int | None = BOS):
    return drain(sample_calibration(llama(), tokenizer(), samples, seqlen, seed, first)).tokens


@pytest.mark.parametrize("first", [BOS, None], ids=["with BOS", "without"])
@torch.no_grad()
def test_tokens_have_the_probabilities_of_the_model(first):
    """The mean log-probability of sampled tokens is the negative mean entropy, up to chance."""
    tokens = sampled(first=first)
    assert tokens.shape == (40, 48)
    if first is None:
        tokens = torch.cat([torch.full((40, 1), BOS), tokens], dim=1)
    assert bool((tokens[:, 0] == BOS).all())
    logs = llama()(tokens).logits[:, :-1].log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1)
    surprise = -logs.gather(2, tokens[:, 1:, None])[..., 0]
    error = (surprise - entropy).std() / surprise.numel() ** 0.5
    assert abs(surprise.mean() - entropy.mean()) < 4 * error
    assert error < 0.1 * (torch.tensor(float(logs.shape[-1])).log() - entropy.mean())


def test_the_seed_determines_the_sequences():
    first, again, other = sampled(3), sampled(3), sampled(3, seed=1)
    assert first.equal(again)
    assert not first.equal(other)
    assert len({tuple(row) for row in first.tolist()}) == 3


def test_sequences_may_have_as_many_tokens_as_the_model_has_positions():
    positions = llama().config.max_position_embeddings
    assert sampled(2, positions, first=None).shape == (2, positions)


def test_a_job_prunes_on_sequences_of_its_own():
    prune = PruneConfig(Sparsity(0.5), threshold=0.1)
    events = list(run_job(JobSpec(prune=prune, calibration="self", nsamples=4, seqlen=32, evaluation=())))
    (started,) = (event for event in events if isinstance(event, RunStarted))
    assert started.calibration["source"] == "self (sampled)"
    assert any(isinstance(event, RunFinished) for event in events)


def test_a_model_read_layer_by_layer_cannot_sample():
    job = JobSpec(prune=PruneConfig(Sparsity(0.5)), calibration="self", nsamples=2, seqlen=16, stream=True)
    with pytest.raises(UserError, match="read layer by layer"):
        list(run_job(job))


def test_it_is_calibration_of_jobs_only():
    with pytest.raises(UserError, match="which only a job has"):
        load_calibration("self", tokenizer(), 2, 16, seed=0)
    with pytest.raises(UserError, match="for calibration only"):
        load_evaluation("self", tokenizer(), 16)
    bare = tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(UserError, match="begins or ends a text"):
        drain(sample_calibration(llama(), bare, 2, 16, 0, None))
