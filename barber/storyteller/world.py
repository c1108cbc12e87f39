"""The entities of the stories and the facts about them, the same on every machine.

A story uses these facts and never states them, so a model has to store them in its weights.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from barber.storyteller.lexicon import word_list, word_table


@dataclass(frozen=True)
class Entity:
    """Something with a name, like a person, an animal, a place or a colour. Entities of one kind and name are equal.

    Attributes:
        kind: like "person".
        name: as a story writes it.
        facts: attribute ("town", "petname", ...) -> the text that a story writes.
    """

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def text(self, attribute: str | None = None) -> str:
        """The name, or the fact of this attribute."""
        return self.name if attribute is None else self.facts[attribute]


PRONOUNS = {True: ("she", "her", "her"), False: ("he", "him", "his")}

# The facts that the probe tests, by kind of entity. They determine the pronouns and the sound of a pet.
KNOWLEDGE = {
    "person": ("trade", "town", "food", "colour", "pet", "petname"),
    "animal": ("food", "sound", "home"),
    "thing": ("material", "use"),
}


@cache
def world() -> dict[str, tuple[Entity, ...]]:
    """Every entity, by kind. A fixed seed draws the facts of persons; the lexicon has all others."""
    plain = {
        "colour": word_list("colours"),
        "place": word_list("places"),
        "day": word_list("days"),
        "weather": word_list("weathers"),
        "loss": word_list("losses"),
        "harm": word_list("harms"),
        "trap": word_list("traps"),
        "prize": word_list("prizes"),
        "game": word_list("games"),
    }
    animals = {
        name: dict(zip(KNOWLEDGE["animal"], facts, strict=True)) for name, facts in word_table("animals").items()
    }
    things = {name: dict(zip(KNOWLEDGE["thing"], facts, strict=True)) for name, facts in word_table("things").items()}
    return {kind: tuple(Entity(kind, name) for name in names) for kind, names in plain.items()} | {
        "person": _persons(),
        "animal": tuple(Entity("animal", name, facts) for name, facts in animals.items()),
        "thing": tuple(Entity("thing", name, facts) for name, facts in things.items()),
    }


def _persons() -> tuple[Entity, ...]:
    rng = random.Random("the people of the storyteller's world")
    persons = []
    for name in sorted(word_list("women") + word_list("men")):
        he, him, his = PRONOUNS[name in word_list("women")]
        pet = rng.choice(list(word_table("pets")))
        facts = {
            "trade": rng.choice(word_list("trades")),
            "town": rng.choice(word_list("towns")),
            "food": rng.choice(word_list("foods")),
            "colour": rng.choice(word_list("colours")),
            "pet": pet,
            "petname": rng.choice(word_list("pet_names")),
            "petsound": word_table("pets")[pet],
            "he": he,
            "him": him,
            "his": his,
            "He": he.capitalize(),
            "His": his.capitalize(),
        }
        persons.append(Entity("person", name, facts))
    return tuple(persons)
