"""Load the texts of published data sets from the Hugging Face hub, and cache their tokens.

Without a network, loading fails fast and with a clear error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from huggingface_hub import constants
from safetensors import SafetensorError

from barber.errors import Unavailable
from barber.hub_access import quick_offline
from barber.registry import DATA_SOURCES, Split


def hub_texts(spec: str, split: Split, cache_dir: str | None = None):
    """Return the texts of a split as a sequence of str. Raises Unavailable if they cannot be loaded."""
    import datasets

    data = DATA_SOURCES[spec].hub
    options = dict(data.options)
    if split.files:
        # Only some files of the data set are loaded, so the check of the total number of rows would fail.
        options |= {"data_files": {split.name: split.files}, "verification_mode": "no_checks"}
    try:
        with quick_offline():
            loaded = datasets.load_dataset(data.path, split=split.name, cache_dir=cache_dir, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = _reason(error)
        raise Unavailable(
            f"Data set {spec} ({data.path}) cannot be loaded because {reason}, or give storyteller or a .txt, "
            ".jsonl or .npy file instead.",
            reason,
        ) from error
    texts = loaded[data.column]  # rows are read from disk when indexed: a shard of C4 would not fit in memory
    return texts if split.first is None else texts[: split.first]


def _reason(error: Exception) -> str:
    """Return why a data set could not be loaded and how to fix it, for any error of the hub client."""
    from datasets.exceptions import DatasetNotFoundError

    if "gated" in str(error).lower():
        return "it is gated: ask for access on its hub page and log in with `hf auth login`"
    if isinstance(error, ConnectionError):
        return "the hub cannot be reached and the local cache lacks it: connect to the network"
    if isinstance(error, DatasetNotFoundError):
        return "the hub has none of that name: look whether it was moved or renamed"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: make room, or give another --datasets_cache_dir"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "its cache may not be written: give another --datasets_cache_dir"
    return f"the hub or its copy in the cache is broken ({type(error).__name__}): try again with an empty cache"


def tokenizer_fingerprint(tokenizer) -> str:
    """Return a hash that differs between tokenizers that encode text differently."""
    if getattr(tokenizer, "is_fast", False):
        state = tokenizer.backend_tokenizer.to_str()
    else:
        state = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(state.encode()).hexdigest()


def recall_tokens(key: dict, cache_dir: str | None) -> torch.Tensor | None:
    """Return the cached tokens of a JSON-serialisable key, or None if there are none or the file is corrupt.

    The cache is the folder `barber` in `cache_dir`, by default in the home folder of the hub client (HF_HOME).
    """
    with suppress(OSError, SafetensorError, KeyError):
        return safetensors.torch.load_file(_cache_file(key, cache_dir))["tokens"]
    return None


def remember_tokens(key: dict, cache_dir: str | None, tokens: torch.Tensor) -> None:
    """Write tokens to the cache under a key. A cache folder that is not writable is no error: nothing is cached."""
    path = _cache_file(key, cache_dir)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(safetensors.torch.save({"tokens": tokens.contiguous()}, {"key": json.dumps(key)}))
        unfinished.replace(path)


def _cache_file(key: dict, cache_dir: str | None) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return Path(cache_dir or constants.HF_HOME) / "barber" / f"{name}.safetensors"
