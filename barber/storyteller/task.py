"""A story-ending task for lm-eval: choose the right last sentence among others with exactly one wrong fact."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barber.bundled import TASKS_DIR
from barber.storyteller import tales
from barber.storyteller.check import check, domain, shape
from barber.storyteller.stories import Slot, Story, parts

ITEMS = TASKS_DIR / "story_ending.jsonl"
TASK = "story_ending"
ENDINGS = 4
SEED = 1  # of the evaluation split: not the stories that perplexity is measured on
WORDS = {"he", "him", "his", "He", "His"}  # attributes that are pronouns, not facts


@dataclass(frozen=True)
class Item:
    """A story without its last sentence, the endings to choose from and the index of the right ending."""

    context: str
    endings: tuple[str, ...]
    label: int


def items(count: int) -> list[Item]:
    """Return the first `count` items, which are the same on every machine."""
    return [
        _item(story, random.Random(f"ending-{index}")) for index, story in enumerate(tales("evaluation", count, SEED))
    ]


def write_items(count: int, path: Path = ITEMS) -> None:
    """Write the items, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"context": item.context, "endings": item.endings, "label": item.label} for item in items(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load_dataset(**_: object) -> dict:
    """Return the bundled items in lm-eval's format: {"test": datasets.Dataset}. The task file names this function."""
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
    """Yield last sentences with one changed slot, without limit: first with facts of the same story, then with any."""
    last = story.sentences[-1]
    match = shape(last.template).fullmatch(last.text)
    slots = [part for part in parts(last.template) if isinstance(part, Slot)]
    places = [(slot, match.span(group)) for group, slot in enumerate(slots, start=1) if slot.attribute not in WORDS]
    rng.shuffle(places)

    def swapped(slot: Slot, span: tuple[int, int], options: frozenset[str]) -> Iterator[str]:
        wrong = sorted(options - {last.text[slice(*span)]})
        if wrong:
            yield last.text[: span[0]] + rng.choice(wrong) + last.text[span[1] :]

    for slot, span in places:
        kind = story.facts[slot.name].kind
        mixed_up = frozenset(e.text(slot.attribute) for e in story.facts.values() if e.kind == kind)
        yield from swapped(slot, span, mixed_up)
    while True:
        for slot, span in places:
            yield from swapped(slot, span, domain(slot))
