"""The synthetic stories of the bundled model: their generator and checker, the model's training and its evaluation.

grammar.py  the sentence templates        lexicon.*   the words
world.py    entities and their facts      stories.py  generates a story with its log-probability
check.py    parses and checks a story     probe.py    which facts a model has learned
measure.py  perplexity and consistency    task.py     a story-ending task for lm-eval
tokens.py   the tokenizer                 train.py    the training recipe
card.py     the model's folder and card
"""

import random
from collections.abc import Iterator
from itertools import count as from_zero
from itertools import islice

from barber.errors import UserError
from barber.storyteller.stories import Story, generate_story

SPLITS = ("train", "calibration", "evaluation", "prompts")
OPENING = 2  # sentences of a prompt


def iterate_stories(split: str, seed: int = 0) -> Iterator[Story]:
    """An endless iterator over the stories of a split. Story i depends only on split, seed and i; splits are disjoint.

    Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"Storyteller has no split {split!r}; it has {', '.join(SPLITS)}: name one of these.")
    return (generate_story(random.Random(f"{split}-{seed}-{index}")) for index in from_zero())


def generate_stories(split: str, count: int, seed: int = 0) -> list[Story]:
    """The first `count` stories of a split."""
    return list(islice(iterate_stories(split, seed), count))


def documents(split: str, count: int, seed: int = 0) -> list[str]:
    """The texts of `generate_stories`; for the split "prompts", only the first OPENING sentences of each story."""
    stories = generate_stories(split, count, seed)
    if split == "prompts":
        return [" ".join(sentence.text for sentence in story.sentences[:OPENING]) for story in stories]
    return [story.text for story in stories]
