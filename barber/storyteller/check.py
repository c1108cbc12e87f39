"""Parse a story, and check its sentences, its knowledge of the world and the consistency of its facts.

A text is consistent if the grammar can generate it. The parser searches the derivations of the text depth first, and
binds the entities that a sentence introduces. If there is no derivation, it reports the first wrong sentence and the
kind of the error.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from barber.storyteller.grammar import GRAMMAR
from barber.storyteller.stories import Slot, candidates, parts, symbols
from barber.storyteller.world import Entity, world

GRAMMAR_ERROR, KNOWLEDGE_ERROR, STORY_ERROR, UNFINISHED, TOO_LONG = (
    "grammar",
    "knowledge",
    "story",
    "unfinished",
    "too long",
)


@dataclass(frozen=True)
class Verdict:
    """The result of checking a story.

    Attributes:
        error: None for a consistent story, else the kind of its first error: "grammar" (the sentence is not one of
            the grammar, or not allowed at this position), "knowledge" (the sentence has a wrong fact of the world),
            "story" (it contradicts an earlier sentence), "unfinished", or "too long" (sentences after the end of the
            story).
        sentence: index of the wrong sentence, which is the number of correct sentences before it; for a consistent
            story, the number of its sentences.
        logprob: log-probability of the text in nats, -inf for a text that the grammar cannot generate.
    """

    error: str | None
    sentence: int
    logprob: float

    @property
    def consistent(self) -> bool:
        return self.error is None


@dataclass
class _Furthest:
    """The last sentence at which a derivation failed, and among its errors the one with the fewest wrong slots."""

    sentence: int = -1
    wrong: float = math.inf
    error: str = GRAMMAR_ERROR

    def note(self, sentence: int, wrong: float, error: str) -> None:
        if (sentence, -wrong) > (self.sentence, -self.wrong):
            self.sentence, self.wrong, self.error = sentence, wrong, error


@dataclass(frozen=True)
class _Reading:
    """A partial derivation: remaining symbols (in reverse order), facts bound so far, log-probability (nats)."""

    pending: tuple[str, ...]
    facts: dict[str, Entity] = field(default_factory=dict)
    logprob: float = 0.0


def check(text: str) -> Verdict:
    """Check a whole story."""
    furthest = _Furthest()
    first = next(readings(text, furthest), None)
    if first is not None:
        return Verdict(None, len(sentences(text)), first)
    return Verdict(furthest.error, furthest.sentence, -math.inf)


def sentences(text: str) -> list[str]:
    """Split a text after each full stop."""
    return [sentence for sentence in re.split(r"(?<=\.)\s+", text.strip()) if sentence]


def readings(text: str, furthest: _Furthest | None = None) -> Iterator[float]:
    """Yield the log-probability (nats) of every derivation of the text; a consistent story has exactly one."""
    furthest, told = furthest or _Furthest(), sentences(text)
    open_readings = [(0, _Reading(("<story>",)))]
    while open_readings:
        position, reading = open_readings.pop()
        if not reading.pending:
            if position == len(told):
                yield reading.logprob
            furthest.note(position, 0, TOO_LONG)
            continue
        *rest, symbol = reading.pending
        if symbol.startswith("<"):
            alternatives = GRAMMAR[symbol[1:-1]]
            logprob = reading.logprob - math.log(len(alternatives))
            for alternative in reversed(alternatives):
                pending = (*rest, *reversed(symbols(alternative)))
                open_readings.append((position, _Reading(pending, reading.facts, logprob)))
        elif position == len(told):
            furthest.note(position, 0, UNFINISHED)
        elif match := shape(symbol).fullmatch(told[position]):
            facts, logprob, errors = _verify(symbol, match, reading.facts)
            if errors:
                furthest.note(position, len(errors), errors[0])
            else:
                open_readings.append((position + 1, _Reading(tuple(rest), facts, reading.logprob + logprob)))
        else:
            furthest.note(position, math.inf, GRAMMAR_ERROR)


@cache
def kinds() -> dict[str, str]:
    """Return the kind of entity of each name in the grammar ({"hero": "person", ...})."""
    slots = [part for row in GRAMMAR.values() for line in row for part in parts(line) if isinstance(part, Slot)]
    found = {slot.name: slot.kind for slot in slots if slot.kind}
    return found | {slot.name: found[slot.alias] for slot in slots if slot.alias}


@cache
def domain(slot: Slot) -> frozenset[str]:
    """Return every text that can fill the slot, regardless of the story and of the facts of the world."""
    return frozenset(entity.text(slot.attribute) for entity in world()[kinds()[slot.name]])


@cache
def shape(template: str) -> re.Pattern[str]:
    """Return the template as a regular expression with one group per slot, which matches any text of `domain(slot)`."""
    return re.compile("".join(re.escape(part) if isinstance(part, str) else _group(part) for part in parts(template)))


def _group(slot: Slot) -> str:
    return "(" + "|".join(map(re.escape, sorted(domain(slot), key=len, reverse=True))) + ")"


def _verify(
    template: str, match: re.Match[str], facts: dict[str, Entity]
) -> tuple[dict[str, Entity], float, list[str]]:
    """Return the facts after the sentence, the log-probability (nats) of its draws, and the errors of its slots."""
    facts, logprob, errors = dict(facts), 0.0, []
    slots = [part for part in parts(template) if isinstance(part, Slot)]
    for slot, text in zip(slots, match.groups(), strict=True):
        if slot.kind:
            options = candidates(slot.kind, facts)
            drawn = next((entity for entity in options if entity.name == text), None)
            if drawn is None:
                errors.append(STORY_ERROR)
                drawn = next(entity for entity in world()[slot.kind] if entity.name == text)
            facts[slot.name] = drawn
            logprob -= math.log(len(options))
            continue
        if slot.alias:
            facts[slot.name] = facts[slot.alias]
        if facts[slot.name].text(slot.attribute) != text:
            errors.append(KNOWLEDGE_ERROR if slot.attribute else STORY_ERROR)
    return facts, logprob, errors
