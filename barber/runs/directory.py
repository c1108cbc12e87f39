"""Read a run directory. Its files:

job.json             the job (job_spec.JobSpec), from which it is resumed
config.json          the run's model, PruneConfig, calibration, prunable weights
environment.json     versions, device, hashes of everything that the run reads (see environment.py)
events.jsonl         every event, one per line (without Progress and growing texts)
masks/layer_000.safetensors    bit-packed masks, "initial/<name>" and "rebuilt/<name>", True = pruned
weights/layer_000.safetensors  values of the same keys, only where they are not the dense ones under the mask
saliency/layer_000.json        name -> histogram (see events.Histogram)
perplexity.json, generations.jsonl, zeroshot.json
saved.json           the files of the model that the run saved (see saved_model.py)
checksums.jsonl      digests of files and events (see checksums.py)
run.lock, writer.json    the lock of the writing process, and its name (see writer_lock.py)

recorder.py writes it during the run; resume.py reads and repairs that of an interrupted run.
"""

from __future__ import annotations

import json
from os.path import isdir
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from barber.atomic_files import hasher
from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import Event, RunStarted, Stage, StageReached
from barber.input_files import regular_file
from barber.models.decoder import Masks, State, Values
from barber.runs.checksums import EVENTS, read_checksums
from barber.runs.environment import read_environment
from barber.runs.masks_file import StageMasks, by_layer, masks_in_file
from barber.runs.packed_masks import read_packed, read_packed_mask, unpack

TYPES = {"model": str, "config": dict, "calibration": dict, "modules": list, "device": str, "dtype": str}


class RunDirectory:
    """A recorded run. Raises UserError if the folder has no run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not all((self.path / name).is_file() for name in ("config.json", "events.jsonl")):
            missing = "holds no run" if self.path.exists() else "does not exist"
            raise UserError(f"{self.path} {missing}: give the folder that an earlier run was recorded in.")

    @property
    def config(self) -> dict:
        """RunStarted as a dict: model, config, calibration, modules, device, dtype."""
        try:
            event = Event.read(json.loads((self.path / "config.json").read_text("utf-8")))
            if isinstance(event, RunStarted) and all(isinstance(getattr(event, n), t) for n, t in TYPES.items()):
                return event.to_dict()
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        raise UserError(f"The run in {self.path} is damaged (config.json): resume it, or give another one.")

    @property
    def sparsity(self) -> Sparsity:
        """What the run pruned."""
        return Sparsity.parse(self.config["config"]["sparsity"])

    @property
    def environment(self) -> dict:
        """The environment of the run, {} if it was not recorded; see environment.py."""
        return read_environment(self.path)

    def events(self) -> list[Event]:
        """All events; an incomplete last line is ignored. Raises UserError where a line is damaged."""
        digests = {one["events"]: one["files"].get(EVENTS) for one in read_checksums(self.path) if "events" in one}
        events: list[Event] = []
        sofar = hasher()
        for number, line in enumerate((self.path / EVENTS).read_bytes().split(b"\n")[:-1], 1):
            sofar.update(line + b"\n")
            try:
                if digests.get(number, sofar.hexdigest()) != sofar.hexdigest():
                    raise ValueError("not as it was written")
                events.append(Event.read(json.loads(line)))
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"The run in {self.path} is damaged (line {number} of {EVENTS}): resume it, which "
                    "removes what is damaged, or give another one."
                ) from None
        return events

    def layers(self) -> list[int]:
        files = (self.path / "masks").glob("layer_*.safetensors")
        return sorted(int(number) for file in files if (number := file.stem.removeprefix("layer_")).isdecimal())

    def masks(self, layer: int, stage: str) -> Masks:
        """name -> bool (out, in), True = pruned, of one layer at "initial" or "rebuilt"; empty where there are none."""
        file = self._masks_file(layer)
        tensors, shapes = read_packed(file) if file.exists() else ({}, {})
        here = f"{stage}/"
        return {k.removeprefix(here): unpack(v, shapes[k]) for k, v in tensors.items() if k.startswith(here)}

    def packed_mask(self, layer: int, stage: str, name: str) -> tuple[Tensor, list[int]] | None:
        """The mask of one matrix as bits (see packed_masks.pack), and its shape (out, in); None where there is none."""
        file = self._masks_file(layer)
        return read_packed_mask(file, f"{stage}/{name}") if file.exists() else None

    def weights(self, layer: int, stage: str) -> Values:
        """name -> (out, in) values that are not the dense ones under the mask; mostly empty."""
        file = self.path / "weights" / f"layer_{layer:03}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        here = f"{stage}/"
        return {k.removeprefix(here): v for k, v in tensors.items() if k.startswith(here)}

    def _masks_file(self, layer: int) -> Path:
        return self.path / "masks" / f"layer_{layer:03}.safetensors"

    def state(self, layer: int, stage: str) -> State:
        """`masks` and `weights` of one layer at a stage, as Layer.assign takes them."""
        return self.masks(layer, stage), self.weights(layer, stage)

    def stage_masks(self, stage: str | None = None) -> StageMasks:
        """The masks of all layers at a stage, the run's last one unless given.

        Raises UserError if not every layer reached that stage.
        """
        reached = {event.stage for event in self.events() if isinstance(event, StageReached)}
        stages = [one for one in (Stage.REBUILT, Stage.INITIAL) if one in reached and stage in (None, one)]
        if not stages:
            lacks = f"no stage {stage!r}: it had no rebuild, or was stopped before" if stage else "not all masks yet"
            raise UserError(f"The run in {self.path} has {lacks}: resume it first, or give another stage or run.")
        config = self.config
        return StageMasks(
            source=self.path,
            stage=stages[0],
            model=config["model"],
            model_hash=self.environment.get("model_hash", ""),
            dtype=config["dtype"],
            config=PruneConfig.from_dict(config["config"]),
            shapes=by_layer({(module["layer"], module["name"]): module["shape"] for module in config["modules"]}),
            read=lambda layer: self.state(layer, stages[0]),
        )


def open_masks(path: Path, stage: str | None = None) -> StageMasks:
    """The masks in a run directory or in an exported file. Raises UserError if there are none.

    stage: of a run; its last one unless given. A file has the masks of one stage.
    """
    if isdir(path):
        return RunDirectory(path).stage_masks(stage)
    masks = masks_in_file(regular_file(path, "Masks file", "give a run directory, or a file that `masks` wrote"))
    if masks is None:
        raise UserError(
            f"Masks {str(path)!r} do not say which model they are of: give a run directory or a file that `masks` "
            "wrote, or prune with --initial_masks."
        )
    if stage not in (None, masks.stage):
        raise UserError(f"{path} has the {masks.stage} masks of its run: leave --stage out, or give the run directory.")
    return masks


def read_masks(path: Path | str) -> dict[int, State]:
    """Initial masks for a new run: layer -> (name -> mask, name -> updated weight).

    path: a run directory, whose initial masks are taken, an exported file, whose masks are taken at either stage, or a
    safetensors file of boolean or 0/1 tensors (out, in) named "<layer>.<name>", like "0.self_attn.q_proj". Raises
    UserError if it is none of these.
    """
    try:
        if isdir(path):
            run = RunDirectory(path)
            return {layer: run.state(layer, Stage.INITIAL) for layer in run.layers()}
        file = regular_file(path, "Masks file", "give a run directory, or a safetensors file of masks")
        if exported := masks_in_file(file):
            return {layer: exported.state(layer) for layer in exported.shapes}
        tensors = load_file(file)
        masks: dict[int, State] = {}
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
