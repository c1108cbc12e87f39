"""The bundled model's world: a story generator that knows its own probability, a checker, a probe, a training recipe.

grammar.py  the sentences, as data        lexicon.*   the words, as data
world.py    who there is, what is true    stories.py  tells a story and its log-probability
check.py    reads a story back            probe.py    what a model knows
measure.py  how well a model tells        task.py     a story-ending task for lm-eval
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
    """The stories of a split, without end. Story i depends on split, seed and i alone; splits share no story."""
    if split not in SPLITS:
        raise UserError(f"Storyteller has no split {split!r}; it has {', '.join(SPLITS)}: name one of these.")
    return (tell(random.Random(f"{split}-{seed}-{index}")) for index in from_zero())


def tales(split: str, count: int, seed: int = 0) -> list[Story]:
    """The first `count` stories of a split."""
    return list(islice(all_tales(split, seed), count))


def documents(split: str, count: int, seed: int = 0) -> list[str]:
    """The texts of `tales`; of the split "prompts", each text is the opening that a model is to continue."""
    told = tales(split, count, seed)
    if split == "prompts":
        return [" ".join(sentence.text for sentence in story.sentences[:OPENING]) for story in told]
    return [story.text for story in told]
