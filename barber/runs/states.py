"""The masks and values of a recorded run's layers, in its directory, from which the run reads them again."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from barber.atomic_files import draft_of, make_folder
from barber.events import Stage
from barber.models.decoder import Masks, State, Values
from barber.runs.directory import RunDirectory
from barber.runs.packed_masks import draft_tensors, pack, read_packed


class RecordedStates:
    """Stores the states of layers in a run directory, so that not all masks of a large model are in memory.

    `save` writes drafts. The recorder commits them with the event of the layer; after that, `load` reads them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, layer: int, stage: Stage, state: State) -> None:
        draft_layer(self.path, layer, stage, *state)

    def load(self, layer: int, stage: Stage) -> State:
        return RunDirectory(self.path).state(layer, stage)


def layer_files(layer: int, values: Values) -> list[str]:
    """The files of a layer's masks and, if it has any, of its values."""
    names = [f"masks/layer_{layer:03}.safetensors"]
    return [*names, f"weights/layer_{layer:03}.safetensors"] if values else names


def draft_layer(path: Path, layer: int, stage: Stage, masks: Masks, values: Values) -> list[str]:
    """Write drafts of a layer's files, with the earlier content of the files; return their names."""
    names = layer_files(layer, values)
    target = path / names[0]
    make_folder(target)
    tensors, shapes = read_packed(target) if target.exists() else ({}, {})
    for name, mask in masks.items():
        tensors[f"{stage}/{name}"], shapes[f"{stage}/{name}"] = pack(mask), list(mask.shape)
    draft_tensors(target, tensors, shapes)
    if values:
        target = path / names[1]
        make_folder(target)
        earlier = load_file(target) if target.exists() else {}
        draft_tensors(target, earlier | {f"{stage}/{name}": value for name, value in values.items()})
    return names


def drafted_layer(path: Path, layer: int, stage: Stage, masks: Masks, values: Values) -> list[str]:
    """The names of a layer's files, whose drafts this writes unless `RecordedStates.save` wrote them."""
    names = layer_files(layer, values)
    if all(draft_of(path / name).exists() for name in names):
        return names
    return draft_layer(path, layer, stage, masks, values)
