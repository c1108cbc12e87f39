"""The bundled model's synthetic stories: a generator with exact probabilities, a parser, a probe, a training recipe.

grammar.py  the sentences, as data        lexicon.*   the words, as data
world.py    the entities and their facts  stories.py  generates stories with their log-probability
check.py    parses and checks a story     probe.py    measures a model's knowledge of the facts
measure.py  measures a model's stories    task.py     a story-ending task for lm-eval
tokens.py   the tokenizer                 train.py    the training recipe
card.py     the model's folder and card
"""

import random
from collections.abc import Iterator
from itertools import count as from_zero
from itertools import islice

from barber.errors import UserError
from barber.storyteller.stories import Story, tell

SPLITS = ("train", "calibration", "evaluation", "prompts")
OPENING = 2  # sentences of a prompt


def all_tales(split: str, seed: int = 0) -> Iterator[Story]:
    """Yield stories of a split without limit. Story i depends only on split, seed and i; splits share no story."""
    if split not in SPLITS:
        raise UserError(f"Storyteller has no split {split!r}; it has {', '.join(SPLITS)}: name one of these.")
    return (tell(random.Random(f"{split}-{seed}-{index}")) for index in from_zero())


def tales(split: str, count: int, seed: int = 0) -> list[Story]:
    """Return the first `count` stories of a split."""
    return list(islice(all_tales(split, seed), count))


def documents(split: str, count: int, seed: int = 0) -> list[str]:
    """Return the texts of `tales`; for the split "prompts", only the first OPENING sentences of each."""
    told = tales(split, count, seed)
    if split == "prompts":
        return [" ".join(sentence.text for sentence in story.sentences[:OPENING]) for story in told]
    return [story.text for story in told]
