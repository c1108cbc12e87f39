"""Calibration and evaluation sequences from files and stories, and user errors."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from barber.data.sources import tokenise
from barber.data.token_sets import CalibrationSet, load_calibration, load_evaluation
from barber.errors import UserError
from tests.support.golden_data import GOLDEN
from tests.support.tiny import story, tokenizer


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story(seed)}) for seed in range(40)) + "\n\n")
    return str(path)


@pytest.fixture
def tok():
    return tokenizer()


def stream(tok, texts) -> list[int]:
    return [token for text in texts for token in tokenise(tok, text)]


def test_jsonl_windows_are_slices_of_the_token_stream(jsonl, tok):
    ids = stream(tok, [story(seed) for seed in range(40)])
    assert ids.count(tok.bos_token_id) == 40  # each document with the tokenizer's own BOS
    assert tok.eos_token_id not in ids
    data = load_calibration(jsonl, tok, 5, 16, seed=3, window_start="none")
    assert data.tokens.shape == (5, 16)
    assert data.tokens.dtype == torch.int64
    pieces = [ids[start : start + 16] for start in range(len(ids) - 15)]
    assert all(row in pieces for row in data.tokens.tolist())
    windows = load_evaluation(jsonl, tok, 16, window_start="none").tokens
    assert windows.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert len(load_evaluation(jsonl, tok, 16, windows=3).tokens) == 3


def test_the_seed_determines_the_sample_and_its_fingerprint(jsonl, tok):
    first, again, other = (load_calibration(jsonl, tok, 8, 16, seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    described = json.loads(json.dumps(first.describe()))
    assert described == {
        "source": "stories.jsonl",
        "seed": 0,
        "samples": 8,
        "seqlen": 16,
        "fingerprint": first.fingerprint,
    }


def test_a_file_with_two_uses_is_halved_and_both_sources_name_their_half(jsonl, tok, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(jsonl)
    calibration = load_calibration(jsonl, tok, 500, 16, 0, evaluation=["storyteller", str(link)], window_start="none")
    evaluation = load_evaluation(str(link), tok, 16, calibration=jsonl, window_start="none")
    assert calibration.source == "stories.jsonl (first half)"
    assert evaluation.dataset == "stories.jsonl (second half)"
    second = stream(tok, [story(seed) for seed in range(20, 40)])
    assert evaluation.tokens.flatten().tolist() == second[: len(second) // 16 * 16]
    first = stream(tok, [story(seed) for seed in range(20)])
    pieces = [first[start : start + 16] for start in range(len(first) - 15)]
    assert all(row in pieces for row in calibration.tokens.tolist())
    assert load_evaluation(jsonl, tok, 16, calibration="storyteller").dataset == "stories.jsonl"


def test_a_text_file_is_one_document_halved_by_tokens(tmp_path, tok):
    path = tmp_path / "book.TXT"
    path.write_text(story(1, 100) + "\n\n" + story(2, 100))
    ids = tokenise(tok, path.read_text())
    assert ids.count(tok.bos_token_id) == 1
    evaluation = load_evaluation(str(path), tok, 8, calibration=str(path), window_start="none")
    second = ids[len(ids) // 2 :]
    assert evaluation.tokens.flatten().tolist() == second[: len(second) // 8 * 8]


def test_npy_rows_are_taken_in_order_without_a_tokenizer(tmp_path):
    rows = np.arange(16 * 12, dtype=np.int16).reshape(16, 12)
    np.save(tmp_path / "rows.npy", rows)
    spec = str(tmp_path / "rows.npy")
    assert load_calibration(spec, None, 10, 12, seed=5).tokens.equal(torch.from_numpy(rows[:10]).long())
    assert load_evaluation(spec, None, 12).tokens.equal(torch.from_numpy(rows).long())
    assert load_evaluation(spec, None, 12, calibration=spec).tokens.equal(torch.from_numpy(rows[8:]).long())
    assert load_calibration(spec, None, 8, 12, 0, evaluation=[spec]).tokens.max() == 8 * 12 - 1


@given(length=st.integers(3, 200), seqlen=st.integers(2, 40), samples=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_npy_streams_give_windows_of_consecutive_ids(tmp_path_factory, length, seqlen, samples, seed):
    path = tmp_path_factory.mktemp("npy") / "stream.npy"
    np.save(path, np.arange(length, dtype=np.uint16))
    if length <= seqlen:
        with pytest.raises(UserError, match=f"has {length} tokens and at least {seqlen + 1} are needed"):
            load_calibration(str(path), None, samples, seqlen, seed)
        return
    tokens = load_calibration(str(path), None, samples, seqlen, seed).tokens
    assert tokens.shape == (samples, seqlen)
    assert (tokens.diff(dim=1) == 1).all()
    assert len(load_evaluation(str(path), None, seqlen).tokens) == length // seqlen


def test_stories_are_split_endless_and_seeded(tok):
    data = load_calibration("storyteller", tok, 70, 64, seed=0)
    assert data.source == "storyteller (calibration split)"
    assert data.tokens.shape == (70, 64)
    assert data.fingerprint != load_calibration("storyteller", tok, 70, 64, seed=1).fingerprint
    prefix = load_calibration("storyteller", tok, 7, 64, seed=0)
    assert prefix.tokens.equal(data.tokens[:7])
    assert (data.tokens[:, 0] == tok.bos_token_id).all(), "every window begins with a story"
    (long,) = load_calibration("storyteller", tok, 1, 4000, seed=0).tokens.tolist()
    follows = [after for token, after in pairwise(long) if token == tok.eos_token_id]
    assert follows
    assert set(follows) == {tok.bos_token_id}
    evaluation = load_evaluation("storyteller", tok, 64, windows=70)
    assert evaluation.dataset == "storyteller (evaluation split)"
    assert not evaluation.tokens.equal(data.tokens)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "\n\n", "holds no text"),
        ("empty.txt", " \n", "holds no text"),
        ("bad.jsonl", '{"text": "a cat"}\n{"text": 3}\n', "Line 2 of bad.jsonl"),
        ("cut.jsonl", '{"text": "a cat"}\n\n{"text": "a', "Line 3 of cut.jsonl"),
        ("list.jsonl", '["text"]', "Line 1 of list.jsonl"),
        ("short.txt", "the cat", r"has 3 tokens and at least 17 are needed"),
        ("latin.txt", b"caf\xe9 \xff", "cannot be read as UTF-8"),
        ("text.npy", b"not numpy", "cannot be read as a .npy file"),
        ("float.npy", np.zeros(40), r"holds float64 \(40,\)"),
        ("cube.npy", np.zeros((2, 2, 2), int), r"holds int64 \(2, 2, 2\)"),
        ("pickle.npy", np.array([{"a": 1}], dtype=object), "cannot be read as a .npy file"),
        ("negative.npy", np.array([3, -1] * 20), "negative id -1"),
        ("wide.npy", np.zeros((4, 20), int), "sequences of 20 tokens, but the sequence length is 16"),
        ("few.npy", np.zeros((3, 16), int), "holds 3 sequences, but 4 are needed"),
        ("none.npy", np.zeros(0, int), "has 0 tokens"),
    ],
)
def test_bad_files_are_user_errors(tmp_path, tok, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_calibration(str(path), tok, 4, 16, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_calibration, load_evaluation])
def test_bad_requests_are_user_errors(load, tok, jsonl, tmp_path):
    numbers = (4, 16, 0) if load is load_calibration else (16,)
    for spec, message in (
        ("c5", "give one of c4, wikitext2, ptb, storyteller"),
        (str(tmp_path / "gone.txt"), "does not exist"),
        (str(tmp_path), "is a folder"),
        ("", "is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            load(spec, tok, *numbers)
    for spec in (jsonl, "storyteller", "c4"):
        with pytest.raises(UserError, match="has no tokenizer"):
            load(spec, None, *numbers)


def test_sizes_out_of_range(tok, jsonl):
    with pytest.raises(UserError, match="samples 0"):
        load_calibration(jsonl, tok, 0, 16, 0)
    with pytest.raises(UserError, match="Sequence length 1"):
        load_calibration(jsonl, tok, 4, 1, 0)
    with pytest.raises(UserError, match="windows 0"):
        load_evaluation(jsonl, tok, 16, windows=0)
    with pytest.raises(UserError, match="at least 100000 are needed"):
        load_evaluation(jsonl, tok, 100000)


def test_the_golden_calibration_sequences_load_unchanged():
    path = GOLDEN / "calibration_tokens.npy"
    data = load_calibration(str(path), None, 16, 64, 0)
    assert isinstance(data, CalibrationSet)
    assert data.tokens.equal(torch.from_numpy(np.load(path)).long())
