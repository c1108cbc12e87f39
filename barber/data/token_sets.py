"""Calibration and evaluation data: token windows from one kind of spec.

A spec is "c4", "wikitext2", "ptb" (from the hub, sampled as published), "storyteller" (bundled), or a local file:
.txt (one document), .jsonl ({"text": ...} on each line) or .npy (token ids).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from barber.bundled import STORYTELLER
from barber.data.hub import cached_tokens, hub_texts, tokenizer_fingerprint
from barber.data.sources import Part, file_tokens, local_file, need_tokenizer, story_rows, tokenise
from barber.errors import UserError
from barber.registry import DATA_SOURCES

C4_WINDOWS = 256  # as published: C4's validation text is cut to this many sequences
STORY_TOKENS = 65536  # of evaluation stories, whose supply is endless
DRAWS = 10000  # documents of C4 tried for one that is long enough


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """The sequences that saliency is measured on.

    tokens: (samples, seqlen) int64, on the CPU. source: where they are from, with the split. seed: of their sampling.
    """

    tokens: torch.Tensor
    source: str
    seed: int

    @property
    def fingerprint(self) -> str:
        """A short sha256 of the tokens: the same for the same data."""
        return hashlib.sha256(self.tokens.contiguous().numpy().tobytes()).hexdigest()[:16]

    def describe(self) -> dict:
        """A JSON-able dict: source, seed, samples, seqlen, fingerprint."""
        samples, seqlen = self.tokens.shape
        return {
            "source": self.source,
            "seed": self.seed,
            "samples": samples,
            "seqlen": seqlen,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The windows that perplexity is measured on: tokens (windows, seqlen) int64, dataset its name with the split."""

    tokens: torch.Tensor
    dataset: str


def load_calibration(
    spec: str,
    tokenizer,
    samples: int,
    seqlen: int,
    seed: int,
    *,
    evaluation: Sequence[str] = (),
    cache_dir: str | None = None,
) -> CalibrationSet:
    """`samples` sequences of `seqlen` tokens, drawn by `seed`.

    A stream is cut at random places; the rows of a 2-D .npy file are taken in order. tokenizer: None will do for .npy.
    evaluation: the specs that the run is measured on; a local file that is among them gives only its first half.
    cache_dir: for hub downloads and their tokens. UserError for whatever the user can mend.
    """
    _check_at_least(samples, 1, "Number of calibration samples")
    _check_at_least(seqlen, 2, "Sequence length")
    path = local_file(spec)
    if path:
        part = Part.FIRST if path in [local_file(other) for other in evaluation] else Part.WHOLE
        source = path.name + part.value
        tokens = file_tokens(path, tokenizer, part)
        if tokens.dim() == 2:
            _check_rows(tokens, samples, seqlen, source)
            return CalibrationSet(tokens[:samples], source, seed)
        return CalibrationSet(_draw(tokens, samples, seqlen, random.Random(seed), source), source, seed)
    need_tokenizer(tokenizer, spec)
    if spec == STORYTELLER:
        tokens = story_rows("calibration", tokenizer, samples, seqlen, seed)
        return CalibrationSet(tokens, f"{spec} (calibration split)", seed)
    split = DATA_SOURCES[spec].hub.calibration
    key = _key(spec, split.name, tokenizer, seqlen) | {"samples": samples, "seed": seed}
    tokens = cached_tokens(key, cache_dir, lambda: _draw_hub(spec, tokenizer, samples, seqlen, seed, cache_dir))
    return CalibrationSet(tokens, f"{spec} ({split.name} split)", seed)


def load_evaluation(
    spec: str,
    tokenizer,
    seqlen: int,
    *,
    calibration: str | None = None,
    windows: int | None = None,
    cache_dir: str | None = None,
) -> EvaluationSet:
    """Non-overlapping windows of `seqlen` tokens from the start of the data; a last, shorter rest is left out.

    calibration: the spec that the run is calibrated on; a local file that is the same gives only its second half.
    windows: at most this many. tokenizer, cache_dir, errors: as in load_calibration.
    """
    _check_at_least(seqlen, 2, "Sequence length")
    if windows is not None:
        _check_at_least(windows, 1, "Number of evaluation windows")
    path = local_file(spec)
    if path:
        part = Part.SECOND if calibration is not None and path == local_file(calibration) else Part.WHOLE
        dataset = path.name + part.value
        tokens = file_tokens(path, tokenizer, part)
        if tokens.dim() == 2:
            _check_rows(tokens, 1, seqlen, dataset)
    else:
        need_tokenizer(tokenizer, spec)
        if spec == STORYTELLER:
            dataset = f"{spec} (evaluation split)"
            tokens = story_rows("evaluation", tokenizer, windows or max(1, STORY_TOKENS // seqlen), seqlen, seed=0)
        else:
            split = DATA_SOURCES[spec].hub.evaluation
            dataset = f"{spec} ({split.name} split)"
            key = _key(spec, split.name, tokenizer, seqlen)
            tokens = cached_tokens(key, cache_dir, lambda: _join_hub(spec, tokenizer, seqlen, cache_dir))
    return EvaluationSet(_cut(tokens.flatten(), seqlen, dataset)[:windows], dataset)


def _draw(tokens: torch.Tensor, samples: int, seqlen: int, rng: random.Random, source: str) -> torch.Tensor:
    """(samples, seqlen) from random places of a stream (tokens,), with the published code's draws."""
    _check_length(len(tokens), seqlen + 1, source)
    starts = [rng.randint(0, len(tokens) - seqlen - 1) for _ in range(samples)]
    return torch.stack([tokens[start : start + seqlen] for start in starts])


def _cut(tokens: torch.Tensor, seqlen: int, source: str) -> torch.Tensor:
    """All (windows, seqlen) of a stream (tokens,) that do not overlap."""
    _check_length(len(tokens), seqlen, source)
    return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)


def _check_rows(tokens: torch.Tensor, samples: int, seqlen: int, source: str) -> None:
    """UserError unless (sequences, seqlen) tokens are that long and at least that many."""
    sequences, width = tokens.shape
    if width != seqlen:
        raise UserError(
            f"{source} holds sequences of {width} tokens, but the sequence length is {seqlen}: make it {width}."
        )
    if sequences < samples:
        raise UserError(
            f"{source} holds {sequences} sequences, but {samples} are needed: ask for {sequences} or fewer."
        )


def _draw_hub(spec: str, tokenizer, samples: int, seqlen: int, seed: int, cache_dir: str | None) -> torch.Tensor:
    """Calibration as published: C4 from a random document longer than seqlen, the others from the joined split."""
    rng = random.Random(seed)
    split = DATA_SOURCES[spec].hub.calibration
    texts = hub_texts(spec, split, cache_dir)
    if spec != "c4":
        return _draw(_tokens(tokenizer, split.join.join(texts)), samples, seqlen, rng, spec)
    return torch.cat(
        [_draw(_long_document(tokenizer, texts, seqlen, rng), 1, seqlen, rng, spec) for _ in range(samples)]
    )


def _long_document(tokenizer, texts: Sequence[str], seqlen: int, rng: random.Random) -> torch.Tensor:
    """The tokens of a random document that has more than `seqlen`."""
    for _ in range(DRAWS):
        tokens = _tokens(tokenizer, texts[rng.randint(0, len(texts) - 1)])
        if len(tokens) > seqlen:
            return tokens
    raise UserError(f"None of {DRAWS} documents of c4 has more than {seqlen} tokens: choose a shorter sequence length.")


def _join_hub(spec: str, tokenizer, seqlen: int, cache_dir: str | None) -> torch.Tensor:
    """The evaluation stream as published, (tokens,)."""
    split = DATA_SOURCES[spec].hub.evaluation
    tokens = _tokens(tokenizer, split.join.join(hub_texts(spec, split, cache_dir)))
    return tokens[: C4_WINDOWS * seqlen] if spec == "c4" else tokens


def _tokens(tokenizer, text: str) -> torch.Tensor:
    return torch.tensor(tokenise(tokenizer, text), dtype=torch.int64)


def _key(spec: str, split: str, tokenizer, seqlen: int) -> dict:
    data = DATA_SOURCES[spec].hub
    return {
        "data": [data.path, data.options],
        "split": split,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "seqlen": seqlen,
    }


def _check_at_least(value: int, least: int, what: str) -> None:
    if value < least:
        raise UserError(f"{what} {value} is not allowed: give {least} or more.")


def _check_length(tokens: int, needed: int, source: str) -> None:
    if tokens < needed:
        raise UserError(
            f"{source} is too short: it has {tokens} tokens and at least {needed} are needed; give more text or a "
            "shorter sequence length."
        )
