"""Perplexity as the papers define it, and text, both as streams of events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import wraps

import torch
import torch.nn.functional as F

from barber.calibration import EvaluationSet
from barber.data import tokenise
from barber.errors import UserError
from barber.events import Event, PerplexityMeasured, Progress, TextGenerated
from barber.execution import Execution
from barber.refine import State
from barber.stream import Stream

LOGITS_BYTES = 2**28  # of one batch's logits, in fp32; larger batches gain nothing
BATCH_TOKENS = 8192  # of one batch, so that a run can be stopped soon
MAX_LOSS = 709  # nats; exp of more is beyond a float
TOKENS_PER_EVENT = 4


def perplexity(model, data: EvaluationSet, stage: str) -> Iterator[Event]:
    """Token-level perplexity of `model` on `data`: Progress for each batch of windows, then PerplexityMeasured.

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
    yield measured(losses, data, stage, time.perf_counter() - started)


def perplexity_by_layer(
    execution: Execution, data: EvaluationSet, stage: str, state: Callable[[int], State] | None
) -> Iterator[Event]:
    """As `perplexity`, of a model whose layers are borrowed one at a time.

    state: layer -> its masks and values at the stage; None for dense weights.
    """
    check_windows(data)
    started, view, home = time.perf_counter(), execution.view, execution.home
    stream = Stream(view.model, [layer.module for layer in view.layers], execution.place, home.open)
    for batch in data.tokens.split(windows_at_once(view.model, data)):
        stream.feed(batch)
    yield Progress(f"perplexity {stage}", 0, len(view.layers), data.dataset)
    for layer in view.layers:
        home.open(layer.index)
        if state:
            masks, values = state(layer.index)
            layer.put(home.dense(layer.index, layer.weights), masks, values)
        for batch in range(len(stream)):
            stream.advance(layer, batch)
            yield Progress(f"perplexity {stage}", layer.index, len(view.layers), f"{data.dataset} layer {layer.index}")
        home.close(layer.index)
    losses = []
    for batch, tokens in enumerate(data.tokens.split(stream.sizes)):
        losses += losses_of(stream.logits(batch), tokens.to(home.device))
    yield Progress(f"perplexity {stage}", len(view.layers), len(view.layers), data.dataset)
    yield measured(losses, data, stage, time.perf_counter() - started)


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
    return max(1, min(BATCH_TOKENS // seqlen, LOGITS_BYTES // (4 * seqlen * _vocabulary(model))))


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Mean fp32 cross-entropy (nats) of each of (windows, seqlen) tokens."""
    # One window at a time: the fp32 copy of a large vocabulary's logits is the most memory that evaluation takes.
    losses = [F.cross_entropy(row[:-1].float(), ids[1:]) for row, ids in zip(logits, tokens, strict=True)]
    return torch.stack(losses).tolist()


def measured(losses: list[float], data: EvaluationSet, stage: str, seconds: float) -> PerplexityMeasured:
    """The perplexity of windows with these losses."""
    windows, seqlen = data.tokens.shape
    loss = sum(losses) / windows
    value = math.exp(loss) if loss < MAX_LOSS else math.inf  # NaN is not less than anything
    return PerplexityMeasured(str(stage), data.dataset, seqlen, windows * seqlen, value, seconds)


def generate(
    model,
    tokenizer,
    prompt: str,
    stage: str,
    *,
    max_new_tokens: int = 120,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Event]:
    """Continue `prompt`: TextGenerated every few tokens, with all the text so far, the last with done=True.

    Greedy at temperature 0, else sampled from softmax(logits / temperature) with a generator of its own, so that the
    same seed gives each model the same chances. Stops at the end-of-text token, at `max_new_tokens`, at the model's
    last position, or when the consumer stops iterating. An empty prompt starts from the beginning-of-text token.
    """
    if tokenizer is None:
        raise UserError("The model has no tokenizer, which writing text needs: add the tokenizer to its folder.")
    if max_new_tokens < 1:
        raise UserError(f"Number of new tokens {max_new_tokens} is not allowed: give 1 or more.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(
            f"Temperature {temperature:g} is not allowed: give 0 for greedy text or a positive number like 0.8."
        )
    ids = check_prompt(model, tokenizer, prompt)
    positions = _positions(model)
    room = max_new_tokens if positions is None else min(max_new_tokens, positions - len(ids))
    ends = _end_tokens(model, tokenizer)
    generator = torch.Generator().manual_seed(seed % 2**63)
    given = _decode(tokenizer, ids)
    cache, unseen = None, 0
    for _ in range(room):
        token, cache = _next_token(model, ids, cache, temperature, generator)
        if token in ends:
            break
        ids.append(token)
        unseen += 1
        if unseen >= TOKENS_PER_EVENT:
            text = _decode(tokenizer, ids)[len(given) :]
            if not text.endswith("\ufffd"):  # a character of several tokens that is not complete yet
                yield TextGenerated(str(stage), prompt, text, done=False)
                unseen = 0
    yield TextGenerated(str(stage), prompt, _decode(tokenizer, ids)[len(given) :], done=True)


def _evaluating(function):
    """Call `function(model, ...)` in eval mode and without gradients; each module keeps its own training flag."""

    @wraps(function)
    @torch.no_grad()
    def call(model, *args):
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return function(model, *args)
        finally:
            for module, flag in flags:
                module.training = flag

    return call


@_evaluating
def _window_losses(model, tokens: torch.Tensor) -> list[float]:
    tokens = tokens.to(model.device)
    return losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)


@_evaluating
def _next_token(model, ids: list[int], cache, temperature: float, generator: torch.Generator):
    """The id that follows `ids` and the cache that now covers them; without a cache the whole of `ids` is read.

    A broken model's NaN counts as 0 and its infinities as the largest numbers: it writes noise, it does not crash.
    """
    device = model.device
    new = torch.tensor([ids if cache is None else ids[-1:]], device=device)
    seen = torch.ones(1, len(ids), dtype=torch.long, device=device)
    output = model(input_ids=new, attention_mask=seen, cache=cache, use_cache=True)
    logits = output.logits[0, -1].float().cpu().nan_to_num()
    if temperature == 0:
        return int(logits.argmax()), output.cache
    chances = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator)), output.cache


def check_prompt(model, tokenizer, prompt: str) -> list[int]:
    """The prompt's token ids; UserError if the model cannot continue them."""
    ids = _prompt_ids(tokenizer, prompt)
    positions, known = _positions(model), model.get_input_embeddings().num_embeddings
    if positions is not None and len(ids) >= positions:
        raise UserError(f"The prompt has {len(ids)} tokens, but the model has room for {positions - 1}: shorten it.")
    if max(ids) >= known:
        raise UserError(
            f"The prompt's token id {max(ids)} is beyond the {known} of the model: give the model its own tokenizer."
        )
    return ids


def _positions(model) -> int | None:
    """How many positions the model has, or None for no limit (BLOOM)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _prompt_ids(tokenizer, prompt: str) -> list[int]:
    ids = list(tokenise(tokenizer, prompt))
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text, but this one is to go on
        ids.pop()
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise UserError("The prompt is empty and the tokenizer has no token to begin with: write a prompt.")
    return ids or [start]


def _end_tokens(model, tokenizer) -> set[int | None]:
    ends = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _vocabulary(model) -> int:
    return model.config.get_text_config().vocab_size
