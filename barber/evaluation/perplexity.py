"""Perplexity as the papers define it, as a stream of events."""

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
from barber.models.products import fast_products
from barber.pruning.activations import ActivationStream
from barber.pruning.context import PruningContext

LOGITS_BYTES = 2**28  # limit for the fp32 logits of one batch; larger batches are not faster
EVALUATION_BATCH_TOKENS = 8192  # limit for one batch; a run can be stopped between two batches
MAX_LOSS = 709  # nats; exp of a larger number overflows a float

NORMAL_95 = 1.96  # 95 % of a normal distribution is within this many standard errors of its mean


def perplexity(model, data: EvaluationSet, stage: str) -> Iterator[Event]:
    """Measure the token-level perplexity of `model` on `data`.

    Yields Progress for each batch of windows, then PerplexityMeasured. If the perplexity is not finite, a Notice with
    the cause precedes it.

    Perplexity is exp of the mean loss of the windows; the loss of a window is the mean fp32 cross-entropy (nats) of its
    seqlen - 1 predictions. All windows have equal weight, as in the evaluations of SparseGPT and Wanda. The perplexity
    is inf, never NaN, if exp of the loss overflows or the logits are not finite: inf compares as worse than every
    finite perplexity, and Python's JSON can represent it (as Infinity).
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
    """Measure the same perplexity as `perplexity` for a model whose layers are loaded one at a time.

    state: function from a layer's index to its masks and values at the stage; None for dense weights.
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
    """Raise UserError unless there is at least one window of at least two tokens."""
    if data.tokens.dim() != 2 or len(data.tokens) < 1 or data.tokens.shape[1] < 2:
        raise UserError(
            f"{data.dataset} gives token windows of shape {tuple(data.tokens.shape)}, but perplexity needs at least "
            "one window of 2 tokens or more: give more text."
        )


def windows_at_once(model, data: EvaluationSet) -> int:
    """Return the number of windows in one batch."""
    seqlen = data.tokens.shape[1]
    return max(1, min(EVALUATION_BATCH_TOKENS // seqlen, LOGITS_BYTES // (4 * seqlen * _vocabulary(model))))


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Return the mean fp32 cross-entropy (nats) of each window of (windows, seqlen) tokens."""
    # One window at a time: the fp32 copy of a large vocabulary's logits determines the peak memory.
    losses = [F.cross_entropy(row[:-1].float(), ids[1:]) for row, ids in zip(logits, tokens, strict=True)]
    return torch.stack(losses).tolist()


def measured(
    losses: list[float], data: EvaluationSet, stage: str, seconds: float, dtype: torch.dtype
) -> Iterator[Event]:
    """Yield the perplexity for the losses (nats) of windows, after a Notice with the cause if it is not finite."""
    windows, seqlen = data.tokens.shape
    value = _exp(sum(losses) / windows)
    low, high = interval(losses)
    if value == math.inf:
        yield Notice(f"The perplexity of the {stage} model on {data.dataset} is inf: {_cause(losses, dtype)}.")
    yield PerplexityMeasured(
        str(stage), data.dataset, seqlen, windows * seqlen, value, seconds, str(data.window_start), low, high, losses
    )


def interval(losses: list[float]) -> tuple[float | None, float | None]:
    """Return the 95 % confidence interval of the perplexity: exp of (mean window loss -/+ 1.96 standard errors).

    It estimates, by the normal approximation, how much the perplexity varies between samples of windows of the same
    text. The losses of two models on the same windows are correlated, so the difference of their perplexities is more
    certain than their intervals suggest. Returns (None, None) for a single window and for losses that are not finite.
    """
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return None, None
    mean, error = statistics.fmean(losses), statistics.stdev(losses) / math.sqrt(len(losses))
    return _exp(mean - NORMAL_95 * error), _exp(mean + NORMAL_95 * error)


def rose(before: PerplexityMeasured, after: PerplexityMeasured) -> bool:
    """Return whether a perplexity is higher than an earlier one on the same windows, by more than chance explains.

    The losses are compared window by window: their mean difference has to exceed 1.96 of its standard errors. For
    events without the losses, the later perplexity has to exceed the earlier one's 95 % interval; for a single window,
    the earlier perplexity.
    """
    if not after.perplexity > before.perplexity:
        return False
    if len(before.losses) == len(after.losses) > 1 and all(map(math.isfinite, (*before.losses, *after.losses))):
        rises = [later - earlier for earlier, later in zip(before.losses, after.losses, strict=True)]
        return statistics.fmean(rises) > NORMAL_95 * statistics.stdev(rises) / math.sqrt(len(rises))
    return before.high is None or after.perplexity > before.high


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < MAX_LOSS else math.inf  # NaN < MAX_LOSS is False, so NaN gives inf


def _cause(losses: list[float], dtype: torch.dtype) -> str:
    """Return why a perplexity is not finite, and how to fix it if that is possible."""
    broken = sum(not math.isfinite(loss) for loss in losses)
    if not broken:
        return f"a mean loss of {statistics.fmean(losses):.0f} nats overflows exp"
    found = f"the model's output is not finite in {broken} of {len(losses)} windows"
    return f"{found}, float16 overflows; give --dtype bfloat16 or float32" if dtype == torch.float16 else found


@torch.no_grad()
def _window_losses(model, tokens: torch.Tensor) -> list[float]:
    tokens = tokens.to(model.device)
    with eval_mode(model), fast_products(model.device, model.dtype):
        return losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)


def _vocabulary(model) -> int:
    return model.config.get_text_config().vocab_size
