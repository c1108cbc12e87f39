"""Generate text from a prompt, as a stream of events."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from barber.data.sources import tokenise
from barber.errors import UserError
from barber.events import Event, TextGenerated
from barber.models.modes import eval_mode

TOKENS_PER_EVENT = 4
CHARACTERS_PER_TOKEN = 32  # upper bound of the average in any text


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
    """Generate a continuation of `prompt`: yield TextGenerated, with the text so far, every few tokens.

    The last event has done=True. Decoding is greedy at temperature 0; otherwise tokens are sampled from
    softmax(logits / temperature). Each call has its own random generator, so every model that is given the same seed
    is sampled with the same random numbers. Generation ends at the end-of-text token, after `max_new_tokens`, at the
    model's last position, or when the consumer stops iterating. An empty prompt is replaced by the beginning-of-text
    token, or by the end-of-text token if the tokenizer has no beginning-of-text token.
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
    positions = _position_limit(model)
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
            if not text.endswith("\ufffd"):  # the last character consists of several tokens and is incomplete
                yield TextGenerated(str(stage), prompt, text, done=False)
                unseen = 0
    yield TextGenerated(str(stage), prompt, _decode(tokenizer, ids)[len(given) :], done=True)


def _next_token(model, ids: list[int], cache, temperature: float, generator: torch.Generator):
    """Return the token that follows `ids`, and the cache for `ids`."""
    logits, cache = next_logits(model, torch.tensor([ids]), cache)
    return int(logits.argmax()) if temperature == 0 else int(sample(logits / temperature, generator)), cache


@torch.no_grad()
def next_logits(model, ids: torch.Tensor, cache) -> tuple[torch.Tensor, Any]:
    """The logits of the token that follows `ids`, fp32 (batch, vocabulary) on the CPU, and the cache for `ids`.

    ids: (batch, length), of which the model has seen all but the last token if there is a cache, else none. NaN logits
    are replaced by 0 and infinite logits by the largest finite numbers, so that a damaged model generates random text
    instead of an error.
    """
    ids = ids.to(model.device)
    with eval_mode(model):
        new = ids if cache is None else ids[:, -1:]
        output = model(input_ids=new, attention_mask=torch.ones_like(ids), cache=cache, use_cache=True)
    return output.logits[:, -1].float().cpu().nan_to_num(), output.cache


def sample(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Tokens (batch,) sampled from the softmax of logits (batch, vocabulary)."""
    chances = torch.softmax(logits - logits.amax(-1, keepdim=True), dim=-1)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def check_prompt(model, tokenizer, prompt: str) -> list[int]:
    """Return the token ids of the prompt. Raises UserError if the model cannot process them."""
    positions, known = _position_limit(model), model.get_input_embeddings().num_embeddings
    if positions is not None and len(prompt) > CHARACTERS_PER_TOKEN * positions:  # before tokenisation
        raise UserError(
            f"The prompt has {len(prompt)} characters, but the model has room for {positions - 1} tokens: shorten it."
        )
    ids = _prompt_ids(tokenizer, prompt)
    if positions is not None and len(ids) >= positions:
        raise UserError(f"The prompt has {len(ids)} tokens, but the model has room for {positions - 1}: shorten it.")
    if max(ids) >= known:
        raise UserError(
            f"The prompt's token id {max(ids)} is beyond the {known} of the model: give the model its own tokenizer."
        )
    return ids


def _position_limit(model) -> int | None:
    """Return the number of positions of the model, or None if it has no limit (BLOOM)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _prompt_ids(tokenizer, prompt: str) -> list[int]:
    ids = list(tokenise(tokenizer, prompt))
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers append EOS to every text
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
