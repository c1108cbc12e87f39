"""The masks of one stage of a run, and the one bit-packed safetensors file that they can be exported to.

The header of the file has "barber_masks" (the version of the format), "model", "model_hash" (of environment.hash_model;
empty if the run recorded none), "dtype" (of the weights that were hashed), "pattern", "stage", "config" (PruneConfig as
JSON) and "shapes" (key -> [out, in], as JSON). Its tensors are "masks/0.self_attn.q_proj", packed bits, True = pruned;
and "values/0.self_attn.q_proj", the whole weight (out, in), where the run gave it values that are not the dense ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from barber.atomic_files import new_file, reason_and_remedy
from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import Stage
from barber.input_files import shown_name
from barber.models.decoder import State
from barber.models.loading import DTYPES
from barber.runs.packed_masks import pack, unpack, write_tensors

FORMAT, VERSION = "barber_masks", "1"
MASKS, VALUES = "masks/", "values/"
FIELDS = ("model", "model_hash", "dtype")


@dataclass(frozen=True)
class StageMasks:
    """Masks of a whole model at one stage, and values where they are not the dense ones; read layer by layer.

    Attributes:
        source: the run directory or the file that they are read from.
        stage: initial or rebuilt.
        model: the name of the model that they were made for.
        model_hash: of its prunable weights in `dtype`; "" if unknown.
        dtype: like "bfloat16".
        config: the configuration of the run.
        shapes: layer -> name -> [out, in].
        read: layer -> its state.
    """

    source: Path
    stage: Stage
    model: str
    model_hash: str
    dtype: str
    config: PruneConfig
    shapes: dict[int, dict[str, list[int]]]
    read: Callable[[int], State]

    @property
    def pattern(self) -> Sparsity:
        return self.config.sparsity

    def state(self, layer: int) -> State:
        """The masks and values of a layer. Raises UserError if they are not there, or damaged."""
        try:
            masks, values = self.read(layer)
            found = {name: list(mask.shape) for name, mask in masks.items()}
            if found == self.shapes[layer] and all(list(v.shape) == found.get(k) for k, v in values.items()):
                return masks, values
        except (OSError, SafetensorError, ValueError, KeyError):
            pass
        raise UserError(f"The masks of layer {layer} in {self.source} are damaged: give an intact copy.")

    def counts(self) -> tuple[int, int]:
        """Number of weights that the masks prune, and of all weights. Raises UserError if a layer is damaged."""
        zeros = weights = 0
        for layer in self.shapes:
            for mask in self.state(layer)[0].values():
                zeros, weights = zeros + int(mask.count_nonzero()), weights + mask.numel()
        return zeros, weights


def masks_in_file(path: Path) -> StageMasks | None:
    """The masks in an exported file; None for a safetensors file of another kind. Raises UserError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            header, keys = file.metadata() or {}, set(file.keys())
        if FORMAT not in header:
            return None
        if header[FORMAT] != VERSION:
            raise UserError(f"{path} is written in version {header[FORMAT]} of the format of masks: upgrade Barber.")
        shapes = {_place(key): _shape(shape) for key, shape in json.loads(header["shapes"]).items()}
        config = PruneConfig.from_dict(json.loads(header["config"]))
        if header["dtype"] not in DTYPES or not shapes or {f"{MASKS}{_key(*place)}" for place in shapes} - keys:
            raise ValueError("incomplete")
        named = {name: header[name] for name in FIELDS}
        stage, values = Stage(header["stage"]), {key for key in keys if key.startswith(VALUES)}
    except UserError:
        raise
    except Exception as error:  # safetensors has its own error type, and a damaged header may raise any other
        raise UserError(
            f"Masks {str(path)!r} cannot be read ({type(error).__name__}): give a run directory, or an intact file."
        ) from None
    layers = by_layer(shapes)

    def read(layer: int) -> State:
        with safe_open(path, "pt") as file:
            names = layers[layer]
            masks = {n: unpack(file.get_tensor(f"{MASKS}{_key(layer, n)}"), shape) for n, shape in names.items()}
            held = [name for name in names if f"{VALUES}{_key(layer, name)}" in values]
            return masks, {name: file.get_tensor(f"{VALUES}{_key(layer, name)}") for name in held}

    return StageMasks(path, stage, config=config, shapes=layers, read=read, **named)


def write_masks(masks: StageMasks, path: Path) -> None:
    """Write masks into a new file. Raises UserError if it is there already, or cannot be written.

    Local paths of the run stay out of it but for the last part of the model's.
    """
    tensors: dict[str, Tensor] = {}
    with new_file(path) as draft:
        for layer in masks.shapes:
            packed, values = masks.state(layer)
            tensors |= {f"{MASKS}{_key(layer, name)}": pack(mask) for name, mask in packed.items()}
            tensors |= {f"{VALUES}{_key(layer, name)}": value for name, value in values.items()}
        try:
            write_tensors(draft, tensors, _header(masks))
        except SafetensorError as error:
            raise UserError(f"{path} cannot be written {reason_and_remedy(error)}.") from None


def _header(masks: StageMasks) -> dict[str, str]:
    config = masks.config.to_dict()
    config["initial_masks"] = config["initial_masks"] and shown_name(config["initial_masks"])
    shapes = {_key(layer, name): shape for layer, names in masks.shapes.items() for name, shape in names.items()}
    named: dict[str, Any] = {name: getattr(masks, name) for name in FIELDS} | {"model": shown_name(masks.model)}
    described = {"pattern": str(masks.pattern), "stage": str(masks.stage)}
    return {FORMAT: VERSION} | named | described | {"config": json.dumps(config), "shapes": json.dumps(shapes)}


def _key(layer: int, name: str) -> str:
    return f"{layer}.{name}"


def _place(key: str) -> tuple[int, str]:
    """The inverse of `_key`."""
    layer, name = key.split(".", 1)
    return int(layer), name


def _shape(shape: Any) -> list[int]:
    rows, columns = shape
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0):
        raise ValueError(f"{shape} is not a shape")
    return [rows, columns]


def by_layer(shapes: dict[tuple[int, str], list[int]]) -> dict[int, dict[str, list[int]]]:
    """(layer, name) -> shape as layer -> name -> shape."""
    layers: dict[int, dict[str, list[int]]] = {}
    for (layer, name), shape in shapes.items():
        layers.setdefault(layer, {})[name] = shape
    return layers
