"""How listeners that use the model share it: one at a time, and on ZeroGPU inside its decorator."""

from __future__ import annotations

import os
from collections.abc import Callable

ONE_AT_A_TIME = {"concurrency_id": "gpu", "concurrency_limit": 1}


def on_gpu(function: Callable) -> Callable:
    """`function` as ZeroGPU wants it; unchanged everywhere else."""
    if "SPACES_ZERO_GPU" not in os.environ:
        return function
    import spaces

    return spaces.GPU(duration=120)(function)
