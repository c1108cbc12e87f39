"""Load a model and its tokenizer: the bundled one, a local folder, or one of the hub. Safetensors only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from barber.bundled import MODEL_DIR, STORYTELLER
from barber.errors import UserError, first_line
from barber.hub_access import quick_offline
from barber.memory import is_out_of_memory
from barber.models.products import slow_dtypes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
HUB_TIMEOUT = 10  # seconds until the hub's first response


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on one device.

    tokenizer: None if the folder has none. max_seqlen: its number of positions.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    max_seqlen: int


@dataclass(frozen=True)
class Source:
    """A model that passed the checks before loading: its name, its folder or hub id, and how to load it."""

    name: str
    path: str
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    options: dict  # cache_dir and trust_remote_code of from_pretrained


def load(
    name: str = STORYTELLER,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by name.

    name: "storyteller" (bundled), a local folder, or a hub id. device: "auto" is CUDA if there is one.
    dtype: "auto" keeps that of the checkpoint, except on a CPU: there float16 becomes float32, and so does bfloat16 if
    the CPU has no instructions for it, since products would be several times slower.
    Raises UserError, if possible before reading weights.
    """
    return load_source(find_source(name, device, dtype, cache_dir, trust_remote_code))


def load_source(source: Source) -> LoadedModel:
    """Load a model that `find_source` found. Raises UserError."""
    with cache_if_unreachable(source.path), explained(source.name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            config=source.config,
            use_safetensors=True,
            dtype=source.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **source.options,
        )
        model, report = loaded
        check_complete(source.name, report["missing_keys"], report["mismatched_keys"])
        return finish(source, model.to(source.device))


def find_source(
    name: str = STORYTELLER,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Find a model and check it without reading weights. Arguments and errors as in `load`."""
    place = torch.device(pick_device(device))
    path = str(MODEL_DIR) if name == STORYTELLER else name
    options = {"cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    with cache_if_unreachable(path), explained(name):
        if Path(path).is_dir():
            _check_folder(Path(path))
        else:
            _check_hub(name, cache_dir)
        if find_adapter_config_file(path, cache_dir=cache_dir):
            raise UserError(_adapter(name))
        config = AutoConfig.from_pretrained(path, **options)
        _check_config(path, config, trust_remote_code)
        if hasattr(config, "sparsity_config"):  # of another program; not true of models saved here
            del config.sparsity_config
        return Source(name, path, config, place, _pick_dtype(dtype, config, place), options)


def quiet_transformers() -> None:
    """Keep the warnings and progress bars of transformers out of the output of this process."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def cache_if_unreachable(path: str) -> AbstractContextManager[None]:
    """Use the cache at once for a hub model if the hub cannot be reached; no effect for a folder."""
    return nullcontext() if Path(path).is_dir() else quick_offline()


def weight_bytes(source: Source) -> int:
    """Bytes of all parameters in the dtype of the run, which may differ from that of the files."""
    with explained(source.name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            source.config, dtype=source.dtype, trust_remote_code=source.options["trust_remote_code"]
        )
    return sum(parameter.nbytes for parameter in model.parameters())


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Convert any loading error to a UserError: a damaged folder can make transformers raise any exception."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # the job explains it
            raise
        raise UserError(_explain(name, error)) from error


def check_complete(name: str, missing: Iterable[str], mismatched: Iterable[tuple] = ()) -> None:
    """UserError if a parameter has no tensor in the checkpoint, or one of another shape.

    missing: their names. mismatched: (name, shape in the checkpoint, shape by the config).
    """
    if wrong := sorted(mismatched):
        key, found, expected = wrong[0]
        raise UserError(
            f"Model {name!r} does not fit its config.json: {key} is {tuple(found)} in the checkpoint and "
            f"{tuple(expected)} by the config: give the config that belongs to these weights."
        )
    if names := sorted(missing):
        raise UserError(
            f"Model {name!r} lacks {len(names)} weights, the first is {names[0]}: give a complete checkpoint, "
            "since they would be random numbers."
        )


def finish(source: Source, model: PreTrainedModel) -> LoadedModel:
    """A model with weights, switched to eval mode, with its tokenizer."""
    return LoadedModel(
        name=source.name,
        model=model.eval(),
        tokenizer=_load_tokenizer(source.path, source.options),
        max_seqlen=max_seqlen(source.config),
    )


def pick_device(device: str) -> str:
    """The device's name, "auto" resolved; UserError for one that this machine does not have."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {device!r} cannot be used here: choose auto, cpu or a CUDA device.") from error
    return device


def _pick_dtype(dtype: str, config: PreTrainedConfig, place: torch.device) -> torch.dtype:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"Dtype {dtype!r} is unknown: choose auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    native: Any = config.dtype or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return torch.float32 if place.type == "cpu" and native in slow_dtypes() else native


def max_seqlen(config: PreTrainedConfig) -> int:
    """The model's number of positions; 2048, as in the papers, for families without a limit (BLOOM)."""
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "seq_length"):
        positions = getattr(text, name, None)
        if positions is not None and positions > 0:  # XLNet has -1
            return positions
    return 2048


def _load_tokenizer(source: str, options: dict) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None if a folder has no tokenizer file: files of token ids need none."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # a damaged file can make tokenizers raise any exception
        raise UserError(
            f"The tokenizer of {source!r} cannot be loaded ({first_line(error)}): give intact tokenizer files, or "
            "none and token ids as .npy."
        ) from error


def _check_hub(name: str, cache_dir: str | None) -> None:
    """Check that an uncached model exists on the hub, is accessible and has safetensors."""
    try:
        if hub.try_to_load_from_cache(name, "config.json", cache_dir=cache_dir):
            return
        info = hub.model_info(name, timeout=HUB_TIMEOUT)
        files = [file.rfilename for file in info.siblings or ()]
    except HFValidationError:
        raise UserError(
            f"Model {name!r} is neither a folder nor a hub id: give '{STORYTELLER}', the path of a Hugging Face "
            "folder, or an id like facebook/opt-125m."
        ) from None
    except GatedRepoError:
        raise UserError(
            f"Model {name!r} is gated: accept its licence on its hub page and log in with `hf auth login`, or choose "
            "an open model."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"Model {name!r} is neither a folder here nor a model on the hub: check the spelling, or give "
            f"'{STORYTELLER}'."
        ) from None
    except Exception as error:  # the HTTP library of the hub client, and so its errors, differ between versions
        raise UserError(
            f"Model {name!r} is not on this machine and the hub cannot be reached ({type(error).__name__}): connect to "
            f"the network, or give '{STORYTELLER}' or the path of a Hugging Face folder."
        ) from None
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(_no_safetensors(name))


def _no_safetensors(name: str) -> str:
    return (
        f"Model {name!r} has no safetensors weights: pickle checkpoints can run code and are refused, so convert it to "
        "safetensors first."
    )


def _check_folder(folder: Path) -> None:
    """UserError unless the folder has a config and readable safetensors, and is not only an adapter."""
    if not (folder / CONFIG_NAME).is_file():
        if (folder / ADAPTER_CONFIG_NAME).is_file():
            raise UserError(_adapter(str(folder)))
        cached = sorted(folder.glob(f"snapshots/*/{CONFIG_NAME}"))
        hint = f"give {cached[-1].parent}" if cached else "give the folder that save_pretrained wrote"
        what = ", but looks like a folder of the hub's cache" if cached else ""
        raise UserError(f"Folder {str(folder)!r} has no {CONFIG_NAME}{what}: {hint}.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(_no_safetensors(str(folder)))
    for file in files:
        if not file.is_file() or not os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            why = "may not be read by you" if file.is_file() else "is a link to nothing" if file.is_symlink() else ""
            raise UserError(
                f"{file.name} in {str(folder)!r} {why or 'is no file'}: give a folder whose weights can be read."
            )


def _adapter(name: str) -> str:
    return (
        f"Model {name!r} has an adapter ({ADAPTER_CONFIG_NAME}), whose weights are not part of the model's: load it "
        "with peft, call merge_and_unload(), save that to a new folder, and give it; or remove a leftover adapter."
    )


def _check_config(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """UserError if the configuration rules pruning out."""
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"Model {source!r} is quantised, and packed weights cannot be pruned: give the unquantised model."
        )
    if getattr(config, "auto_map", None) and not trust_remote_code:
        raise UserError(_remote_code(source))
    text = config.get_text_config(decoder=True)
    for key in ("max_position_embeddings", "num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads"):
        value = getattr(text, key, None)
        if value == 0 or (isinstance(value, int) and value < 0 and key != "max_position_embeddings"):  # XLNet has -1
            raise UserError(
                f"The {CONFIG_NAME} of {source!r} has {key} {value!r}, which no language model has: correct it to "
                "what the model was trained with."
            )


def _remote_code(name: str) -> str:
    return (
        f"Model {name!r} needs its own Python code, which is not allowed: choose a model that transformers supports "
        "itself, or pass --trust_remote_code if you have read that code and trust it."
    )


def _explain(name: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return _remote_code(name)
    if "Unrecognized configuration class" in text:
        return f"Model {name!r} is not a decoder-only language model: give one that AutoModelForCausalLM can load."
    if "Should have a `model_type` key" in text or "is not a supported model" in text:
        return f"The {CONFIG_NAME} of {name!r} has no model_type: give the one that came with the model."
    if "valid JSON file" in text or isinstance(error, UnicodeDecodeError | JSONDecodeError | RecursionError):
        return f"Model {name!r} has a damaged JSON file ({first_line(error)}): download it again."
    if isinstance(error, SafetensorError) or "cut off" in text or "does not match its header" in text:
        return f"The weights of {name!r} are damaged ({first_line(error)}): download or copy them again."
    lacking = "no file named" in text or "not appear to have a file named" in text
    if "couldn't connect" in text or (lacking and hub.constants.HF_HUB_OFFLINE and not Path(name).is_dir()):
        return (
            f"Model {name!r} is only in part on this machine, and the hub cannot be reached: connect to the network, "
            f"or give '{STORYTELLER}' or the path of a Hugging Face folder."
        )
    if lacking and "safetensors" in text:
        return _no_safetensors(name)
    if isinstance(error, FileNotFoundError):
        return f"Model {name!r} lacks a file that belongs to it ({first_line(error)}): download or copy it whole."
    if isinstance(error, KeyError):
        return (
            f"The {CONFIG_NAME} of {name!r} has {error}, which this version of transformers does not know: correct it."
        )
    if "automatic conversion" in text:
        return f"The tensors of {name!r} cannot be converted to the weights of its architecture: give an intact one."
    if isinstance(error, StrictDataclassError):
        reason = str(error).strip().splitlines()[-1].strip().partition(": ")[2].rstrip(".")
        return f"The {CONFIG_NAME} of {name!r} does not fit its architecture ({reason}): give the one of these weights."
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return (
            f"Model {name!r} has an architecture that this version of transformers does not know: upgrade transformers."
        )
    return f"Model {name!r} cannot be loaded ({first_line(error)}): give an intact Hugging Face folder or hub id."
