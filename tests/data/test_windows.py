"""The first token of windows; drawing windows can be stopped, and never takes more memory than is free."""

from __future__ import annotations

import random
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from barber.data.token_sets import Reading, cut_evaluation, drain, draw_calibration, load_calibration, load_evaluation
from barber.data.windows import cut, draw, first_token
from barber.errors import UserError
from barber.events import Progress
from barber.storyteller import documents
from tests.support.tiny import story, tokenizer

BOS = 1


def without_bos():
    """The same tokenizer, which has a BOS token but does not put it before a text."""
    from tokenizers import processors

    tok = tokenizer()
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tok


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(story(1, 600))
    return str(path)


def test_the_tokenizer_decides_the_first_token_by_default():
    adds, leaves = tokenizer(), without_bos()
    assert [first_token(tok, "auto") for tok in (adds, leaves, None)] == [BOS, None, None]
    assert [first_token(tok, "none") for tok in (adds, leaves, None)] == [None, None, None]
    assert [first_token(tok, "bos") for tok in (adds, leaves)] == [BOS, BOS]
    with pytest.raises(UserError, match="needs a tokenizer with a beginning-of-text token"):
        first_token(None, "bos")
    with pytest.raises(UserError, match="choose one of auto, none, bos"):
        first_token(adds, "eos")


def test_each_window_begins_with_the_bos_of_the_tokenizer(text):
    ids = tokenizer()(story(1, 600)).input_ids
    assert ids[0] == BOS
    data = load_evaluation(text, tokenizer(), 16)
    assert data.window_start == "bos"
    assert data.tokens.shape == ((len(ids) - 1) // 15, 16)
    assert (data.tokens[:, 0] == BOS).all()
    assert data.tokens[:, 1:].flatten().tolist() == ids[1 : 1 + len(data.tokens) * 15]  # each token once, none twice
    calibration = load_calibration(text, tokenizer(), 9, 16, seed=4).tokens
    assert (calibration[:, 0] == BOS).all()
    assert not (calibration[:, 1:] == BOS).any()
    for tok, start in ((tokenizer(), "none"), (without_bos(), "auto")):
        plain = load_evaluation(text, tok, 16, window_start=start)
        assert plain.window_start == "none"
        stream = tok(story(1, 600)).input_ids
        assert plain.tokens.flatten().tolist() == stream[: len(stream) // 16 * 16]
    assert load_evaluation(text, without_bos(), 16, window_start="bos").window_start == "bos"


def test_stories_and_rows_of_ids_keep_their_first_tokens(tmp_path):
    for tok, start, begins in (
        (tokenizer(), "none", "bos"),
        (without_bos(), "auto", "none"),
        (without_bos(), "bos", "bos"),
    ):
        data = load_evaluation("storyteller", tok, 24, windows=5, window_start=start)
        assert data.window_start == begins
        first = tok(documents("evaluation", 1)[0]).input_ids
        assert data.tokens[0].tolist() == ([BOS] * (start == "bos") + first)[:24]
    rows = np.arange(2, 42).reshape(4, 10)
    np.save(tmp_path / "rows.npy", rows)
    data = load_evaluation(str(tmp_path / "rows.npy"), tokenizer(), 10)
    assert data.tokens.tolist() == rows.tolist()
    assert data.window_start == "none"


@given(
    stream=st.lists(st.integers(0, 3), min_size=2, max_size=60),
    seqlen=st.integers(2, 12),
    most=st.none() | st.integers(1, 5),
    first=st.sampled_from([None, 1]),
)
def test_windows_contain_each_token_once(stream, seqlen, most, first):
    tokens = torch.tensor(stream)
    if len(stream) < seqlen:
        with pytest.raises(UserError, match="too short"):
            cut(tokens, seqlen, most, first, "here")
        return
    windows = cut(tokens, seqlen, most, first, "here").tolist()
    place = 0
    for window in windows:
        assert len(window) == seqlen
        own = window if first is None or stream[place] == first else window[1:]
        assert first is None or window[0] == first
        assert own == stream[place : place + len(own)]
        place += len(own)
    if most is None or len(windows) < most:
        put = first is not None and place < len(stream) and stream[place] != first
        assert len(stream) - place + put < seqlen, "what is left would have made a window"


def test_windows_are_at_the_same_positions_with_and_without_bos():
    tokens = torch.arange(10, 500)
    plain, begun = (drain(draw(tokens, 6, 16, random.Random(3), first, "here")) for first in (None, BOS))
    assert begun[:, 1:].equal(plain[:, :-1])
    assert (begun[:, 0] == BOS).all()


@pytest.mark.parametrize("load", ["calibration", "evaluation"])
@pytest.mark.parametrize("spec", ["storyteller", "text"])
@pytest.mark.timeout(20)
def test_a_request_beyond_memory_is_refused_at_once(text, spec, load):
    spec = text if spec == "text" else spec
    tok = tokenizer()
    started = time.monotonic()
    if load == "calibration":
        with pytest.raises(UserError, match="of memory are free"):
            load_calibration(spec, tok, 10**10, 2048 if spec == "storyteller" else 64, 0)
    elif spec == "storyteller":
        with pytest.raises(UserError, match="of memory are free"):
            load_evaluation(spec, tok, 2048, windows=10**10)
    else:  # a text has no more windows than it has
        assert len(load_evaluation(spec, tok, 64, windows=10**10).tokens) < 100
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("spec", ["storyteller", "text"])
@pytest.mark.timeout(20)
def test_a_large_draw_can_be_stopped_at_any_time(text, spec):
    reading = Reading(tokenizer(), 16)
    events = draw_calibration(text if spec == "text" else spec, reading, 10**6, 0)
    gaps, last = [], time.monotonic()
    for event in islice(events, 20):
        assert isinstance(event, Progress)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
    events.close()
    assert max(gaps) < 3
    windows = cut_evaluation("storyteller", reading, 10**6)
    assert [event.done for event in islice(windows, 4)] == [0, 32, 64, 96]
    windows.close()
