"""Check whether the Hugging Face hub can be reached, and avoid retries if not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_session

REACH_SECONDS = 5  # without a response within this time, the hub counts as unreachable

AGAIN_SECONDS = 60  # time until the next request to an unreachable hub

_failed: dict[str, float] = {}  # endpoint -> time of the failed request
_lock = threading.Lock()
_before: list[dict[Any, bool]] = []  # the settings before `quick_offline`, once for each thread that is inside


def reachable() -> bool:
    """Whether the hub responds to a short request; a failure counts for the next minute."""
    failed = _failed.get(constants.ENDPOINT)
    if failed is not None and time.monotonic() - failed < AGAIN_SECONDS:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    except Exception:  # no route, no name or a timeout; the client's exception classes change between versions
        _failed[constants.ENDPOINT] = time.monotonic()
        return False
    return True


@contextmanager
def quick_offline() -> Iterator[None]:
    """Make the hub's client, transformers and `datasets` use their cache at once if the hub cannot be reached.

    Otherwise they retry every request: three minutes for a model, half a minute for a data set. Several threads may
    be inside; the last one that leaves restores the settings.
    """
    with _lock:
        if not _before:
            _before.append({place: place.HF_HUB_OFFLINE for place in _settings()})
            offline = any(_before[0].values()) or not reachable()
            for place in _before[0]:
                place.HF_HUB_OFFLINE = offline
        else:
            _before.append(_before[0])
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                for place in _settings():  # `datasets` may have been imported since, and copied the client's setting
                    place.HF_HUB_OFFLINE = before.get(place, before[constants])


def _settings() -> list[Any]:
    """The modules with the offline setting."""
    return [constants, sys.modules["datasets"].config] if "datasets" in sys.modules else [constants]
