"""The number of correct sentences in a continuation, and the reason why the next one is wrong."""

from __future__ import annotations

import pytest

from analysis import stories
from barber.storyteller import generate_stories


def story() -> tuple[str, list[str]]:
    """A generated story: its first two sentences as one text, and the sentences that follow."""
    sentences = [sentence.text for sentence in generate_stories("evaluation", 1)[0].sentences]
    return " ".join(sentences[:2]), sentences[2:]


def test_a_generated_story_is_consistent():
    prompt, rest = story()
    reading = stories.read(prompt, " " + " ".join(rest))
    assert reading.wrong == reading.rest == ""
    assert reading.remark.startswith("A consistent story")


@pytest.mark.parametrize("count", [0, 2])
def test_an_unfinished_story_is_correct_so_far(count):
    prompt, rest = story()
    text = "".join(f" {sentence}" for sentence in rest[:count])
    assert stories.read(prompt, text).good == text
    assert "unfinished" in stories.read(prompt, text).remark
    assert "unfinished" in stories.read(prompt, text + " Then the").remark


def test_the_first_wrong_sentence_is_named():
    prompt, rest = story()
    reading = stories.read(prompt, " ".join(["", rest[0], "Zebra zebra zebra.", *rest[2:]]))
    assert reading.wrong == "Zebra zebra zebra."
    assert reading.good == f" {rest[0]} "
    assert reading.rest == " " + " ".join(rest[2:])
    assert reading.remark.startswith("1 sentence correct, then one that ")


def test_an_unknown_prompt_is_distinguished_from_a_wrong_continuation():
    assert "prompt" in stories.read("Call me Ishmael.", " Some years ago").remark
    reading = stories.read("Once upon", " a midnight dreary. The end.")
    assert reading.wrong == " a midnight dreary."
    assert reading.rest == " The end."


def test_no_sentence_is_correct_if_the_prompt_ends_in_a_wrong_one():
    reading = stories.read("Once upon a time", ", there was a barber was a black jacket. She had a black bag.")
    assert reading.remark.startswith("0 sentences correct")
