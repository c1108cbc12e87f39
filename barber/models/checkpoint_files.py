"""The tensors of a checkpoint on disk, read in parts, under the names of the model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from barber.models.loading import Source, check_complete
from barber.models.safetensors_file import StoredTensor, read_header

META = torch.device("meta")


def tensor_files(source: Source) -> dict[str, StoredTensor]:
    """Name in the checkpoint -> tensor, for one file or an index with shards; downloads missing files.

    Raises OSError if there is neither.
    """
    cache = {"cache_dir": source.options["cache_dir"]}
    own = getattr(source.config, "transformers_weights", None)  # a file name that the config gives
    for name in [own] if own else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        if found := cached_file(source.path, name, _raise_exceptions_for_missing_entries=False, **cache):
            break
    else:
        raise OSError(f"no file named {own or SAFE_WEIGHTS_NAME} as safetensors")
    files = [found] if found.endswith(".safetensors") else get_checkpoint_shard_files(source.path, found, **cache)[0]
    return {key: tensor for file in files for key, tensor in read_header(Path(file)).items()}


def empty_model(source: Source) -> PreTrainedModel:
    """The model on the meta device: names, shapes and dtypes, built like `from_pretrained` does."""
    with META:
        options = {"trust_remote_code": source.options["trust_remote_code"]}
        model = AutoModelForCausalLM.from_config(source.config, dtype=source.dtype, **options)
    return model.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers, of which there would be one per layer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class Checkpoint:
    """The tensors of a checkpoint, under the names of the model's parameters and persistent buffers.

    Transformers renames, casts, splits and merges the tensors of the part that is read. Since it loads tensors into a
    model, this class keeps a copy of the model on the meta device, which has values only during `read`.

    Attributes:
        info: transformers' report on loading the whole checkpoint, from a load with meta tensors that reads no weights.
        names: tensor name in the checkpoint -> name in the model (the first one, if a tensor is split).
    """

    def __init__(self, source: Source) -> None:
        self.device = source.device
        self.tensors = tensor_files(source)
        self.skeleton = empty_model(source)
        self.conversions: Any = get_model_conversion_mapping(self.skeleton)
        rehearsal = {key: torch.empty(tensor.shape, device=META) for key, tensor in self.tensors.items()}
        self.info = self._load(rehearsal, META)
        check_complete(source.name, (), self.info.mismatched_keys)
        state = self.skeleton.state_dict()
        self.names = {key: name for key in self.tensors if (name := self._name(key, state)) in state}

    def _load(self, tensors: dict[str, Any], device: torch.device):
        """Load tensors (name in the checkpoint -> tensor or lazy slice) into the model on the meta device.

        The device map has other tensors on disk, which makes transformers load tensors one by one: each of its threads
        would keep freed memory.
        """
        dtype: Any = self.skeleton.config.dtype
        options = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=self.skeleton._get_dtype_plan(dtype),
            device_map={"": device, "others": "disk"},
            weight_mapping=self.conversions,
        )
        with quiet():
            info, _ = convert_and_load_state_dict_in_model(self.skeleton, tensors, options)
        if info.conversion_errors:
            raise ValueError(f"{min(info.conversion_errors)} cannot be made from the checkpoint's tensors")
        return info

    def _name(self, key: str, state: dict[str, Tensor]) -> str:
        """The name in the model, by the rules of transformers: unconverted if the converted name does not exist."""
        renamings = [entry for entry in self.conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.conversions if isinstance(entry, WeightConverter)]
        prefix = self.skeleton.base_model_prefix
        name, _ = rename_source_key(key, renamings, converters, prefix, state)
        return name if name in state else rename_source_key(key, [], [], prefix, state)[0]

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Name in the model -> tensor on the device, in the model's dtype, for tensors named as in the checkpoint."""
        try:
            self._load({key: self.tensors[key] for key in keys}, self.device)
            return self._real()
        finally:
            for name in self._real():
                set_module_tensor_to_device(self.skeleton, name, META, clear_cache=False)

    def _real(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.skeleton.state_dict().items() if not tensor.is_meta}
