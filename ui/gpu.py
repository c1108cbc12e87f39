"""How the listeners that use the model share it: in the hub's queue; on ZeroGPU, one at a time in its decorator."""

from __future__ import annotations

import os
from collections.abc import Callable

ZERO_GPU = "SPACES_ZERO_GPU" in os.environ
# The queue of the hub shows each job its place. On ZeroGPU, waiting there would use up the visitor's GPU time.
SHARED = {"concurrency_id": "gpu", "concurrency_limit": 1 if ZERO_GPU else 20}


def on_gpu(function: Callable) -> Callable:
    """`function` with the decorator of ZeroGPU where the app runs there, else unchanged."""
    if not ZERO_GPU:
        return function
    import spaces

    return spaces.GPU(duration=120)(function)
