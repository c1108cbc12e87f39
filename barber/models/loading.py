"""Load a model and its tokenizer: the bundled one, a local folder, or one of the hub. Safetensors only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from barber.bundled import MODEL_DIR, STORYTELLER
from barber.errors import UserError, first_line
from barber.memory import is_out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")

HUB_TIMEOUT = 10  # seconds for the first answer of the hub


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on one device. tokenizer: None where the folder has none. max_seqlen: positions it has."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    max_seqlen: int


@dataclass(frozen=True)
class Source:
    """A model that is there and may be loaded: its name, the folder or hub id, and how to load it."""

    name: str
    path: str
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    options: dict  # cache_dir and trust_remote_code, as from_pretrained takes them


def load(
    name: str = STORYTELLER,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by name.

    name: "storyteller" (bundled), a local folder, or a hub id. device: "auto" takes CUDA where there is one.
    dtype: "auto" keeps the checkpoint's own, except float16 on a CPU, which becomes float32 (CPUs are slow at it).
    Raises UserError, before weights are read where possible.
    """
    source = find_source(name, device, dtype, cache_dir, trust_remote_code)
    with explained(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            config=source.config,
            use_safetensors=True,
            dtype=source.dtype,
            output_loading_info=True,
            **source.options,
        )
    model, report = loaded
    check_complete(name, report["missing_keys"])
    return finish(source, model.to(source.device))


def find_source(name: str, device: str, dtype: str, cache_dir: str | None, trust_remote_code: bool) -> Source:
    """Check what can be checked without reading weights. Arguments and errors as in `load`."""
    place = torch.device(pick_device(device))
    path = str(MODEL_DIR) if name == STORYTELLER else name
    if not Path(path).is_dir():
        _check_hub(name, cache_dir)
    options = {"cache_dir": cache_dir, "trust_remote_code": trust_remote_code}
    with explained(name):
        config = AutoConfig.from_pretrained(path, **options)
        _check_weights(path, config, trust_remote_code)
        return Source(name, path, config, place, _pick_dtype(dtype, config, place), options)


def weight_bytes(source: Source) -> int:
    """Bytes of all parameters in the dtype of the run, whatever the files hold."""
    with explained(source.name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            source.config, dtype=source.dtype, trust_remote_code=source.options["trust_remote_code"]
        )
    return sum(parameter.nbytes for parameter in model.parameters())


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Any error while a model is loaded as one sentence, for a damaged folder can break transformers anywhere."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # the job's to explain
            raise
        raise UserError(_explain(name, error)) from error


def check_complete(name: str, missing: Iterable[str]) -> None:
    """UserError if any parameter has no tensor in the checkpoint. missing: their names."""
    if names := sorted(missing):
        raise UserError(
            f"Model {name!r} lacks {len(names)} weights, the first is {names[0]}: give a complete checkpoint, "
            "since they would be random numbers."
        )


def finish(source: Source, model: PreTrainedModel) -> LoadedModel:
    """A model with its weights in place, put into eval mode, with its tokenizer."""
    return LoadedModel(
        name=source.name,
        model=model.eval(),
        tokenizer=_load_tokenizer(source.path, source.options),
        max_seqlen=_positions(source.config),
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
    return torch.float32 if native == torch.float16 and place.type == "cpu" else native


def _positions(config: PreTrainedConfig) -> int:
    """How many positions the model has; families without a limit (BLOOM) count as 2048, the papers' length."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "seq_length", None) or 2048


def _load_tokenizer(source: str, options: dict) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None where a folder has no file of one: a file of token ids needs none."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # a damaged file can break tokenizers anywhere
        raise UserError(
            f"The tokenizer of {source!r} cannot be loaded ({first_line(error)}): give intact tokenizer files, or "
            "none and token ids as .npy."
        ) from error


def _check_hub(name: str, cache_dir: str | None) -> None:
    """Ask the hub about a model that is not cached: does it exist, is it open, has it safetensors."""
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
    except Exception as error:  # the HTTP library below the hub client, and so its errors, differ between versions
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


def _check_weights(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(_no_safetensors(source))
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"Model {source!r} is quantised, and packed weights cannot be pruned: give the unquantised model."
        )
    if getattr(config, "auto_map", None) and not trust_remote_code:
        raise UserError(_remote_code(source))


def _remote_code(name: str) -> str:
    return (
        f"Model {name!r} brings its own Python code, which is refused: choose a model that transformers supports "
        "itself, or pass --trust_remote_code if you have read that code and trust it."
    )


def _explain(name: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return _remote_code(name)
    if "safetensors" in text and "no file named" in text:
        return _no_safetensors(name)
    if "Unrecognized configuration class" in text:
        return f"Model {name!r} is not a decoder-only language model: give one that AutoModelForCausalLM can load."
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return (
            f"Model {name!r} has an architecture that this version of transformers does not know: upgrade transformers."
        )
    return f"Model {name!r} cannot be loaded ({first_line(error)}): give an intact Hugging Face folder or hub id."
