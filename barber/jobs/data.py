"""The data of a job: how long its sequences are, where they come from, whether they fit the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from barber.data.token_sets import CalibrationSet, EvaluationSet, load_calibration, load_evaluation
from barber.errors import UserError
from barber.events import Notice
from barber.job_spec import JobSpec
from barber.models.loading import LoadedModel
from barber.pruning.initial_masks import needs_calibration

DEFAULT_SEQLEN = 2048  # as published, where the model has that many positions


def choose_seqlen(seqlen: int | None, loaded: LoadedModel) -> tuple[int, Notice | None]:
    """The sequence length to use, and a notice where the default had to bend; UserError for one beyond the model's."""
    if seqlen is not None and seqlen > loaded.max_seqlen:
        raise UserError(
            f"Sequence length {seqlen} is beyond the {loaded.max_seqlen} positions of {loaded.name}: make it shorter."
        )
    if seqlen is None and loaded.max_seqlen < DEFAULT_SEQLEN:
        message = (
            f"Sequence length {loaded.max_seqlen}: the published default is {DEFAULT_SEQLEN}, the model has no more."
        )
        return loaded.max_seqlen, Notice(message)
    return DEFAULT_SEQLEN if seqlen is None else seqlen, None


def load_data(spec: JobSpec, loaded: LoadedModel, seqlen: int) -> tuple[CalibrationSet | None, list[EvaluationSet]]:
    """The calibration set, if the job needs one, and the evaluation sets, all of tokens that the model knows."""
    calibration = None
    if spec.prune and needs_calibration(spec.prune):
        calibration = load_calibration(
            spec.calibration,
            loaded.tokenizer,
            spec.nsamples,
            seqlen,
            spec.seed,
            evaluation=spec.evaluation,
            cache_dir=spec.datasets_cache_dir,
        )
    evaluations = [
        load_evaluation(
            source,
            loaded.tokenizer,
            seqlen,
            calibration=spec.calibration if calibration else None,
            windows=spec.eval_windows,
            cache_dir=spec.datasets_cache_dir,
        )
        for source in dict.fromkeys(spec.evaluation)
    ]
    sets = [(spec.calibration, calibration.tokens)] if calibration else []
    evaluations = _distinct(evaluations, spec.evaluation)
    check_vocabulary(loaded, [*sets, *((data.dataset, data.tokens) for data in evaluations)])
    return calibration, evaluations


def _distinct(evaluations: list[EvaluationSet], specs: Iterable[str]) -> list[EvaluationSet]:
    """Data sets with names of their own: files of one name are told apart by their whole path."""
    names = [data.dataset for data in evaluations]
    return [
        replace(data, dataset=f"{spec}: {data.dataset}") if names.count(data.dataset) > 1 else data
        for data, spec in zip(evaluations, dict.fromkeys(specs), strict=True)
    ]


def check_vocabulary(loaded: LoadedModel, sets: Iterable[tuple[str, torch.Tensor]]) -> None:
    """UserError if any token id is beyond the model's embedding, as ids made with another tokenizer are."""
    embedding: Any = loaded.model.get_input_embeddings()
    size = embedding.num_embeddings
    for source, tokens in sets:
        if tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"{source} holds token id {int(tokens.max())}, but {loaded.name} knows {size} tokens: give ids "
                "made with this model's tokenizer."
            )
