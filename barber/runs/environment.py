"""What a run was made with: versions, device, and hashes of the model and the calibration data."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import torch

from barber.events import RunStarted
from barber.models.decoder import DecoderView
from barber.models.providers import LayerProvider

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number -> integers that are as wide

PACKAGES = ("torch", "transformers", "datasets", "safetensors")


def model_hash(provider: LayerProvider, view: DecoderView) -> str:
    """Hash of all prunable weights, so that two runs can be known to be of one model.

    Of the sums of the weights' bits over rows and over columns, which are exact on every device and quickly made.
    """
    digest = hashlib.blake2b(digest_size=16)
    for layer in view.layers:
        for name, weight in provider.dense(layer.index, layer.weights).items():
            bits = weight.contiguous().view(BITS[weight.element_size()])
            digest.update(f"{layer.index}.{name}".encode())
            for side in (0, 1):
                digest.update(bits.sum(side, dtype=torch.int64).cpu().numpy().data)
    return digest.hexdigest()


def describe_environment(provider: LayerProvider, view: DecoderView, seed: int, started: RunStarted) -> dict:
    """JSON-able: versions, device, dtype, seed, hashes."""
    device = torch.device(started.device)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": started.dtype,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "model_hash": model_hash(provider, view),
        "calibration_fingerprint": started.calibration.get("fingerprint", ""),
    }
