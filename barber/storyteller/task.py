"""A story-ending task for lm-eval: choose the right last sentence among endings that each have one wrong fact."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barber.bundled import TASKS_DIR
from barber.storyteller import generate_stories
from barber.storyteller.check import check, domain, template_pattern
from barber.storyteller.stories import Slot, Story, parts

ITEMS = TASKS_DIR / "story_ending.jsonl"
TASK = "story_ending"
ENDINGS = 4
SEED = 1  # of the evaluation split; perplexity is measured on stories of seed 0
PRONOUN_ATTRIBUTES = {"he", "him", "his", "He", "His"}


@dataclass(frozen=True)
class Item:
    """One multiple-choice question.

    Attributes:
        context: a story without its last sentence.
        endings: the sentences to choose from.
        label: index of the right one.
    """

    context: str
    endings: tuple[str, ...]
    label: int


def items(count: int) -> list[Item]:
    """The first `count` items, the same on every machine."""
    return [
        _item(story, random.Random(f"ending-{index}"))
        for index, story in enumerate(generate_stories("evaluation", count, SEED))
    ]


def write_items(count: int, path: Path = ITEMS) -> None:
    """Write the items, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"context": item.context, "endings": item.endings, "label": item.label} for item in items(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load_dataset(**_: object) -> dict:
    """The bundled items as {"test": datasets.Dataset}, the form that lm-eval requires; the task file names this."""
    from datasets import Dataset

    return {"test": Dataset.from_list([json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()])}


def _item(story: Story, rng: random.Random) -> Item:
    context = " ".join(sentence.text for sentence in story.sentences[:-1])
    right = story.sentences[-1].text
    endings = [right]
    for wrong in _wrong_endings(story, rng):
        if wrong not in endings and not check(f"{context} {wrong}").consistent:
            endings.append(wrong)
        if len(endings) == ENDINGS:
            break
    rng.shuffle(endings)
    return Item(context, tuple(endings), endings.index(right))


def _wrong_endings(story: Story, rng: random.Random) -> Iterator[str]:
    """An endless iterator over last sentences with one wrong slot.

    First the slot gets a fact of another entity of the story, then any text of its domain.
    """
    last = story.sentences[-1]
    match = template_pattern(last.template).fullmatch(last.text)
    slots = [part for part in parts(last.template) if isinstance(part, Slot)]
    places = [
        (slot, match.span(group))
        for group, slot in enumerate(slots, start=1)
        if slot.attribute not in PRONOUN_ATTRIBUTES
    ]
    rng.shuffle(places)

    def replaced(slot: Slot, span: tuple[int, int], options: frozenset[str]) -> Iterator[str]:
        wrong = sorted(options - {last.text[slice(*span)]})
        if wrong:
            yield last.text[: span[0]] + rng.choice(wrong) + last.text[span[1] :]

    for slot, span in places:
        kind = story.facts[slot.name].kind
        of_others = frozenset(e.text(slot.attribute) for e in story.facts.values() if e.kind == kind)
        yield from replaced(slot, span, of_others)
    while True:
        for slot, span in places:
            yield from replaced(slot, span, domain(slot))
