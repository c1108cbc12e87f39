"""Calibration and evaluation data: windows of tokens from a data spec.

A spec is "c4", "wikitext2", "ptb" (from the hub, sampled as published), "storyteller" (bundled), or a local file: text
in one of the formats of documents.py, or token ids (.npy). "self" is for jobs, see evaluation/self_calibration.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from barber.bundled import STORYTELLER
from barber.data.hub import hub_texts, recall_tokens, remember_tokens, tokenizer_fingerprint
from barber.data.sources import TEXTS_PER_EVENT, Part, file_tokens, local_file, need_tokenizer, story_rows, tokenise
from barber.data.windows import begin_with, cut, draw, first_token, random_window, room_for
from barber.errors import UserError
from barber.events import Event, Progress
from barber.registry import DATA_SOURCES, SELF, WindowStart

T = TypeVar("T")

C4_WINDOWS = 256  # as published: C4's validation text is cut to this many sequences
STORY_TOKENS = 65536  # number of evaluation tokens of storyteller, whose generator is unlimited
DRAWS = 10000  # maximum number of C4 documents that are tokenised to find one that is long enough


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """The calibration sequences.

    Attributes:
        tokens: (samples, seqlen) int64, on the CPU.
        source: name of the data set or file, with the split.
        seed: seed of the sampling.
    """

    tokens: torch.Tensor
    source: str
    seed: int

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the sha256 of the tokens: equal for equal tokens."""
        return hashlib.sha256(self.tokens.contiguous().numpy().tobytes()).hexdigest()[:16]

    def describe(self) -> dict:
        """Return a JSON-serialisable dict: source, seed, samples, seqlen, fingerprint."""
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
    """The windows that perplexity is measured on.

    Attributes:
        tokens: (windows, seqlen) int64.
        dataset: name of the data set, with the split.
        window_start: "bos" if every window starts with the tokenizer's beginning-of-text token, else "none".
    """

    tokens: torch.Tensor
    dataset: str
    window_start: str = WindowStart.NONE

    @property
    def fingerprint(self) -> str:
        """The name with a hash of the tokens: equal for equal windows."""
        return f"{self.dataset} {hashlib.sha256(self.tokens.contiguous().numpy().tobytes()).hexdigest()[:16]}"


@dataclass(frozen=True, eq=False)
class Reading:
    """How text is converted to sequences of `seqlen` tokens.

    Attributes:
        tokenizer: may be None if the data is a .npy file.
        seqlen: tokens of a sequence.
        first: the token that every sequence must start with, see windows.first_token; the rows of a two-dimensional
            .npy file are not changed.
        text_field: the key or column that contains the text, in files with several.
        cache_dir: folder for downloads from the hub and their tokens.
    """

    tokenizer: Any
    seqlen: int
    first: int | None = None
    text_field: str = "text"
    cache_dir: str | None = None


def load_calibration(
    spec: str,
    tokenizer,
    samples: int,
    seqlen: int,
    seed: int,
    *,
    evaluation: Sequence[str] = (),
    text_field: str = "text",
    window_start: str = WindowStart.AUTO,
    cache_dir: str | None = None,
) -> CalibrationSet:
    """Sample `samples` sequences of `seqlen` tokens with `seed`; see `draw_calibration`, `Reading`, `WindowStart`."""
    reading = Reading(tokenizer, seqlen, first_token(tokenizer, window_start), text_field, cache_dir)
    return drain(draw_calibration(spec, reading, samples, seed, evaluation))


def load_evaluation(
    spec: str,
    tokenizer,
    seqlen: int,
    *,
    calibration: str | None = None,
    windows: int | None = None,
    text_field: str = "text",
    window_start: str = WindowStart.AUTO,
    cache_dir: str | None = None,
) -> EvaluationSet:
    """Split data into non-overlapping windows of `seqlen` tokens; see `cut_evaluation`, `Reading`, `WindowStart`."""
    reading = Reading(tokenizer, seqlen, first_token(tokenizer, window_start), text_field, cache_dir)
    return drain(cut_evaluation(spec, reading, windows, calibration))


def draw_calibration(
    spec: str, reading: Reading, samples: int, seed: int, evaluation: Sequence[str] = ()
) -> Generator[Event, None, CalibrationSet]:
    """Sample `samples` sequences with `seed`: yield Progress and Notice events, and return the set.

    Sequences start at random positions of a stream; the rows of a 2-D .npy file are used in order. evaluation: the
    specs of the evaluation data; if a local file is also among them, only its first half is used. Raises UserError.
    """
    seqlen, first = reading.seqlen, reading.first
    _check_at_least(samples, 1, "Number of calibration samples")
    _check_at_least(seqlen, 2, "Sequence length")
    if spec == SELF:
        raise UserError(f"Calibration text {SELF!r} is sampled by the model, which only a job has: give another text.")
    path = local_file(spec)
    if path:
        part = Part.FIRST if path in [local_file(other) for other in evaluation] else Part.WHOLE
        source = path.name + part.value
        tokens = yield from file_tokens(path, reading.tokenizer, part, reading.text_field)
        if tokens.dim() == 2:
            _check_rows(tokens, samples, seqlen, source)
            return CalibrationSet(tokens[:samples], source, seed)
        rows = yield from draw(tokens, samples, seqlen, random.Random(seed), first, source)
        return CalibrationSet(rows, source, seed)
    need_tokenizer(reading.tokenizer, spec)
    if spec == STORYTELLER:
        rows = yield from story_rows("calibration", reading.tokenizer, samples, seqlen, seed, first)
        return CalibrationSet(rows, f"{spec} (calibration split)", seed)
    split = DATA_SOURCES[spec].hub.calibration
    key = _key(spec, split.name, reading) | {"samples": samples, "seed": seed, "first": first}
    rows = recall_tokens(key, reading.cache_dir)
    if rows is None:
        rows = yield from _draw_hub(spec, reading, samples, random.Random(seed))
        remember_tokens(key, reading.cache_dir, rows)
    return CalibrationSet(rows, f"{spec} ({split.name} split)", seed)


def cut_evaluation(
    spec: str, reading: Reading, windows: int | None = None, calibration: str | None = None
) -> Generator[Event, None, EvaluationSet]:
    """Split the data into windows, in order, without overlap: yield Progress and Notice events, and return the set.

    The remaining tokens that do not fill a window are dropped. windows: the maximum number of windows. calibration: the
    spec of the calibration data; if it is the same local file, only the second half of the file is used. Raises
    UserError.
    """
    seqlen, first = reading.seqlen, reading.first
    _check_at_least(seqlen, 2, "Sequence length")
    if windows is not None:
        _check_at_least(windows, 1, "Number of evaluation windows")
    if spec == SELF:
        raise UserError(f"Evaluation data {SELF!r} are not possible, it is for calibration only: give another text.")
    path = local_file(spec)
    if path:
        part = Part.SECOND if calibration is not None and path == local_file(calibration) else Part.WHOLE
        dataset = path.name + part.value
        tokens = yield from file_tokens(path, reading.tokenizer, part, reading.text_field)
        if tokens.dim() == 2:
            _check_rows(tokens, 1, seqlen, dataset)
            rows = tokens[:windows]
        else:
            rows = cut(tokens, seqlen, windows, first, dataset)
    elif spec == STORYTELLER:
        dataset = f"{spec} (evaluation split)"
        count = windows or max(1, STORY_TOKENS // seqlen)
        rows = yield from story_rows("evaluation", reading.tokenizer, count, seqlen, seed=0, first=first)
    else:
        need_tokenizer(reading.tokenizer, spec)
        dataset = f"{spec} ({DATA_SOURCES[spec].hub.evaluation.name} split)"
        rows = cut(_join_hub(spec, reading), seqlen, _most(spec, windows), first, dataset)
    return EvaluationSet(rows, dataset, begin_with(rows, getattr(reading.tokenizer, "bos_token_id", None)))


def drain(events: Generator[Event, None, T]) -> T:
    """Run a generator of events to its end and return its return value; the events are discarded."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def _check_rows(tokens: torch.Tensor, samples: int, seqlen: int, source: str) -> None:
    """Raise UserError unless (sequences, seqlen) tokens have this `seqlen` and at least `samples` sequences."""
    sequences, width = tokens.shape
    if width != seqlen:
        raise UserError(
            f"{source} is two-dimensional and holds sequences of {width} tokens, but the sequence length is {seqlen}: "
            f"make it {width}, or give the ids as one one-dimensional stream, which is cut to any length."
        )
    if sequences < samples:
        raise UserError(
            f"{source} holds {sequences} sequences, but {samples} are needed: ask for {sequences} or fewer."
        )


def _draw_hub(spec: str, reading: Reading, samples: int, rng: random.Random) -> Generator[Progress, None, torch.Tensor]:
    """Sample calibration sequences as published: from C4 documents longer than seqlen, else from the joined split."""
    split = DATA_SOURCES[spec].hub.calibration
    texts = hub_texts(spec, split, reading.cache_dir)
    if spec != "c4":
        tokens = _tokens(reading.tokenizer, split.join.join(texts))
        return (yield from draw(tokens, samples, reading.seqlen, rng, reading.first, spec))
    rows = room_for(samples, reading.seqlen)
    for index in range(samples):
        document = yield from _long_document(texts, reading, rng, Progress("data", index, samples, spec))
        rows[index] = random_window(document, reading.seqlen, rng, reading.first)
    return rows


def _long_document(
    texts: Sequence[str], reading: Reading, rng: random.Random, here: Progress
) -> Generator[Progress, None, torch.Tensor]:
    """Return the tokens of a random document longer than `seqlen`; yield `here` repeatedly during the search."""
    for tried in range(DRAWS):
        if tried % TEXTS_PER_EVENT == 0:
            yield here
        tokens = _tokens(reading.tokenizer, texts[rng.randint(0, len(texts) - 1)])
        if len(tokens) > reading.seqlen:
            return tokens
    raise UserError(
        f"None of {DRAWS} documents of c4 has more than {reading.seqlen} tokens: choose a shorter sequence length."
    )


def _join_hub(spec: str, reading: Reading) -> torch.Tensor:
    """Return the evaluation token stream as published, (tokens,)."""
    split = DATA_SOURCES[spec].hub.evaluation
    key = _key(spec, split.name, reading)
    tokens = recall_tokens(key, reading.cache_dir)
    if tokens is None:
        tokens = _tokens(reading.tokenizer, split.join.join(hub_texts(spec, split, reading.cache_dir)))
        tokens = tokens[: C4_WINDOWS * reading.seqlen] if spec == "c4" else tokens
        remember_tokens(key, reading.cache_dir, tokens)
    return tokens


def _most(spec: str, windows: int | None) -> int | None:
    """Return the maximum number of windows of a data set of the hub, None for no limit."""
    return min(windows or C4_WINDOWS, C4_WINDOWS) if spec == "c4" else windows


def _tokens(tokenizer, text: str) -> torch.Tensor:
    return torch.tensor(tokenise(tokenizer, text), dtype=torch.int64)


def _key(spec: str, split: str, reading: Reading) -> dict:
    data = DATA_SOURCES[spec].hub
    return {
        "data": [data.path, data.options],
        "split": split,
        "tokenizer": tokenizer_fingerprint(reading.tokenizer),
        "seqlen": reading.seqlen,
    }


def _check_at_least(value: int, least: int, what: str) -> None:
    if value < least:
        raise UserError(f"{what} {value} is not allowed: give {least} or more.")
