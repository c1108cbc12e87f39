"""Parse a story and check it: does each sentence follow the grammar, and is each fact correct and consistent?

A text is consistent if the grammar can generate it. The parser searches the derivations of the grammar depth first and
binds the entities that a sentence introduces. If no derivation fits, it reports the first wrong sentence and the kind
of error.
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
    """The result of a check.

    Attributes:
        error: None for a consistent story, otherwise the kind of its first error: "grammar" (the sentence matches no
            template that the grammar allows at this position), "knowledge" (it states a wrong fact of the world),
            "story" (it contradicts the sentences before it), "unfinished", or "too long" (text follows the end).
        sentence: index of the first wrong sentence, which is the number of correct ones before it.
        logprob: log-probability of the text in nats; -inf if the grammar cannot generate it.
    """

    error: str | None
    sentence: int
    logprob: float

    @property
    def consistent(self) -> bool:
        return self.error is None


@dataclass
class _Furthest:
    """The furthest sentence that a derivation reached, with the error that has the fewest wrong slots there."""

    sentence: int = -1
    wrong: float = math.inf
    error: str = GRAMMAR_ERROR

    def record(self, sentence: int, wrong: float, error: str) -> None:
        if (sentence, -wrong) > (self.sentence, -self.wrong):
            self.sentence, self.wrong, self.error = sentence, wrong, error


@dataclass(frozen=True)
class _Derivation:
    """A partial derivation.

    Attributes:
        pending: symbols to be expanded, the next one last.
        facts: name of the grammar -> the entity that it is bound to.
        logprob: log-probability of the draws so far, in nats.
    """

    pending: tuple[str, ...]
    facts: dict[str, Entity] = field(default_factory=dict)
    logprob: float = 0.0


def check(text: str) -> Verdict:
    """Check a whole story."""
    furthest = _Furthest()
    first = next(derivations(text, furthest), None)
    if first is not None:
        return Verdict(None, len(sentences(text)), first)
    return Verdict(furthest.error, furthest.sentence, -math.inf)


def sentences(text: str) -> list[str]:
    """A text split after each full stop."""
    return [sentence for sentence in re.split(r"(?<=\.)\s+", text.strip()) if sentence]


def derivations(text: str, furthest: _Furthest | None = None) -> Iterator[float]:
    """The log-probability (nats) of every derivation of the text; a generated story has exactly one."""
    furthest, found = furthest or _Furthest(), sentences(text)
    stack = [(0, _Derivation(("<story>",)))]
    while stack:
        position, derivation = stack.pop()
        if not derivation.pending:
            if position == len(found):
                yield derivation.logprob
            furthest.record(position, 0, TOO_LONG)
            continue
        *rest, symbol = derivation.pending
        if symbol.startswith("<"):
            alternatives = GRAMMAR[symbol[1:-1]]
            logprob = derivation.logprob - math.log(len(alternatives))
            for alternative in reversed(alternatives):
                pending = (*rest, *reversed(symbols(alternative)))
                stack.append((position, _Derivation(pending, derivation.facts, logprob)))
        elif position == len(found):
            furthest.record(position, 0, UNFINISHED)
        elif match := template_pattern(symbol).fullmatch(found[position]):
            facts, logprob, errors = _verify(symbol, match, derivation.facts)
            if errors:
                furthest.record(position, len(errors), errors[0])
            else:
                stack.append((position + 1, _Derivation(tuple(rest), facts, derivation.logprob + logprob)))
        else:
            furthest.record(position, math.inf, GRAMMAR_ERROR)


@cache
def kinds() -> dict[str, str]:
    """Name in the grammar -> the kind of entity that it is bound to ({"hero": "person", ...})."""
    slots = [part for row in GRAMMAR.values() for line in row for part in parts(line) if isinstance(part, Slot)]
    found = {slot.name: slot.kind for slot in slots if slot.kind}
    return found | {slot.name: found[slot.alias] for slot in slots if slot.alias}


@cache
def domain(slot: Slot) -> frozenset[str]:
    """Every text that the slot can contain, without regard to the facts of the story and of the world."""
    return frozenset(entity.text(slot.attribute) for entity in world()[kinds()[slot.name]])


@cache
def template_pattern(template: str) -> re.Pattern[str]:
    """A regular expression for the template: one group for each slot, which matches every text of its domain."""
    return re.compile("".join(re.escape(part) if isinstance(part, str) else _group(part) for part in parts(template)))


def _group(slot: Slot) -> str:
    return "(" + "|".join(map(re.escape, sorted(domain(slot), key=len, reverse=True))) + ")"


def _verify(
    template: str, match: re.Match[str], facts: dict[str, Entity]
) -> tuple[dict[str, Entity], float, list[str]]:
    """The facts after the sentence, the log-probability of its draws, and the kind of error of each wrong slot."""
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
