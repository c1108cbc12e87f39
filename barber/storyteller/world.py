"""The world: who there is and what is true of them, the same on every machine.

This is the knowledge that only a model's weights can hold: a story mentions it and never explains it.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from barber.storyteller.lexicon import described, listed


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
        "colour": listed("colours"),
        "place": listed("places"),
        "day": listed("days"),
        "weather": listed("weathers"),
        "loss": listed("losses"),
        "harm": listed("harms"),
        "trap": listed("traps"),
        "prize": listed("prizes"),
        "game": listed("games"),
    }
    animals = {name: dict(zip(KNOWLEDGE["animal"], facts, strict=True)) for name, facts in described("animals").items()}
    things = {name: dict(zip(KNOWLEDGE["thing"], facts, strict=True)) for name, facts in described("things").items()}
    return {kind: tuple(Entity(kind, name) for name in names) for kind, names in plain.items()} | {
        "person": _persons(),
        "animal": tuple(Entity("animal", name, facts) for name, facts in animals.items()),
        "thing": tuple(Entity("thing", name, facts) for name, facts in things.items()),
    }


def _persons() -> tuple[Entity, ...]:
    rng = random.Random("the people of the storyteller's world")
    persons = []
    for name in sorted(listed("women") + listed("men")):
        he, him, his = PRONOUNS[name in listed("women")]
        pet = rng.choice(list(described("pets")))
        facts = {
            "trade": rng.choice(listed("trades")),
            "town": rng.choice(listed("towns")),
            "food": rng.choice(listed("foods")),
            "colour": rng.choice(listed("colours")),
            "pet": pet,
            "petname": rng.choice(listed("pet_names")),
            "petsound": described("pets")[pet],
            "he": he,
            "him": him,
            "his": his,
            "He": he.capitalize(),
            "His": his.capitalize(),
        }
        persons.append(Entity("person", name, facts))
    return tuple(persons)
