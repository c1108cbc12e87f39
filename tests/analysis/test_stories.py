"""How far a told story is right, sentence by sentence."""

from __future__ import annotations

import pytest

from analysis import stories
from barber.storyteller import tales


def story() -> tuple[str, list[str]]:
    """A story of the world: its opening, and the sentences that follow."""
    told = [sentence.text for sentence in tales("evaluation", 1)[0].sentences]
    return " ".join(told[:2]), told[2:]


def test_a_true_story_is_read_to_its_end():
    prompt, rest = story()
    reading = stories.read(prompt, " " + " ".join(rest))
    assert reading.wrong == reading.rest == ""
    assert reading.remark.startswith("A consistent story")


@pytest.mark.parametrize("count", [0, 2])
def test_a_story_cut_short_is_right_so_far(count):
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


def test_a_prompt_from_elsewhere_is_told_from_a_bad_continuation():
    assert "prompt" in stories.read("Call me Ishmael.", " Some years ago").remark
    reading = stories.read("Once upon", " a midnight dreary. The end.")
    assert reading.wrong == " a midnight dreary."
    assert reading.rest == " The end."


def test_a_prompt_within_a_wrong_sentence_has_no_right_ones():
    reading = stories.read("Once upon a time", ", there was a barber was a black jacket. She had a black bag.")
    assert reading.remark.startswith("0 sentences correct")
