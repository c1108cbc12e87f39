"""Check the stories of the bundled model: which sentence is the first that breaks the rules of its training text."""

from __future__ import annotations

from typing import NamedTuple

from barber.storyteller.check import (
    GRAMMAR_ERROR,
    KNOWLEDGE_ERROR,
    STORY_ERROR,
    TOO_LONG,
    UNFINISHED,
    check,
    sentences,
)

REASONS = {
    GRAMMAR_ERROR: "does not follow the grammar of the bundled stories",
    KNOWLEDGE_ERROR: "states a wrong fact",
    STORY_ERROR: "contradicts the sentences before it",
    TOO_LONG: "follows the end of the story",
}
UNKNOWN_PROMPT = "The prompt does not begin a story like those that the model was trained on."


class Reading(NamedTuple):
    """A continuation in three parts (the correct start, the first wrong sentence, the rest) and a verdict."""

    good: str
    wrong: str
    rest: str
    remark: str


def read(prompt: str, text: str) -> Reading:
    """Check a story that begins with `prompt` and continues with `text`."""
    story = prompt + text
    verdict = check(story)
    if verdict.consistent:
        return Reading(text, "", "", "A consistent story: every fact is correct.")
    found = sentences(story)
    cut_off = verdict.sentence == len(found) - 1 and not found[-1].endswith(".")
    if verdict.error == UNFINISHED or cut_off:
        return Reading(text, "", "", "Correct so far, but unfinished.")
    start = _offset(story, found, verdict.sentence)
    end = start + len(found[verdict.sentence])
    if end <= len(prompt):
        return Reading(text, "", "", UNKNOWN_PROMPT)
    start = max(start, len(prompt))
    right = max(0, verdict.sentence - len(sentences(prompt)))  # a prompt may end inside the wrong sentence
    remark = f"{right} {'sentence' if right == 1 else 'sentences'} correct, then one that {REASONS[verdict.error]}."
    return Reading(story[len(prompt) : start], story[start:end], story[end:], remark)


def _offset(story: str, found: list[str], index: int) -> int:
    """Where the sentence of this index begins in the story."""
    position = 0
    for sentence in found[: index + 1]:
        position = story.index(sentence, position)
        start, position = position, position + len(sentence)
    return start
