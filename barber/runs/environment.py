"""The environment of a run: versions, device, and hashes of its inputs, so that a run resumes only with equal ones."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from barber.atomic_files import digest
from barber.errors import UserError
from barber.events import RunStarted
from barber.models.decoder import DecoderView
from barber.models.providers import LayerProvider
from barber.runs.checksums import ENVIRONMENT, read_checksums, read_verified

BITS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # bytes of a number -> integer type of that width

PACKAGES = ("torch", "transformers", "datasets", "safetensors")

IDLE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
}  # without effect on a forward pass


def describe_environment(started: RunStarted, seed: int, inputs: dict) -> dict:
    """JSON-able: versions, device, dtype, seed, and `inputs` from `describe_inputs`."""
    device = torch.device(started.device)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": started.dtype,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "calibration_fingerprint": started.calibration.get("fingerprint", ""),
        **inputs,
    }


def describe_inputs(
    provider: LayerProvider,
    view: DecoderView,
    evaluation: Iterable[tuple[str, Tensor]],
    tokenizer: str | None,
    masks: Path | str | None,
) -> dict:
    """JSON-able: hashes of everything that a run reads except its calibration data.

    The model must be dense. evaluation: name -> tokens (windows, seqlen) of each data set. tokenizer: its fingerprint.
    masks: the file or run directory that initial masks are read from.
    """
    weights, others = hash_model(provider, view)
    config = json.loads(view.model.config.to_json_string(use_diff=False))
    return {
        "model_hash": weights,
        "tensors": others,
        "model_config": {key: value for key, value in config.items() if key not in IDLE},
        "evaluation": {
            name: {
                "windows": len(tokens),
                "fingerprint": hashlib.blake2b(tokens.contiguous().numpy().data, digest_size=8).hexdigest(),
            }
            for name, tokens in evaluation
        },
        "tokenizer": tokenizer and tokenizer[:16],
        "initial_masks": masks and _hash_masks(Path(masks)),
    }


def check_inputs(path: Path, model: str, inputs: dict) -> None:
    """Raise a UserError that names the differences unless the run in `path` was started with these inputs.

    inputs: from `describe_inputs`, all or some of them. An input that the run did not record, as in runs of older
    versions, counts as equal.
    """
    there = read_environment(path)
    if there.get("model_hash") not in (None, inputs["model_hash"]):
        raise UserError(
            f"{model} does not have the weights that the run in {path} was started with: give that model, or start "
            "a new run."
        )
    parts = [part for part in inputs if part in there]
    found = difference({part: there[part] for part in parts}, {part: inputs[part] for part in parts})
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"The run in {path} was begun with other inputs ({'; '.join(found[:3])}{more}): give the inputs that it "
            "began with, or start a new run."
        )


def read_environment(path: Path) -> dict:
    """environment.json of a run, {} if it has none. Raises UserError if it is damaged."""
    if any(ENVIRONMENT in one["files"] for one in read_checksums(path)):
        return read_verified(path, ENVIRONMENT)
    try:  # a run of an older version has no checksum of it
        text = (path / ENVIRONMENT).read_text("utf-8") if (path / ENVIRONMENT).is_file() else "{}"
        if isinstance(data := json.loads(text), dict):
            return data
    except ValueError:
        pass
    raise UserError(f"The run in {path} is damaged ({ENVIRONMENT}): begin a new one.")


def hash_model(provider: LayerProvider, view: DecoderView) -> tuple[str, dict[str, str]]:
    """A hash of all prunable weights, and hashes of all other parameters and buffers: those outside the layers by
    name, those of a layer together under "layers.0".

    Hashes the sums of the tensors' bits over rows and columns, which are exact on every device and fast to compute.
    """
    weights, others = hashlib.blake2b(digest_size=16), {}
    inside: set[str] = set()
    places = {module: place for place, module in view.model.named_modules()}
    for layer in view.layers:
        provider.open(layer.index)
        prunable = {f"{weight.name}.weight" for weight in layer.weights}
        for weight in layer.weights:
            _add(weights, f"{layer.index}.{weight.name}", weight.view)
        rest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(_tensors(layer.module).items()):
            inside.add(f"{places[layer.module]}.{name}")
            if name not in prunable:
                _add(rest, name, tensor)
        others[f"layers.{layer.index}"] = rest.hexdigest()
        provider.close(layer.index)
    for name, tensor in _tensors(view.model).items():
        if name not in inside:
            own = hashlib.blake2b(digest_size=16)
            _add(own, f"{name} {tuple(tensor.shape)}", tensor)
            others[name] = own.hexdigest()
    return weights.hexdigest(), others


def _tensors(module: torch.nn.Module) -> Mapping[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


@torch.no_grad()
def _add(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Add a tensor of any shape to a hash; it is viewed as a matrix."""
    bits = tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()])
    bits = bits.view(len(tensor) if tensor.dim() > 1 else 1, -1)
    digest.update(name.encode())
    for side in (0, 1):
        digest.update(bits.sum(side, dtype=torch.int64).cpu().numpy().data)


def _hash_masks(path: Path) -> str:
    """The hash of a file, or of the masks and values in a run directory."""
    if path.is_file():
        return digest(path)
    total = hashlib.blake2b(digest_size=16)
    for file in sorted([*path.glob("masks/*.safetensors"), *path.glob("weights/*.safetensors")]):
        total.update(f"{file.relative_to(path).as_posix()} {digest(file)}".encode())
    return total.hexdigest()


def difference(there: dict, here: dict, prefix: str = "") -> list[str]:
    """One text for each value that differs, at any depth, like "nsamples: 64 there, 128 here"."""
    found: list[str] = []
    for key in there | here:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += difference(old, new, f"{prefix}{key}.")
        elif old != new:
            texts = [f"{len(v)} of them" if key == "modules" else v for v in (old, new)]  # too long to be shown
            found.append(f"{prefix}{key}: {texts[0]} there, {texts[1]} here")
    return found
