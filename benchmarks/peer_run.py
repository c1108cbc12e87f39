"""Prune a model once, with Barber or llm-compressor: peer_run.py TOOL MODEL TOKENS DTYPE METHOD PATTERN THREADS OUT.

A program that imports only the tool it runs, since each tool has an environment of its own. TOKENS: a .npy file of
calibration sequences (samples, seqlen). OUT: a folder for the pruned weights, model.safetensors, and result.json, with
the seconds of the pruning alone: the model is in memory before, and has run once.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

BATCH_TOKENS = 4096  # of one forward pass, for both tools: Barber's default


def barber(model: PreTrainedModel, tokens: torch.Tensor, method: str, pattern: str) -> Callable[[], object]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from barber.config import PruneConfig, Sparsity
    from barber.data.token_sets import CalibrationSet
    from barber.pruning.prune import prune

    calibration = CalibrationSet(tokens, "tokens", 0)
    config = PruneConfig(Sparsity.parse(pattern), method, barber=False)
    return lambda: list(prune(model, calibration, config))


def llm_compressor(model: PreTrainedModel, tokens: torch.Tensor, method: str, pattern: str) -> Callable[[], object]:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    zeros, _, group = pattern.partition(":")
    share = int(zeros) / int(group) if group else float(pattern.removesuffix("%")) / 100
    structure = pattern if group else "0:0"
    recipe = modifier(sparsity=share, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"])
    batches = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in split(tokens)]
    data = DataLoader(batches, batch_size=None)
    return lambda: oneshot(model=model, recipe=recipe, dataset=data, num_calibration_samples=len(tokens))


TOOLS = {"Barber": barber, "llm-compressor": llm_compressor}
PACKAGES = ("torch", "transformers", "llmcompressor")


def split(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Batches of sequences (samples, seqlen)."""
    return tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))


def versions() -> dict[str, str]:
    """The versions of the packages that are in this environment."""
    known = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return {name: known[name] for name in PACKAGES if name in known}


def main() -> None:
    tool, folder, file, dtype, method, pattern, threads, out = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tokens = torch.from_numpy(np.load(file))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True).eval()
    with torch.no_grad():
        model(tokens[:1])
    work = TOOLS[tool](model, tokens, method, pattern)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    used = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    save_file({name: value.contiguous() for name, value in model.named_parameters()}, f"{out}/model.safetensors")
    Path(out, "result.json").write_text(json.dumps(used | {"versions": versions()}), "utf-8")


if __name__ == "__main__":
    main()
