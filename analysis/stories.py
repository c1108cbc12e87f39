"""What a reader who knows the bundled model's world makes of a continuation."""

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
    GRAMMAR_ERROR: "is not of this world, or has no place here",
    KNOWLEDGE_ERROR: "has a wrong fact of the world",
    STORY_ERROR: "contradicts the story so far",
    TOO_LONG: "goes on after its end",
}
UNKNOWN_PROMPT = "The prompt does not open a story of this world."


class Reading(NamedTuple):
    """A continuation cut in three, and a remark: the good start, the first wrong sentence (if any), the rest."""

    good: str
    wrong: str
    rest: str
    remark: str


def read(prompt: str, text: str) -> Reading:
    """Judge a story that starts with `prompt` and goes on with `text`."""
    story = prompt + text
    verdict = check(story)
    if verdict.consistent:
        return Reading(text, "", "", "A consistent story, every fact right.")
    told = sentences(story)
    cut_off = verdict.sentence == len(told) - 1 and not told[-1].endswith(".")
    if verdict.error == UNFINISHED or cut_off:
        return Reading(text, "", "", "Right so far, but unfinished.")
    start = _offset(story, told, verdict.sentence)
    end = start + len(told[verdict.sentence])
    if end <= len(prompt):
        return Reading(text, "", "", UNKNOWN_PROMPT)
    start = max(start, len(prompt))
    right = max(0, verdict.sentence - len(sentences(prompt)))  # a prompt may end within the wrong sentence
    remark = f"{right} {'sentence' if right == 1 else 'sentences'} right, then one that {REASONS[verdict.error]}."
    return Reading(story[len(prompt) : start], story[start:end], story[end:], remark)


def _offset(story: str, told: list[str], index: int) -> int:
    """Where the sentence of this index begins in the story."""
    position = 0
    for sentence in told[: index + 1]:
        position = story.index(sentence, position)
        start, position = position, position + len(sentence)
    return start
