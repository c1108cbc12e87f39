"""The training recipe of the bundled model, as a stream of steps."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from barber.errors import UserError
from barber.storyteller import documents
from barber.storyteller.tokens import token_stream
from barber.storyteller.world import KNOWLEDGE, world

CHUNK = 5000  # stories generated from one seed


@dataclass(frozen=True)
class CurriculumStage:
    """One stage of the training run.

    A model learns far sooner to copy facts of the story if its windows begin with a story. It learns to copy rare facts
    only at lower learning rates, and sooner with emphasis.

    Attributes:
        until: share of the run at which the stage ends.
        seqlen: tokens of a window.
        whole: whether each window begins at the beginning of a story. Otherwise windows begin anywhere, as in
            `measure.window_perplexity`, and one batch in sixteen has windows of twice the length.
        matrix_rate: peak learning rate of Muon, for the matrices of the decoder layers.
        rate: peak learning rate of AdamW, for all other parameters.
        emphasis: additional weight in the loss of a name that the window already contains.
        restart: whether the stage begins with `spread_embeddings`, new optimisers and a new warm-up.
    """

    until: float
    seqlen: int
    whole: bool
    matrix_rate: float = 0.02
    rate: float = 4e-3
    emphasis: float = 0.0
    restart: bool = False


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of the bundled model.

    Attributes:
        hidden: width of the hidden state.
        layers: decoder layers.
        heads: attention heads.
        intermediate: width of the MLP.
        positions: position embeddings, the maximum sequence length.
        spread: standard deviation of the initial embeddings.
        stories: number of training stories, generated once; training runs several epochs over them.
        curriculum: stages of the run, in order.
        batch_tokens: tokens of a step.
        warmup: steps of the learning rate's linear warm-up.
        decay: share of the stages between two restarts over which the learning rates fall to zero.
        averaged: share of the run, at its end, over which the weights are averaged.
        minutes: training time; the run ends at this limit or at `steps`, whichever comes first.
        steps: optimiser steps at most.
        seed: of the stories, the initial weights and the batches.
        device: to train on.
        compile: whether to compile the loss with torch.compile.
    """

    hidden: int = 64
    layers: int = 5
    heads: int = 2
    intermediate: int = 192
    positions: int = 512
    spread: float = 0.2
    stories: int = 200_000
    curriculum: tuple[CurriculumStage, ...] = (
        CurriculumStage(until=0.20, seqlen=128, whole=True),
        CurriculumStage(until=0.28, seqlen=256, whole=False),
        CurriculumStage(until=0.36, seqlen=192, whole=True),
        CurriculumStage(until=0.47, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3),
        CurriculumStage(until=0.59, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3, emphasis=5.0),
        CurriculumStage(until=0.85, seqlen=256, whole=False, matrix_rate=0.006, rate=2e-3, emphasis=1.0),
        CurriculumStage(until=0.93, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3, emphasis=5.0, restart=True),
        CurriculumStage(until=1.0, seqlen=256, whole=False, matrix_rate=0.006, rate=2e-3, emphasis=1.0),
    )
    batch_tokens: int = 4096
    warmup: int = 100
    decay: float = 0.3
    averaged: float = 0.03
    minutes: float = 90.0
    steps: int = 10**9
    seed: int = 0
    device: str = "cpu"
    compile: bool = True

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.steps < 1:
            raise UserError(
                f"Training was given {self.minutes} minutes and {self.steps} steps; both must be above zero: give more."
            )


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number, tokens seen so far, mean loss (nats per token) and seconds since the start."""

    step: int
    tokens: int
    loss: float
    seconds: float


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings, fp32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=recipe.spread)
    return model


def training_tokens(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """The token stream of the training stories, (tokens,) uint16."""
    seeds = range(1000 * recipe.seed, 1000 * recipe.seed + math.ceil(recipe.stories / CHUNK))
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(_chunk, seeds, [tokenizer] * len(seeds))))


def _chunk(seed: int, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return token_stream(tokenizer, documents("train", CHUNK, seed))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray, recipe: Recipe
) -> Iterator[Step]:
    """Train `model` in place on `tokens` (tokens,), and yield after each step; the last weights are the averaged ones.

    A consumer that closes the generator stops the run with the weights of that step.
    Raises UserError if this version of torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"Training was given torch {torch.__version__}, but needs 2.9 or later: upgrade torch.")
    device = torch.device(recipe.device)
    model.to(device).train()  # type: ignore[arg-type]  # transformers wraps `to` without its self
    if device.type == "cpu":
        model.set_attn_implementation(
            "eager"
        )  # compiled, it is faster there than the fused kernel for such small heads
    optimisers = _optimisers(model)
    mean = AveragedModel(model)
    forward = torch.compile(_loss, dynamic=False) if recipe.compile else _loss
    rng = np.random.default_rng(recipe.seed)
    names = name_tokens(tokenizer).to(device)
    begins = np.flatnonzero(tokens == model.config.bos_token_id)
    seen, first, last, begun = 0, 0, None, time.monotonic()
    for step in range(recipe.steps):
        progress = max(step / recipe.steps, (time.monotonic() - begun) / (60 * recipe.minutes))
        if progress >= 1:
            break
        stage = next(stage for stage in recipe.curriculum if progress < stage.until)
        if stage.restart and stage is not last:
            spread_embeddings(model, tokenizer)
            optimisers, first = _optimisers(model), step
        last = stage
        begin, end = _cycle(recipe, progress)
        scale = min(1.0, (step + 1 - first) / recipe.warmup, (end - progress) / (recipe.decay * (end - begin)))
        for optimiser, peak in zip(optimisers, (stage.matrix_rate, stage.rate), strict=True):
            optimiser.param_groups[0]["lr"] = peak * scale
        seqlen = stage.seqlen if stage.whole or step % 16 else 2 * stage.seqlen
        places = begins[begins < len(tokens) - seqlen] if stage.whole else len(tokens) - seqlen
        batch = windows(tokens, rng.choice(places, recipe.batch_tokens // seqlen), seqlen).to(device)
        loss = forward(model, batch, names, stage.emphasis)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if progress >= 1 - recipe.averaged:
            mean.update_parameters(model)
        seen += batch[:, 1:].numel()
        yield Step(step + 1, seen, loss.item(), time.monotonic() - begun)
    if mean.n_averaged:
        model.load_state_dict(mean.module.state_dict())


@torch.no_grad()
def spread_embeddings(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Draw the embeddings of names without facts (places, days, ...) again, as far apart as those of names with facts.

    The stories draw such names uniformly and independently of everything else, so training makes their embeddings
    nearly equal, until the model can no longer copy them from one sentence to a later one. Each kind keeps its mean
    embedding. Colours are not changed: they are facts of persons.
    """
    embeddings = model.model.embed_tokens.weight
    first = {kind: name_ids(tokenizer, kind) for kind in world()}
    known = embeddings[[token for kind in KNOWLEDGE for token in first[kind]]]
    size = (known - known.mean(0)).square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    for kind in sorted(first.keys() - KNOWLEDGE.keys() - {"colour"}):
        rows = embeddings[first[kind]]
        embeddings[first[kind]] = rows.mean(0) + size * torch.randn(rows.shape, generator=generator).to(rows)


def name_ids(tokenizer: PreTrainedTokenizerFast, kind: str) -> list[int]:
    """The first token ids of the names of a kind, sorted."""
    return sorted({tokenizer(entity.name, add_special_tokens=False)["input_ids"][0] for entity in world()[kind]})


def _cycle(recipe: Recipe, progress: float) -> tuple[float, float]:
    """The shares of the run at which the learning-rate cycle around `progress` begins and ends."""
    bounds = [0.0, *(before.until for before, stage in pairwise(recipe.curriculum) if stage.restart), 1.0]
    return next((begin, end) for begin, end in pairwise(bounds) if progress < end)


def windows(tokens: np.ndarray, starts: np.ndarray, seqlen: int) -> Tensor:
    """The windows of the stream that begin at `starts`, each with the token after it: (windows, seqlen + 1) int64."""
    return torch.from_numpy(tokens[starts[:, None] + np.arange(seqlen + 1)].astype(np.int64))


def name_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """A boolean mask (vocabulary,) of the tokens that a name of an entity begins with."""
    chosen = torch.zeros(len(tokenizer), dtype=torch.bool)
    chosen[[token for kind in world() for token in name_ids(tokenizer, kind)]] = True
    return chosen


def _loss(model: LlamaForCausalLM, batch: Tensor, names: Tensor, emphasis: float) -> Tensor:
    """Mean loss (nats per token) of windows (batch, seqlen + 1); a repeated name has the weight 1 + `emphasis`."""
    inputs, targets = batch[:, :-1], batch[:, 1:]
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    if not emphasis:
        return losses.mean()
    repeated = (targets[:, :, None] == inputs[:, None, :]).tril().any(-1) & names[targets]
    weights = 1 + emphasis * repeated.flatten()
    return (losses * weights).sum() / weights.sum()


def _optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder layers, AdamW for embeddings and norms; `train` sets the learning rates."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
