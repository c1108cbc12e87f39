"""The run directory: what is in it, and reading it.

job.json             the job that was asked for (spec.JobSpec), to resume it
config.json          the run as asked: model, PruneConfig, calibration, prunable weights
environment.json     versions, device, hashes of model and calibration
events.jsonl         every event, one per line (without Progress and growing texts)
masks/layer_000.safetensors    bit-packed masks, "initial/<name>" and "rebuilt/<name>", True = pruned
weights/layer_000.safetensors  values of the same keys, only where they are not the dense ones under the mask
saliency/layer_000.json        name -> histogram (see scores.histogram)
perplexity.json, generations.jsonl, zeroshot.json
checksums.jsonl      what files and events can be known again by (see files.py)

record.py writes it as a run goes, resume.py finds what is left of an interrupted one.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from barber.atomic_files import write_json
from barber.config import Sparsity
from barber.errors import UserError
from barber.events import Event, Stage
from barber.runs.packed_masks import read_packed, unpack
from barber.runs.recorder import create, record

__all__ = ["RunDirectory", "create", "read_masks", "record", "write_json"]


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
        tensors, shapes = read_packed(file) if file.exists() else ({}, {})
        here = f"{stage}/"
        return {k.removeprefix(here): unpack(v, shapes[k]) for k, v in tensors.items() if k.startswith(here)}

    def weights(self, layer: int, stage: str) -> dict[str, Tensor]:
        """name -> (out, in) values that are not the dense ones under the mask; mostly empty."""
        file = self.path / "weights" / f"layer_{layer:03}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        here = f"{stage}/"
        return {k.removeprefix(here): v for k, v in tensors.items() if k.startswith(here)}

    def state(self, layer: int, stage: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`masks` and `weights` of one layer at a stage, as model.Layer.apply takes them."""
        return self.masks(layer, stage), self.weights(layer, stage)


def read_masks(path: Path | str) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Initial masks for a new run: layer -> (name -> mask, name -> updated weight).

    path: a run directory, whose initial masks are taken, or a safetensors file of boolean or 0/1 tensors (out, in)
    named "<layer>.<name>", like "0.self_attn.q_proj". Raises UserError if it is neither.
    """
    path = Path(path)
    try:
        if path.is_dir():
            run = RunDirectory(path)
            return {layer: run.state(layer, Stage.INITIAL) for layer in run.layers()}
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
