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

CHUNK = 5000  # stories generated with one seed


@dataclass(frozen=True)
class CurriculumStage:
    """A stage of the training run.

    Models learn to repeat the facts of a story much earlier if each window starts at the start of a story. They learn
    to repeat rare facts only at lower learning rates, where there is less gradient noise, and earlier with `emphasis`.

    Attributes:
        until: the share of the run at which the stage ends.
        seqlen: tokens of a window.
        whole: whether windows start at the start of a story. Otherwise they start at any token, as in the perplexity on
            windows, and one batch in sixteen has windows of twice the length.
        matrix_rate: peak learning rate of Muon, which trains the matrices of the decoder layers.
        rate: peak learning rate of AdamW, which trains all other parameters.
        emphasis: additional weight in the loss of a name that occurs earlier in the window; other tokens have weight 1.
        apart: whether the stage starts with `spread_apart`, new optimisers and a new warm-up and decay of the rates.
    """

    until: float
    seqlen: int
    whole: bool
    matrix_rate: float = 0.02
    rate: float = 4e-3
    emphasis: float = 0.0
    apart: bool = False


@dataclass(frozen=True)
class Recipe:
    """The architecture and the training settings of the bundled model.

    Training ends after `minutes` or `steps`, whichever comes first; the learning rate decays to zero by then.
    """

    hidden: int = 64
    layers: int = 5
    heads: int = 2
    intermediate: int = 192
    positions: int = 512
    spread: float = 0.2  # standard deviation of the initial embeddings
    stories: int = 200_000  # generated before training, which uses them repeatedly
    curriculum: tuple[CurriculumStage, ...] = (
        CurriculumStage(until=0.20, seqlen=128, whole=True),
        CurriculumStage(until=0.28, seqlen=256, whole=False),
        CurriculumStage(until=0.36, seqlen=192, whole=True),
        CurriculumStage(until=0.47, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3),
        CurriculumStage(until=0.59, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3, emphasis=5.0),
        CurriculumStage(until=0.85, seqlen=256, whole=False, matrix_rate=0.006, rate=2e-3, emphasis=1.0),
        CurriculumStage(until=0.93, seqlen=192, whole=True, matrix_rate=0.006, rate=2e-3, emphasis=5.0, apart=True),
        CurriculumStage(until=1.0, seqlen=256, whole=False, matrix_rate=0.006, rate=2e-3, emphasis=1.0),
    )
    batch_tokens: int = 4096  # tokens of a training step
    warmup: int = 100  # steps
    decay: float = 0.3  # share of each learning-rate cycle over which the rates decay to zero
    averaged: float = 0.03  # last share of the run, over which the weights are averaged
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
    """One optimiser step: its number, total tokens so far, mean loss (nats per token) and seconds since the start."""

    step: int
    tokens: int
    loss: float
    seconds: float


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build a randomly initialised Llama with tied embeddings, fp32."""
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
    """Return the token ids of the concatenated training stories, (tokens,) uint16."""
    seeds = range(1000 * recipe.seed, 1000 * recipe.seed + math.ceil(recipe.stories / CHUNK))
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(_chunk, seeds, [tokenizer] * len(seeds))))


def _chunk(seed: int, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return token_stream(tokenizer, documents("train", CHUNK, seed))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray, recipe: Recipe
) -> Iterator[Step]:
    """Train `model` in place on `tokens` (tokens,) and yield after each step; at the end it has the averaged weights.

    If the consumer stops iterating earlier, the model has the weights of that step. Raises UserError if this version of
    torch does not have the optimiser Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"Training was given torch {torch.__version__}, but needs 2.9 or later: upgrade torch.")
    device = torch.device(recipe.device)
    model.to(device).train()  # type: ignore[arg-type]  # transformers wraps `to` without its parameter self
    if device.type == "cpu":
        model.set_attn_implementation(
            "eager"
        )  # with torch.compile, eager is faster on a CPU than the fused kernel for small heads
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
        if stage.apart and stage is not last:
            spread_apart(model, tokenizer)
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
def spread_apart(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Resample embeddings of names without facts (places, days, weathers ...) with the variance of names with facts.

    The generator draws such names at random, so no context distinguishes them, and training makes their embeddings
    nearly equal. The model then cannot repeat the right name in a later sentence. The mean embedding of each kind is
    kept. Colours are not changed, because they are facts of persons.
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
    """Return the first token of each name of a kind, sorted and without duplicates."""
    return sorted({tokenizer(entity.name, add_special_tokens=False)["input_ids"][0] for entity in world()[kind]})


def _cycle(recipe: Recipe, progress: float) -> tuple[float, float]:
    """Return the start and the end (shares of the run) of the learning-rate cycle that contains `progress`."""
    bounds = [0.0, *(before.until for before, stage in pairwise(recipe.curriculum) if stage.apart), 1.0]
    return next((begin, end) for begin, end in pairwise(bounds) if progress < end)


def windows(tokens: np.ndarray, starts: np.ndarray, seqlen: int) -> Tensor:
    """Return the windows that start at `starts`, each with the next token: (len(starts), seqlen + 1) int64."""
    return torch.from_numpy(tokens[starts[:, None] + np.arange(seqlen + 1)].astype(np.int64))


def name_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return a bool tensor (vocabulary,), True for the first token of each name (of persons, things, places ...)."""
    chosen = torch.zeros(len(tokenizer), dtype=torch.bool)
    chosen[[token for kind in world() for token in name_ids(tokenizer, kind)]] = True
    return chosen


def _loss(model: LlamaForCausalLM, batch: Tensor, names: Tensor, emphasis: float) -> Tensor:
    """Return the mean loss (nats per token) of windows (batch, seqlen + 1).

    Names that occur earlier in the window have weight 1 + `emphasis`, all other tokens 1.
    """
    inputs, targets = batch[:, :-1], batch[:, 1:]
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    if not emphasis:
        return losses.mean()
    recalled = (targets[:, :, None] == inputs[:, None, :]).tril().any(-1) & names[targets]
    weights = 1 + emphasis * recalled.flatten()
    return (losses * weights).sum() / weights.sum()


def _optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the decoder layers' matrices and AdamW for embeddings and norms; `train` sets their rates."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
