"""What a run was made with: versions, device, and hashes of the model and the calibration data."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import torch

from barber.events import RunStarted
from barber.model import DenseWeights

PACKAGES = ("torch", "transformers", "datasets", "safetensors")


def model_hash(dense: DenseWeights) -> str:
    """Hash of all prunable weights, so that two runs can be known to be of one model."""
    digest = hashlib.blake2b(digest_size=16)
    for (layer, name), tensor in dense.tensors.items():
        digest.update(f"{layer}.{name}".encode())
        digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_environment(dense: DenseWeights, seed: int, started: RunStarted) -> dict:
    """JSON-able: versions, device, dtype, seed, hashes."""
    device = torch.device(started.device)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": started.dtype,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "model_hash": model_hash(dense),
        "calibration_fingerprint": started.calibration.get("fingerprint", ""),
    }
