"""Numbers of generated texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.wording import describe, first_difference, repetition

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


@given(WORDS, WORDS, WORDS)
def test_the_first_difference_is_after_the_words_in_common(start, one, other):
    number = first_difference(" ".join(start + one), " ".join(start + other))
    if one == other:
        assert number is None
    else:
        assert number > len(start)
        first, second = ((start + rest + [None] * number)[:number] for rest in (one, other))
        assert first[:-1] == second[:-1]
        assert first[-1] != second[-1]


def test_a_text_that_ends_earlier_differs_at_the_word_that_it_lacks():
    assert first_difference("one two", "one two three") == 3
    assert first_difference("", "one") == 1
    assert first_difference(" one  two ", "one two") is None


@given(WORDS)
def test_repetition_is_a_share_that_grows_when_a_text_is_said_twice(words):
    once = repetition(" ".join(words))
    assert 0 <= once < 1
    if len(words) >= 3:
        assert repetition(" ".join(words * 3)) > once or once > 0.5


def test_repetition_counts_sequences_of_three_words():
    assert repetition("a b c d e f") == 0
    assert repetition("a b c a b c") == 1 / 4
    assert repetition("no no no no no") == pytest.approx(2 / 3)


def test_the_sentence_says_both():
    assert (
        describe("a b c a b c", "a b d")
        == "First difference at word 3, 25\N{NO-BREAK SPACE}% of its three-word sequences repeat earlier ones."
    )
    assert describe("a b", "a b") == "The same words as the dense model."
    assert describe("a b", "") == ""
