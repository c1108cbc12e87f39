"""The story generator: it samples a derivation of the grammar and computes its log-probability.

No two derivations of the grammar produce the same text, so the sum of the log-probabilities of all draws is the exact
log-probability of the text.
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
    """A variable in a sentence template.

    A slot with a `kind` draws an entity of that kind and binds it to `name`. A slot with an `alias` binds the entity of
    the name `alias` to `name`. Any other slot is replaced by its entity's name, or by the fact `attribute` if given.
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
    """A generated story: its sentences, the entity that each name is bound to, and its log-probability in nats."""

    sentences: tuple[Sentence, ...]
    facts: dict[str, Entity]
    logprob: float

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


@dataclass
class Sampler:
    """Samples uniformly and sums the log-probabilities (nats) of its draws."""

    rng: random.Random
    logprob: float = field(default=0.0)

    def pick(self, options: Sequence[T]) -> T:
        self.logprob -= math.log(len(options))
        return options[int(self.rng.random() * len(options))]


@cache
def parts(template: str) -> tuple[str | Slot, ...]:
    """Split a sentence template into literal texts and slots, in order."""
    pieces: list[str | Slot] = []
    end = 0
    for match in SLOT.finditer(template):
        pieces += [template[end : match.start()], Slot(**match.groupdict())]
        end = match.end()
    return tuple(piece for piece in [*pieces, template[end:]] if piece != "")


@cache
def symbols(alternative: str) -> tuple[str, ...]:
    """Split an alternative into its symbols: references `<entry>`, or one sentence template."""
    return tuple(alternative.split()) if alternative.startswith("<") else (alternative,)


def candidates(kind: str, facts: dict[str, Entity]) -> Sequence[Entity]:
    """Return the entities that a slot of this kind can draw: all except those already in the story."""
    held = [entity for entity in facts.values() if entity.kind == kind]
    return [entity for entity in world()[kind] if entity not in held] if held else world()[kind]


def tell(rng: random.Random) -> Story:
    """Tell one story."""
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
