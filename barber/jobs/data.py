"""The data of a job: the sequence length, the calibration and evaluation sets, and the check of their token ids."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Any

import torch

from barber.data.token_sets import CalibrationSet, EvaluationSet, Reading, cut_evaluation, draw_calibration
from barber.data.windows import first_token
from barber.errors import UserError
from barber.evaluation.self_calibration import sample_calibration
from barber.events import Event, Notice
from barber.job_spec import JobSpec
from barber.models.loading import LoadedModel
from barber.registry import SELF

DEFAULT_SEQLEN = 2048  # as published, where the model has that many positions


def choose_seqlen(seqlen: int | None, loaded: LoadedModel) -> tuple[int, Notice | None]:
    """Return the sequence length, and a notice if the model has fewer positions than the default length.

    Raises UserError if the length exceeds the positions of the model.
    """
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


def load_data(
    spec: JobSpec, loaded: LoadedModel, seqlen: int
) -> Generator[Event, None, tuple[CalibrationSet | None, list[EvaluationSet]]]:
    """Return the calibration set, if the job needs one, and the evaluation sets, with token ids of the vocabulary.

    Yields Progress and Notice. If default evaluation data cannot be loaded, a Notice states the reason, unless
    perplexity on these data is all that the job computes: then UserError is raised.
    """
    first = first_token(loaded.tokenizer, spec.window_start)
    reading = Reading(loaded.tokenizer, seqlen, first, spec.text_field, spec.datasets_cache_dir)
    calibration = None
    if spec.prune and spec.prune.needs_calibration:
        if spec.calibration == SELF:
            calibration = yield from sample_calibration(
                loaded.model, loaded.tokenizer, spec.nsamples, seqlen, spec.seed, first
            )
        else:
            calibration = yield from draw_calibration(
                spec.calibration, reading, spec.nsamples, spec.seed, spec.evaluation
            )
        check_vocabulary(loaded, [(spec.calibration, calibration.tokens)])
    evaluations: dict[str, EvaluationSet] = {}
    for source in dict.fromkeys(spec.evaluation):
        other = spec.calibration if calibration else None
        try:
            data = yield from cut_evaluation(source, reading, spec.eval_windows, other)
            check_vocabulary(loaded, [(data.dataset, data.tokens)])
        except UserError as error:
            if spec.evaluation_required or (spec.prune is None and len(spec.evaluation) == 1):
                raise
            yield Notice(f"Perplexity is not measured on {source}: {error}")
        else:
            evaluations[source] = data
    if spec.prune is None and spec.evaluation and not evaluations:
        raise UserError(
            f"None of {', '.join(spec.evaluation)} can be loaded, and the job does nothing else: give --eval_data."
        )
    return calibration, _distinct(evaluations)


def _distinct(evaluations: dict[str, EvaluationSet]) -> list[EvaluationSet]:
    """Return the evaluation sets with unique names: the path is added to the names of files with equal names."""
    names = [data.dataset for data in evaluations.values()]
    return [
        replace(data, dataset=f"{spec}: {data.dataset}") if names.count(data.dataset) > 1 else data
        for spec, data in evaluations.items()
    ]


def check_vocabulary(loaded: LoadedModel, sets: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise UserError if a token id exceeds the model's embedding, as with ids of another tokenizer."""
    embedding: Any = loaded.model.get_input_embeddings()
    size = embedding.num_embeddings
    for source, tokens in sets:
        if tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"{source} holds token id {int(tokens.max())}, but {loaded.name} has {size} tokens: give ids "
                "made with this model's tokenizer."
            )
