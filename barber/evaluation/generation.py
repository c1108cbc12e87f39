"""Text continued from a prompt, as a stream of events."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from barber.data.sources import tokenise
from barber.errors import UserError
from barber.events import Event, TextGenerated
from barber.models.modes import eval_mode

TOKENS_PER_EVENT = 4
CHARACTERS_PER_TOKEN = 32  # on average no text has more


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


@torch.no_grad()
def _next_token(model, ids: list[int], cache, temperature: float, generator: torch.Generator):
    """The id that follows `ids` and the cache that now covers them; without a cache the whole of `ids` is read.

    A broken model's NaN counts as 0 and its infinities as the largest numbers: it writes noise, it does not crash.
    """
    device = model.device
    new = torch.tensor([ids if cache is None else ids[-1:]], device=device)
    seen = torch.ones(1, len(ids), dtype=torch.long, device=device)
    with eval_mode(model):
        output = model(input_ids=new, attention_mask=seen, cache=cache, use_cache=True)
    logits = output.logits[0, -1].float().cpu().nan_to_num()
    if temperature == 0:
        return int(logits.argmax()), output.cache
    chances = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=generator)), output.cache


def check_prompt(model, tokenizer, prompt: str) -> list[int]:
    """The prompt's token ids; UserError if the model cannot continue them."""
    positions, known = _positions(model), model.get_input_embeddings().num_embeddings
    if positions is not None and len(prompt) > CHARACTERS_PER_TOKEN * positions:  # before they are read as tokens
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
