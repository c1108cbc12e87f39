"""The world of the stories: its entities and their facts, which are the same on every machine.

Stories mention these facts without explaining them, so a model must store them in its weights.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from barber.storyteller.lexicon import described, listed


@dataclass(frozen=True)
class Entity:
    """An object with a name: a person, an animal, a thing, a place, a colour, a mishap.

    Entities are equal if their kind and name are; `facts` maps an attribute ("town", "petname", ...) to its text in a
    story.
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def text(self, attribute: str | None = None) -> str:
        """Return the name, or the text of the fact `attribute`."""
        return self.name if attribute is None else self.facts[attribute]


PRONOUNS = {True: ("she", "her", "her"), False: ("he", "him", "his")}

# Attributes that the probe tests, by kind. Pronouns and the sound of a pet follow from other facts.
KNOWLEDGE = {
    "person": ("trade", "town", "food", "colour", "pet", "petname"),
    "animal": ("food", "sound", "home"),
    "thing": ("material", "use"),
}


@cache
def world() -> dict[str, tuple[Entity, ...]]:
    """Return every entity, by kind. The facts of persons are drawn with a fixed seed; all others are in the lexicon."""
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
