"""The world: who there is and what is true of them, the same on every machine.

This is the knowledge that only a model's weights can hold: a story mentions it and never explains it.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from barber.storyteller import lexicon


@dataclass(frozen=True)
class Entity:
    """Something with a name: a person, an animal, a thing, a place, a colour, a way to go wrong.

    Equal when kind and name are; `facts` maps an attribute ("town", "petname", ...) to the text that a story writes.
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def text(self, attribute: str | None = None) -> str:
        """The name, or what is known under `attribute`."""
        return self.name if attribute is None else self.facts[attribute]


PRONOUNS = {True: ("she", "her", "her"), False: ("he", "him", "his")}

# What the probe asks about, by kind. Pronouns and the sound of a pet follow from these.
KNOWLEDGE = {
    "person": ("trade", "town", "food", "colour", "pet", "petname"),
    "animal": ("food", "sound", "home"),
    "thing": ("material", "use"),
}


@cache
def world() -> dict[str, tuple[Entity, ...]]:
    """Every entity, by kind. Persons get their facts from a fixed seed; the rest is written in the lexicon."""
    plain = {
        "colour": lexicon.COLOURS,
        "place": lexicon.PLACES,
        "day": lexicon.DAYS,
        "weather": lexicon.WEATHERS,
        "loss": lexicon.LOSSES,
        "harm": lexicon.HARMS,
        "trap": lexicon.TRAPS,
        "prize": lexicon.PRIZES,
        "game": lexicon.GAMES,
    }
    animals = {name: dict(zip(KNOWLEDGE["animal"], facts, strict=True)) for name, facts in lexicon.ANIMALS.items()}
    things = {name: dict(zip(KNOWLEDGE["thing"], facts, strict=True)) for name, facts in lexicon.THINGS.items()}
    return {kind: tuple(Entity(kind, name) for name in names) for kind, names in plain.items()} | {
        "person": _persons(),
        "animal": tuple(Entity("animal", name, facts) for name, facts in animals.items()),
        "thing": tuple(Entity("thing", name, facts) for name, facts in things.items()),
    }


def _persons() -> tuple[Entity, ...]:
    rng = random.Random("the people of the storyteller's world")
    persons = []
    for name in sorted(lexicon.WOMEN + lexicon.MEN):
        he, him, his = PRONOUNS[name in lexicon.WOMEN]
        pet = rng.choice(list(lexicon.PETS))
        facts = {
            "trade": rng.choice(lexicon.TRADES),
            "town": rng.choice(lexicon.TOWNS),
            "food": rng.choice(lexicon.FOODS),
            "colour": rng.choice(lexicon.COLOURS),
            "pet": pet,
            "petname": rng.choice(lexicon.PET_NAMES),
            "petsound": lexicon.PETS[pet],
            "he": he,
            "him": him,
            "his": his,
            "He": he.capitalize(),
            "His": his.capitalize(),
        }
        persons.append(Entity("person", name, facts))
    return tuple(persons)
