"""How listeners that use the model share it: in the hub's line, and on ZeroGPU one at a time inside its decorator."""

from __future__ import annotations

import os
from collections.abc import Callable

ZERO_GPU = "SPACES_ZERO_GPU" in os.environ
# The hub's line tells those who wait their place. On ZeroGPU waiting would cost them their time on the GPU.
SHARED = {"concurrency_id": "gpu", "concurrency_limit": 1 if ZERO_GPU else 20}


def on_gpu(function: Callable) -> Callable:
    """`function` as ZeroGPU wants it; unchanged everywhere else."""
    if not ZERO_GPU:
        return function
    import spaces

    return spaces.GPU(duration=120)(function)
