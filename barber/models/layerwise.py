"""Layerwise loading: one decoder layer at a time is in memory, the others stay on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from barber.models.checkpoint_files import META, Checkpoint, empty_model, quiet
from barber.models.decoder import DecoderView, by_parameter, joined
from barber.models.loading import LoadedModel, Source, cache_if_unreachable, check_complete, explained, finish
from barber.models.safetensors_file import read_header
from barber.models.saving import Placing, draft_folder

UNLIMITED = 2**62  # bytes of a shard, so large that each part is one shard


@dataclass(frozen=True)
class LayerwiseModel:
    """A model whose decoder layers are on the meta device until they are opened.

    Methods that read raise UserError if the files cannot be read any more.

    Attributes:
        loaded: the model without gradients; all tensors outside the layers are on the device, in the dtype of the run.
        view: its structure; opening and closing layers replaces their parameters, not their modules.
        checkpoint: its files.
        prefixes: prefix of the names in each layer, like "model.layers.0.".
        other_bytes: bytes on the device while all layers are closed.
    """

    loaded: LoadedModel
    view: DecoderView
    checkpoint: Checkpoint
    prefixes: tuple[str, ...]
    other_bytes: int

    def open(self, index: int) -> None:
        """Load the dense weights and persistent buffers of a layer onto the device unless it is open."""
        if any(parameter.is_meta for parameter in self.view.layers[index].module.parameters()):
            _set_tensors(self.loaded.model, self._read(index))

    def close(self, index: int) -> None:
        """Free the parameters of a layer, with all changes to them. Buffers stay."""
        module = self.view.layers[index].module
        for name, parameter in list(module.named_parameters()):
            if not parameter.is_meta:
                set_module_tensor_to_device(module, name, META, clear_cache=False)

    def dense(self, index: int) -> dict[str, Tensor]:
        """Name within the layer -> dense weight (out, in) on the device, read from disk, not shared with the model."""
        values = self._read(index)
        return {w.name: w.oriented(values[self.prefixes[index] + w.path]) for w in self.view.layers[index].weights}

    def layer_bytes(self, index: int) -> int:
        """Bytes that `open` loads onto the device."""
        state = self.checkpoint.skeleton.state_dict()
        return sum(tensor.nbytes for name, tensor in state.items() if name.startswith(self.prefixes[index]))

    def save(
        self,
        path: Path,
        final: Callable[[int], Mapping[str, Tensor]],
        placing: Placing | None = None,
        card: str = "",
    ) -> None:
        """Write a Hugging Face folder, one shard per layer, which `from_pretrained` loads with exactly these weights.

        final: layer index -> final prunable weights (out, in) by name within the layer, in any dtype, on any device.
        It is called once per layer, in order, and one layer is in memory at a time; open layers do not change. All
        other tensors are as loaded. Names are those of `save_pretrained`, dtypes those of the run. Raises UserError,
        without partial files, if the folder cannot be written. card: as in draft_folder.
        """
        parts = len(self.prefixes) + 1
        with draft_folder(path, placing, card) as draft:
            weight_map: dict[str, str] = {}
            folder, size = draft / "part", 0
            for number, index in enumerate((None, *range(len(self.prefixes))), 1):
                file = draft / f"model-{number:05d}-of-{parts:05d}.safetensors"
                state = self._outside() if index is None else self._final(index, final)
                with quiet():
                    self.loaded.model.save_pretrained(folder, state_dict=state, max_shard_size=UNLIMITED)
                os.replace(folder / SAFE_WEIGHTS_NAME, file)
                tensors = read_header(file)
                weight_map |= dict.fromkeys(tensors, file.name)
                size += sum(tensor.nbytes for tensor in tensors.values())
            for written in folder.iterdir():  # the configs are the same for every part
                os.replace(written, draft / written.name)
            folder.rmdir()
            index_text = json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2)
            (draft / SAFE_WEIGHTS_INDEX_NAME).write_text(index_text + "\n", encoding="utf-8")
            if self.loaded.tokenizer is not None:
                self.loaded.tokenizer.save_pretrained(draft)

    def _read(self, index: int) -> dict[str, Tensor]:
        keys = [key for key, name in self.checkpoint.names.items() if name.startswith(self.prefixes[index])]
        with explained(self.loaded.name):
            return self.checkpoint.read(keys)

    def _outside(self) -> dict[str, Tensor]:
        state = self.loaded.model.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(self.prefixes)}

    def _final(self, index: int, final: Callable[[int], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The state of a layer with its final weights. The dense ones are freed first."""
        found = by_parameter(self.view.layers[index].weights)
        weights = {self.prefixes[index] + slices[0].path: slices for slices in found}
        state = {name: tensor for name, tensor in self._read(index).items() if name not in weights}
        given = final(index)
        return state | {name: joined(ws, given).to(ws[0].parameter.dtype) for name, ws in weights.items()}


def load_layerwise(source: Source) -> LayerwiseModel:
    """Load a model that `find_source` found without its decoder layers. Raises UserError.

    Only tensors outside the layers are read, and no file is mapped into memory.
    """
    with cache_if_unreachable(source.path), explained(source.name):
        checkpoint = Checkpoint(source)
        model = empty_model(source)
        _fill_buffers(model, source)
        model.generation_config = _generation_config(source)
        view = DecoderView(model)
        places = {module: place for place, module in model.named_modules()}
        prefixes = tuple(f"{places[layer.module]}." for layer in view.layers)
        outside = [key for key, target in checkpoint.names.items() if not target.startswith(prefixes)]
        _set_tensors(model, checkpoint.read(outside))
        info = checkpoint.info
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        model._adjust_missing_and_unexpected_keys(info)
        model._weight_conversions = checkpoint.skeleton._weight_conversions  # save_pretrained names tensors by these
    empty = {key for key, p in model.named_parameters() if p.is_meta and not key.startswith(prefixes)}
    check_complete(source.name, info.missing_keys | empty)
    here = [tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta]
    with cache_if_unreachable(source.path):
        return LayerwiseModel(finish(source, model), view, checkpoint, prefixes, sum(here))


def _set_tensors(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Assign tensors to a model by name, without a copy."""
    for name, value in values.items():
        set_module_tensor_to_device(model, name, value.device, value=value, clear_cache=False)


def _fill_buffers(model: PreTrainedModel, source: Source) -> None:
    """Compute the buffers that are not in the checkpoint, like `from_pretrained` does.

    On the CPU, like there, so that rotary frequencies are bit-identical on every device.
    """
    names = [name for name, _ in model.named_non_persistent_buffers()]
    for name in names:
        empty = torch.empty_like(model.get_buffer(name), device="cpu")
        set_module_tensor_to_device(model, name, "cpu", value=empty)
    model.initialize_weights()  # initialises buffers only, since parameters are on meta
    for name in names:
        set_module_tensor_to_device(model, name, source.device)


def _generation_config(source: Source) -> GenerationConfig:
    """The generation config, derived from the model's config if it has no file."""
    cache: dict[str, Any] = {"cache_dir": source.options["cache_dir"]}
    try:
        return GenerationConfig.from_pretrained(source.path, **cache)
    except OSError:
        made: dict[str, Any] = {"config_file_name": "config.json", "_from_model_config": True}
        return GenerationConfig.from_pretrained(source.path, **made, **cache)
