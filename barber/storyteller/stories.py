"""The story generator: samples a derivation of the grammar and sums the log-probabilities of its draws.

No two derivations of the grammar give the same text, so this sum is the exact log-probability of the text.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from barber.storyteller.grammar import GRAMMAR
from barber.storyteller.world import Entity, world

T = TypeVar("T")
SLOT = re.compile(r"\{(?P<name>\w+)(?::(?P<kind>\w+)|=(?P<alias>\w+)|\.(?P<attribute>\w+))?\}")


@dataclass(frozen=True)
class Slot:
    """A variable part of a sentence template.

    Attributes:
        name: the name that the slot binds or reads.
        kind: the kind of entity to draw and to bind to the name; None for no draw.
        alias: another name, whose entity is bound to this name, too.
        attribute: the fact of the bound entity to write; None for the entity's name.
    """

    name: str
    kind: str | None = None
    alias: str | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Sentence:
    """One sentence of a story: its template and its text."""

    template: str
    text: str


@dataclass(frozen=True)
class Story:
    """A generated story.

    Attributes:
        sentences: in order.
        facts: name of the grammar -> the entity that it is bound to.
        logprob: log-probability in nats.
    """

    sentences: tuple[Sentence, ...]
    facts: dict[str, Entity]
    logprob: float

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


@dataclass
class Sampler:
    """Draws uniformly and adds up the log-probability (nats) of its draws."""

    rng: random.Random
    logprob: float = field(default=0.0)

    def pick(self, options: Sequence[T]) -> T:
        self.logprob -= math.log(len(options))
        return options[int(self.rng.random() * len(options))]


@cache
def parts(template: str) -> tuple[str | Slot, ...]:
    """The literal texts and the slots of a sentence template, in order."""
    pieces: list[str | Slot] = []
    end = 0
    for match in SLOT.finditer(template):
        pieces += [template[end : match.start()], Slot(**match.groupdict())]
        end = match.end()
    return tuple(piece for piece in [*pieces, template[end:]] if piece != "")


@cache
def symbols(alternative: str) -> tuple[str, ...]:
    """The symbols of an alternative: `<entry>` references, or one sentence template."""
    return tuple(alternative.split()) if alternative.startswith("<") else (alternative,)


def candidates(kind: str, facts: dict[str, Entity]) -> Sequence[Entity]:
    """The entities that a slot of this kind may draw: all that the story does not mention yet."""
    used = [entity for entity in facts.values() if entity.kind == kind]
    return [entity for entity in world()[kind] if entity not in used] if used else world()[kind]


def generate_story(rng: random.Random) -> Story:
    """Generate one story."""
    facts: dict[str, Entity] = {}
    sampler, sentences = Sampler(rng), []
    pending = ["<story>"]
    while pending:
        symbol = pending.pop()
        if symbol.startswith("<"):
            pending.extend(reversed(symbols(sampler.pick(GRAMMAR[symbol[1:-1]]))))
        else:
            text = "".join(p if isinstance(p, str) else _fill(p, facts, sampler) for p in parts(symbol))
            sentences.append(Sentence(symbol, text))
    return Story(tuple(sentences), facts, sampler.logprob)


def _fill(slot: Slot, facts: dict[str, Entity], sampler: Sampler) -> str:
    if slot.kind:
        facts[slot.name] = sampler.pick(candidates(slot.kind, facts))
    elif slot.alias:
        facts[slot.name] = facts[slot.alias]
    return facts[slot.name].text(slot.attribute)
