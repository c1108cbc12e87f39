"""The story generator: the grammar told with a sampler that knows the probability of what it drew.

No two derivations of the grammar write the same text, so the sum over the draws is the text's exact log-probability.
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
    """A place in a sentence: `kind` draws, `alias` binds what another name holds, otherwise it recalls."""

    name: str
    kind: str | None = None
    alias: str | None = None
    attribute: str | None = None


@dataclass(frozen=True)
class Sentence:
    """One sentence of a story: the template it was told from and its text."""

    template: str
    text: str


@dataclass(frozen=True)
class Story:
    """A told story: its sentences, what each name of the plot was bound to, and its log-probability in nats."""

    sentences: tuple[Sentence, ...]
    facts: dict[str, Entity]
    logprob: float

    @property
    def text(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)


@dataclass
class Sampler:
    """Uniform draws that keep count of their log-probability (nats)."""

    rng: random.Random
    logprob: float = field(default=0.0)

    def pick(self, options: Sequence[T]) -> T:
        self.logprob -= math.log(len(options))
        return options[int(self.rng.random() * len(options))]


@cache
def parts(template: str) -> tuple[str | Slot, ...]:
    """A sentence template as literal texts and slots, in order."""
    pieces: list[str | Slot] = []
    end = 0
    for match in SLOT.finditer(template):
        pieces += [template[end : match.start()], Slot(**match.groupdict())]
        end = match.end()
    return tuple(piece for piece in [*pieces, template[end:]] if piece != "")


@cache
def symbols(alternative: str) -> tuple[str, ...]:
    """An alternative as the symbols it is made of: `<entry>` references, or one sentence template."""
    return tuple(alternative.split()) if alternative.startswith("<") else (alternative,)


def candidates(kind: str, facts: dict[str, Entity]) -> Sequence[Entity]:
    """What a slot of this kind may draw: all but what the story already holds."""
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
