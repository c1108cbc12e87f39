"""Barber: one-shot pruning masks, rebuilt where the sub-block's error says so (LLM-Barber, arXiv 2408.10631)."""

from importlib import import_module

_HOMES = {
    "CalibrationSet": "calibration",
    "DecoderView": "model",
    "PruneConfig": "config",
    "Sparsity": "config",
    "UserError": "errors",
    "load": "load",
    "load_calibration": "calibration",
    "prune": "prune",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import the public names when they are first used, so that light modules need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'barber' has no attribute {name!r}")
    return getattr(import_module(f"barber.{_HOMES[name]}"), name)
