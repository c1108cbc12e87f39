"""Evaluate a model on stories: perplexity, best possible perplexity, consistency of stories; magnitude pruning."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from barber.storyteller import documents
from barber.storyteller.check import check
from barber.storyteller.stories import Story
from barber.storyteller.tokens import token_stream

BATCH = 32  # stories in one batch
LONGEST = 320  # maximum number of tokens of a generated story


def best_perplexity(tokenizer: PreTrainedTokenizerFast, stories: Sequence[Story]) -> float:
    """Return the perplexity per token of the generator on its stories, with EOS (whose probability is 1)."""
    predicted = sum(len(ids) for ids in tokenizer([story.text for story in stories])["input_ids"])
    return math.exp(-sum(story.logprob for story in stories) / predicted)


@torch.no_grad()
def story_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Return the perplexity per token of whole stories, each from its BOS to its EOS, with the loss in fp32."""
    total, count = 0.0, 0
    for start in range(0, len(texts), BATCH):
        rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts[start : start + BATCH]))["input_ids"]]
        tokens, mask = _pad(rows, tokenizer.eos_token_id, model.device)
        losses = _losses(model, tokens)
        total += losses[mask[:, 1:]].double().sum().item()
        count += int(mask[:, 1:].sum())
    return math.exp(total / count)


@torch.no_grad()
def window_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], seqlen: int = 256
) -> float:
    """Return the perplexity per token of windows of `seqlen` tokens of the concatenated stories, fp32 loss."""
    stream = torch.from_numpy(token_stream(tokenizer, texts).astype("int64"))
    windows = stream[: len(stream) // seqlen * seqlen].view(-1, seqlen).to(model.device)
    return math.exp(
        sum(_losses(model, batch).double().sum().item() for batch in windows.split(BATCH)) / windows[:, 1:].numel()
    )


@dataclass(frozen=True)
class Telling:
    """A story that a model generated from a prompt, and the kind of its first error (None if it is consistent)."""

    text: str
    error: str | None


@torch.no_grad()
def tell_greedily(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int = 0
) -> list[Telling]:
    """Continue the first `count` documents of the split "prompts" greedily to EOS, and check each story."""
    tellings = []
    prompts = documents("prompts", count, seed)
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt").to(model.device)
        told = model.generate(
            **tokens, do_sample=False, max_length=LONGEST, max_new_tokens=None, pad_token_id=tokenizer.pad_token_id
        )
        text = str(tokenizer.decode(told[0], skip_special_tokens=True)).strip()
        tellings.append(Telling(text, check(text).error))
    return tellings


@torch.no_grad()
def prune_by_magnitude(
    model: LlamaForCausalLM, share: float | None = None, n_of_m: tuple[int, int] | None = None
) -> None:
    """Set the weights of smallest magnitude of each linear of the decoder layers to zero, in place.

    Pass either `share`, the sparsity of each matrix, or `n_of_m`: n pruned weights of every m consecutive inputs.
    """
    for linear in (module for module in model.model.layers.modules() if isinstance(module, nn.Linear)):
        n, m = n_of_m or (int(share * linear.weight.numel()), linear.weight.numel())
        groups = linear.weight.data.view(-1, m)
        groups.scatter_(1, groups.abs().argsort(dim=1)[:, :n], 0.0)


def _losses(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the negative log-probability (nats) of each token except the first, (batch, seqlen - 1) fp32."""
    logits = model(input_ids=tokens).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def _pad(rows: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right; return tokens (batch, longest) and a bool mask, True for tokens that are not padding."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    return tokens.to(device), (torch.arange(longest) < lengths[:, None]).to(device)
