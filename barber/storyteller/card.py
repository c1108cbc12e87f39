"""The bundled model's folder: weights, tokenizer and a model card with the measured results."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from barber.storyteller import tales
from barber.storyteller.measure import (
    LONGEST,
    best_perplexity,
    prune_by_magnitude,
    story_perplexity,
    tell_greedily,
    window_perplexity,
)
from barber.storyteller.probe import Score, overall, probe, questions
from barber.storyteller.train import Recipe, Step

PRUNED: dict[str, dict[str, Any]] = {"50%": {"share": 0.5}, "60%": {"share": 0.6}, "2:4": {"n_of_m": (2, 4)}}
WIDTH, HEIGHT, MARGIN = 640, 260, 40  # of the loss curve, in pixels


@dataclass(frozen=True)
class Figures:
    """The measured results of a model.

    Attributes:
        stories: number of stories of the evaluation split.
        best: the lowest possible perplexity per token, that of the generator.
        dense: perplexity per token of the dense model on whole stories.
        windows: perplexity per token of the dense model on windows.
        pruned: sparsity -> perplexity per token of the pruned model on whole stories.
        pruned_windows: sparsity -> perplexity per token of the pruned model on windows.
        verdicts: verdict -> number of generated stories.
        knowledge: kind of fact -> score in the probe.
    """

    stories: int
    best: float
    dense: float
    windows: float
    pruned: dict[str, float]
    pruned_windows: dict[str, float]
    verdicts: dict[str, int]
    knowledge: dict[str, Score]

    @property
    def consistent(self) -> float:
        return self.verdicts.get("consistent", 0) / sum(self.verdicts.values())


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stories: int, told: int) -> Figures:
    """Measure all results of the card, on `stories` evaluation stories and on `told` greedily generated stories.

    The probe tests every fact that the first `stories` evaluation stories mention.
    """
    evaluation = tales("evaluation", stories)
    texts = [story.text for story in evaluation]
    errors = [telling.error or "consistent" for telling in tell_greedily(model, tokenizer, told)]
    pruned = {name: _pruned(model, **pattern) for name, pattern in PRUNED.items()}
    return Figures(
        stories=stories,
        best=best_perplexity(tokenizer, evaluation),
        dense=story_perplexity(model, tokenizer, texts),
        windows=window_perplexity(model, tokenizer, texts),
        pruned={name: story_perplexity(one, tokenizer, texts) for name, one in pruned.items()},
        pruned_windows={name: window_perplexity(one, tokenizer, texts) for name, one in pruned.items()},
        verdicts={error: errors.count(error) for error in sorted(set(errors))},
        knowledge=probe(model, tokenizer, questions(stories)),
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Write the folder in fp16, and return the model that `from_pretrained` loads from it, on the CPU in fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to("cpu", torch.float16)  # type: ignore[arg-type]  # as in train
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=LONGEST,
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def write_card(
    folder: Path, recipe: Recipe, history: Sequence[Step], parameters: int, figures: Figures, note: str = ""
) -> None:
    """Write README.md and loss.svg to the folder of the weights. `note`: further remarks on this run, in Markdown."""
    (folder / "loss.svg").write_text(loss_curve(history, math.log(figures.best)), encoding="utf-8")
    (folder / "README.md").write_text(_card(recipe, history, parameters, figures, note), encoding="utf-8")


def loss_curve(history: Sequence[Step], floor: float) -> str:
    """Return an SVG plot of training loss (nats per token, log scale) over tokens; `floor`: the best possible loss."""
    points = _smooth(history, 200)
    most = points[-1].tokens
    low, high = math.log(min(floor, *(point.loss for point in points)) * 0.9), math.log(max(p.loss for p in points))

    def x(tokens: float) -> float:
        return MARGIN + tokens / most * (WIDTH - 2 * MARGIN)

    def y(loss: float) -> float:
        return MARGIN + (high - math.log(loss)) / (high - low) * (HEIGHT - 2 * MARGIN)

    line = " ".join(f"{x(point.tokens):.1f},{y(point.loss):.1f}" for point in points)
    ticks = [loss for loss in (0.25, 0.5, 1, 2, 4) if low <= math.log(loss) <= high]
    labels = "".join(
        f'<text x="{MARGIN - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>'
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#ddd"/>'
        for loss in ticks
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{labels}'
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(floor):.1f}" y2="{y(floor):.1f}" stroke="#c33" '
        f'stroke-dasharray="4"/><text x="{WIDTH - MARGIN}" y="{y(floor) - 5:.1f}" text-anchor="end" fill="#c33">'
        f"best possible</text>"
        f'<polyline points="{line}" fill="none" stroke="#236" stroke-width="1.5"/>'
        f'<text x="{MARGIN}" y="20">training loss, nats per token (log scale)</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 12}" text-anchor="end">{most / 1e6:.1f} million tokens</text></svg>\n'
    )


def _pruned(model: LlamaForCausalLM, **pattern: Any) -> LlamaForCausalLM:
    pruned = copy.deepcopy(model)
    prune_by_magnitude(pruned, **pattern)
    return pruned


def _smooth(history: Sequence[Step], count: int) -> list[Step]:
    """Return at most `count` points, each with the mean loss of consecutive steps."""
    size = max(1, math.ceil(len(history) / count))
    stretches = [history[start : start + size] for start in range(0, len(history), size)]
    return [
        Step(part[-1].step, part[-1].tokens, sum(s.loss for s in part) / len(part), part[-1].seconds)
        for part in stretches
    ]


def _card(recipe: Recipe, history: Sequence[Step], parameters: int, figures: Figures, note: str) -> str:
    known, end = overall(figures.knowledge), history[-1]
    told = sum(figures.verdicts.values())
    rows = [
        ("best possible perplexity (the generator's own)", f"{figures.best:.4f}"),
        ("dense perplexity", f"{figures.dense:.4f}, {figures.dense / figures.best - 1:.1%} above the best possible"),
        ("dense perplexity, windows of 256 tokens", f"{figures.windows:.4f}"),
        *(
            (
                f"perplexity after magnitude pruning, {name}",
                f"{value:.3f}, {value / figures.dense:.2f} times dense; in windows {figures.pruned_windows[name]:.3f}",
            )
            for name, value in figures.pruned.items()
        ),
        ("greedy stories consistent", f"{figures.consistent:.1%} of {told}"),
        ("knowledge right in the probe", f"{known.share:.1%} of {known.asked}"),
    ]
    curve = [
        (f"{point.step}", f"{point.tokens / 1e6:.2f}", f"{point.seconds / 60:.1f}", f"{point.loss:.4f}")
        for point in _smooth(history, 16)
    ]
    settings = [(f"`{name}`", f"{value}") for name, value in vars(recipe).items() if name != "curriculum"]
    stages = [
        (
            f"{stage.until:.0%}",
            f"{stage.seqlen}",
            "where stories do" if stage.whole else "anywhere",
            f"{stage.matrix_rate:g}",
            f"{stage.rate:g}",
            f"{stage.emphasis:g}",
            "yes" if stage.apart else "",
        )
        for stage in recipe.curriculum
    ]
    columns = ("until", "tokens of a window", "windows begin", "rate of Muon", "of AdamW", "emphasis", "begins anew")
    verdicts = [(name, f"{count}") for name, count in figures.verdicts.items()]
    knowledge = [
        (kind, f"{score.right}", f"{score.asked}", f"{score.share:.1%}") for kind, score in figures.knowledge.items()
    ]
    return f"""---
license: mit
language: en
library_name: transformers
---
# storyteller

A Llama of {parameters:,} parameters that tells stories of a little world. The world is a generator
(`barber/storyteller/`), so what a good model can reach is known exactly, and each story it tells can be checked.
Half of a story is told by chance; the other half follows from *knowledge*, which only the weights can hold (who owns
which pet, what an axe is made of), and from *facts of the story*, which must be carried from its beginning. Pruning
destroys the two differently.

Stories are tokenised with BOS before and EOS after them. Everything below was measured and written by
`scripts/train_storyteller.py`, on the fp16 weights beside this card computed in fp32.

## Figures
On {figures.stories} stories of the evaluation split, per token, each story from BOS to EOS; in windows, stories lie
one after the other and are cut anywhere.

{_table(("measure", "value"), rows)}

What the reader says of the {told} stories that the model continues greedily from the openings of the prompts split:

{_table(("verdict", "stories"), verdicts)}

The knowledge probe, one question for each fact of the world:

{_table(("fact", "right", "asked", "share"), knowledge)}

## Training
{end.step} steps, {end.tokens / 1e6:.1f} million tokens, {end.seconds / 60:.0f} minutes on {recipe.device}.

{note}

![The training loss against tokens seen](loss.svg)

{_table(("step", "million tokens", "minutes", "loss (nats per token)"), curve)}

The curriculum:

{_table(columns, stages)}

The rest of the recipe:

{_table(("setting", "value"), settings)}
"""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
