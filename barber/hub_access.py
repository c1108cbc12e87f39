"""Whether the Hugging Face hub can be reached, and no waiting for it where it cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_session

REACH_SECONDS = 5  # a hub that does not answer within this is taken as out of reach

AGAIN_SECONDS = 60  # a hub that was out of reach is not asked again before

_failed: dict[str, float] = {}  # endpoint -> when it was out of reach


def reachable() -> bool:
    """Whether the hub answers at all: one short request, or what one within the last minute has shown."""
    failed = _failed.get(constants.ENDPOINT)
    if failed is not None and time.monotonic() - failed < AGAIN_SECONDS:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    except Exception:  # no route, no name, a timeout: the client's own classes change between versions
        _failed[constants.ENDPOINT] = time.monotonic()
        return False
    return True


@contextmanager
def quick_offline() -> Iterator[None]:
    """Let the hub's client, and so transformers, and `datasets` go to their cache at once when the hub is out of reach.

    Left to themselves they try every request again and again: three minutes for a model, half a minute for a data set.
    """
    before = {place: place.HF_HUB_OFFLINE for place in _settings()}
    offline = any(before.values()) or not reachable()
    try:
        for place in before:
            place.HF_HUB_OFFLINE = offline
        yield
    finally:
        for place in _settings():  # `datasets` may have been imported inside, and has taken the client's setting then
            place.HF_HUB_OFFLINE = before.get(place, before[constants])


def _settings() -> list[Any]:
    """The modules that say whether the hub is to be asked."""
    return [constants, sys.modules["datasets"].config] if "datasets" in sys.modules else [constants]
