"""The run directory: written as a run goes, read back by everything that looks at a run.

config.json          the run as asked: model, PruneConfig, calibration, prunable weights
environment.json     versions, device, hashes of model and calibration
events.jsonl         every event, one per line (without Progress and growing texts)
masks/layer_000.safetensors    bit-packed masks, "initial/<name>" and "rebuilt/<name>", True = pruned
weights/layer_000.safetensors  values of the same keys, only where they are not the dense ones under the mask
saliency/layer_000.json        name -> histogram (see scores.histogram)
perplexity.json, generations.jsonl, zeroshot.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from barber.config import Sparsity
from barber.errors import UserError, first_line
from barber.events import (
    Event,
    LayerInitialised,
    PerplexityMeasured,
    Progress,
    RunStarted,
    Stage,
    SubBlockRebuilt,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)


def pack(mask: Tensor) -> Tensor:
    """A boolean mask (out, in) as uint8 bits in C order, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack`: boolean (out, in)."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape[0] * shape[1]).astype(bool).reshape(shape))


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def write_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, list[int]] | None = None) -> None:
    """Write safetensors as `write_json` does; `shapes` go into the header."""
    draft = path.with_name(path.name + ".part")
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(held, draft, metadata={key: json.dumps(shape) for key, shape in (shapes or {}).items()})
    os.replace(draft, path)


def create(path: Path) -> Path:
    """Make a new run directory; UserError if it cannot be written or holds something already."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UserError(f"Run directory {path} is not empty: give a new or empty folder.")
        for part in ("masks", "saliency"):
            (path / part).mkdir()
    except OSError as error:
        raise UserError(
            f"Run directory {path} cannot be written ({error.strerror}): give a folder you may write."
        ) from None
    return path


def record(path: Path, events: Generator[Event]) -> Iterator[Event]:
    """Pass a run's events on, writing each into the run directory before the consumer sees it."""
    with closing(events), (path / "events.jsonl").open("a", encoding="utf-8") as lines:
        for event in events:
            passing = isinstance(event, Progress) or (isinstance(event, TextGenerated) and not event.done)
            if not passing:
                try:
                    lines.write(json.dumps(event.to_dict()) + "\n")
                    lines.flush()
                    _store(path, event)
                except (OSError, SafetensorError) as error:
                    raise UserError(f"The run cannot be written to {path} ({first_line(error)}): make room.") from None
            yield event


def _store(path: Path, event: Event) -> None:
    match event:
        case RunStarted():
            write_json(path / "config.json", event.to_dict())
        case LayerInitialised():
            _store_layer(path, event, Stage.INITIAL)
        case SubBlockRebuilt():
            _store_layer(path, event, Stage.REBUILT)
            target = path / "saliency" / f"layer_{event.layer:03}.json"
            known = json.loads(target.read_text("utf-8")) if target.exists() else {}
            write_json(target, known | {name: module["histogram"] for name, module in event.modules.items()})
        case PerplexityMeasured():
            _append(path / "perplexity.json", event)
        case ZeroShotMeasured() | ZeroShotSkipped():
            _append(path / "zeroshot.json", event)
        case TextGenerated():
            with (path / "generations.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(event.to_dict()) + "\n")


def _append(path: Path, event: Event) -> None:
    known = json.loads(path.read_text("utf-8")) if path.exists() else []
    write_json(path, [*known, event.to_dict()])


def _store_layer(path: Path, event: LayerInitialised | SubBlockRebuilt, stage: Stage) -> None:
    target = path / "masks" / f"layer_{event.layer:03}.safetensors"
    tensors, shapes = _read_packed(target) if target.exists() else ({}, {})
    for name, mask in event.masks.items():
        tensors[f"{stage}/{name}"], shapes[f"{stage}/{name}"] = pack(mask), list(mask.shape)
    write_tensors(target, tensors, shapes)
    if event.weights:
        target = path / "weights" / f"layer_{event.layer:03}.safetensors"
        target.parent.mkdir(exist_ok=True)
        known = load_file(target) if target.exists() else {}
        write_tensors(target, known | {f"{stage}/{name}": weight for name, weight in event.weights.items()})


def _read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    with safe_open(path, "pt") as file:
        shapes = {key: json.loads(shape) for key, shape in (file.metadata() or {}).items()}
        return {key: file.get_tensor(key) for key in file.keys()}, shapes  # noqa: SIM118 (no mapping)


class RunDirectory:
    """A run as it lies on disk. Raises UserError if the folder holds no run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not all((self.path / name).is_file() for name in ("config.json", "events.jsonl")):
            missing = "holds no run" if self.path.exists() else "does not exist"
            raise UserError(f"{self.path} {missing}: give the folder that an earlier run was recorded in.")

    @property
    def config(self) -> dict:
        """RunStarted as a dict: model, config, calibration, modules, device, dtype."""
        try:
            return json.loads((self.path / "config.json").read_text("utf-8"))
        except ValueError:
            raise UserError(f"The run in {self.path} is damaged (config.json): give another one.") from None

    @property
    def sparsity(self) -> Sparsity:
        """What the run pruned."""
        return Sparsity.parse(self.config["config"]["sparsity"])

    @property
    def environment(self) -> dict:
        path = self.path / "environment.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def events(self) -> list[Event]:
        """All events; a last line that a killed run left torn is not one."""
        text = (self.path / "events.jsonl").read_text("utf-8")
        return [Event.from_dict(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]

    def layers(self) -> list[int]:
        return sorted(
            int(file.stem.removeprefix("layer_")) for file in (self.path / "masks").glob("layer_*.safetensors")
        )

    def masks(self, layer: int, stage: str) -> dict[str, Tensor]:
        """name -> bool (out, in), True = pruned, of one layer at "initial" or "rebuilt"; empty where there are none."""
        file = self.path / "masks" / f"layer_{layer:03}.safetensors"
        tensors, shapes = _read_packed(file) if file.exists() else ({}, {})
        here = f"{stage}/"
        return {k.removeprefix(here): unpack(v, tuple(shapes[k])) for k, v in tensors.items() if k.startswith(here)}

    def weights(self, layer: int, stage: str) -> dict[str, Tensor]:
        """name -> (out, in) values that are not the dense ones under the mask; mostly empty."""
        file = self.path / "weights" / f"layer_{layer:03}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        here = f"{stage}/"
        return {k.removeprefix(here): v for k, v in tensors.items() if k.startswith(here)}


def read_masks(path: Path | str) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Initial masks for a new run: layer -> (name -> mask, name -> updated weight).

    path: a run directory, whose initial masks are taken, or a safetensors file of boolean or 0/1 tensors (out, in)
    named "<layer>.<name>", like "0.self_attn.q_proj". Raises UserError if it is neither.
    """
    path = Path(path)
    try:
        if path.is_dir():
            run = RunDirectory(path)
            return {la: (run.masks(la, Stage.INITIAL), run.weights(la, Stage.INITIAL)) for la in run.layers()}
        tensors = load_file(path)
        masks: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            layer, name = key.split(".", 1)
            masks.setdefault(int(layer), ({}, {}))[0][name] = tensor.bool()
    except UserError:
        raise
    except Exception as error:  # safetensors has its own error type; a bad name or a missing file has others
        raise UserError(
            f"Masks {str(path)!r} cannot be read ({type(error).__name__}): give a run directory, or a safetensors file "
            "of boolean tensors named like 0.self_attn.q_proj."
        ) from None
    return masks
