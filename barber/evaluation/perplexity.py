"""Perplexity as the papers define it, and text, both as streams of events."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from barber.data.token_sets import EvaluationSet
from barber.errors import UserError
from barber.events import Event, Notice, PerplexityMeasured, Progress
from barber.models.decoder import State
from barber.models.modes import eval_mode
from barber.pruning.activations import ActivationStream
from barber.pruning.context import PruningContext

LOGITS_BYTES = 2**28  # of one batch's logits, in fp32; larger batches gain nothing
EVALUATION_BATCH_TOKENS = 8192  # of one batch, so that a run can be stopped soon
MAX_LOSS = 709  # nats; exp of more is beyond a float

NORMAL_95 = 1.96  # standard errors on either side of a mean hold 95 % of a normal distribution


def perplexity(model, data: EvaluationSet, stage: str) -> Iterator[Event]:
    """Token-level perplexity of `model` on `data`: Progress for each batch of windows, then PerplexityMeasured,
    with a Notice of the cause before it where it is not finite.

    exp of the mean of the windows' losses; a window's loss is the mean fp32 cross-entropy (nats) of its seqlen - 1
    predictions. As published: SparseGPT's and Wanda's evaluation, too, weighs windows equally. A loss beyond exp's
    range and a model whose logits are not finite give inf, never NaN: such a model predicts nothing, inf compares as
    the worst that it is, and Python's JSON keeps it (as Infinity).
    """
    check_windows(data)
    started = time.perf_counter()
    losses: list[float] = []
    yield Progress(f"perplexity {stage}", 0, len(data.tokens), data.dataset)
    for batch in data.tokens.split(windows_at_once(model, data)):
        losses += _window_losses(model, batch)
        yield Progress(f"perplexity {stage}", len(losses), len(data.tokens), data.dataset)
    yield from measured(losses, data, stage, time.perf_counter() - started, model.dtype)


def perplexity_by_layer(
    context: PruningContext, data: EvaluationSet, stage: str, state: Callable[[int], State] | None
) -> Iterator[Event]:
    """As `perplexity`, of a model whose layers are loaded one at a time.

    state: layer -> its masks and values at the stage; None for dense weights.
    """
    check_windows(data)
    started, view, provider = time.perf_counter(), context.view, context.provider
    stream = ActivationStream(view.model, [layer.module for layer in view.layers], context.store, provider.open)
    for batch in data.tokens.split(windows_at_once(view.model, data)):
        stream.feed(batch)
    yield Progress(f"perplexity {stage}", 0, len(view.layers), data.dataset)
    for layer in view.layers:
        provider.open(layer.index)
        if state:
            masks, values = state(layer.index)
            layer.assign(provider.dense(layer.index, layer.weights), masks, values)
        for batch in range(len(stream)):
            stream.advance(layer, batch)
            yield Progress(f"perplexity {stage}", layer.index, len(view.layers), f"{data.dataset} layer {layer.index}")
        provider.close(layer.index)
    losses = []
    for batch, tokens in enumerate(data.tokens.split(stream.sizes)):
        losses += losses_of(stream.logits(batch), tokens.to(provider.device))
    yield Progress(f"perplexity {stage}", len(view.layers), len(view.layers), data.dataset)
    yield from measured(losses, data, stage, time.perf_counter() - started, view.dtype)


def check_windows(data: EvaluationSet) -> None:
    """UserError unless there is a window of two tokens."""
    if data.tokens.dim() != 2 or len(data.tokens) < 1 or data.tokens.shape[1] < 2:
        raise UserError(
            f"{data.dataset} gives token windows of shape {tuple(data.tokens.shape)}, but perplexity needs at least "
            "one window of 2 tokens or more: give more text."
        )


def windows_at_once(model, data: EvaluationSet) -> int:
    """How many windows go through the model together."""
    seqlen = data.tokens.shape[1]
    return max(1, min(EVALUATION_BATCH_TOKENS // seqlen, LOGITS_BYTES // (4 * seqlen * _vocabulary(model))))


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Mean fp32 cross-entropy (nats) of each of (windows, seqlen) tokens."""
    # One window at a time: the fp32 copy of a large vocabulary's logits is the most memory that evaluation takes.
    losses = [F.cross_entropy(row[:-1].float(), ids[1:]) for row, ids in zip(logits, tokens, strict=True)]
    return torch.stack(losses).tolist()


def measured(
    losses: list[float], data: EvaluationSet, stage: str, seconds: float, dtype: torch.dtype
) -> Iterator[Event]:
    """The perplexity of windows with these losses (nats); the cause before it, where it is not finite."""
    windows, seqlen = data.tokens.shape
    value = _exp(sum(losses) / windows)
    low, high = interval(losses)
    if value == math.inf:
        yield Notice(f"The perplexity of the {stage} model on {data.dataset} is inf: {_cause(losses, dtype)}.")
    yield PerplexityMeasured(
        str(stage), data.dataset, seqlen, windows * seqlen, value, seconds, str(data.window_start), low, high
    )


def interval(losses: list[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the perplexity: exp of the windows' mean loss, 1.96 standard errors down and up.

    It tells how far other windows of the same text would take the figure, by the normal approximation. Models that are
    measured on the same windows share most of that spread, so their difference is surer than their intervals say.
    None, None for a single window and for losses that are not finite.
    """
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return None, None
    mean, error = statistics.fmean(losses), statistics.stdev(losses) / math.sqrt(len(losses))
    return _exp(mean - NORMAL_95 * error), _exp(mean + NORMAL_95 * error)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < MAX_LOSS else math.inf  # NaN is not less than anything


def _cause(losses: list[float], dtype: torch.dtype) -> str:
    """Why a perplexity is not finite, and what to do where something can be done."""
    broken = sum(not math.isfinite(loss) for loss in losses)
    if not broken:
        return f"a mean loss of {statistics.fmean(losses):.0f} nats overflows exp"
    found = f"the model's output is not finite in {broken} of {len(losses)} windows"
    return f"{found}, float16 overflows; give --dtype bfloat16 or float32" if dtype == torch.float16 else found


@torch.no_grad()
def _window_losses(model, tokens: torch.Tensor) -> list[float]:
    tokens = tokens.to(model.device)
    with eval_mode(model):
        return losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)


def _vocabulary(model) -> int:
    return model.config.get_text_config().vocab_size
