"""Read the golden files: masks computed once by the paper's published implementation on two tiny random models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from barber.config import PruneConfig, Sparsity
from barber.data.token_sets import CalibrationSet

GOLDEN = Path(__file__).parents[1] / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
RUNS = INDEX["runs"]


@cache
def arrays(name: str):
    return np.load(GOLDEN / f"{name}.npz")


def model(family: str, attention: str = "sdpa"):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / f"tiny-{family}", attn_implementation=attention)


def calibration() -> CalibrationSet:
    tokens = torch.from_numpy(np.load(GOLDEN / "calibration_tokens.npy").astype("int64"))
    return CalibrationSet(tokens=tokens, source="golden", seed=0)


def masks(file: str, key: str, family: str) -> dict[int, dict[str, torch.Tensor]]:
    """layer -> name -> bool (out, in), True = pruned."""
    result: dict[int, dict[str, torch.Tensor]] = {}
    for place, shape in INDEX["shapes"][family].items():
        layer, name = place.split(".", 1)
        bits = np.unpackbits(arrays(file)[f"{key}/{place}"], count=shape[0] * shape[1])
        result.setdefault(int(layer), {})[name] = torch.from_numpy(bits.astype(bool).reshape(shape))
    return result


def updates(key: str, family: str) -> dict[int, dict[str, torch.Tensor]]:
    """layer -> name -> weight (out, in) after SparseGPT."""
    result: dict[int, dict[str, torch.Tensor]] = {}
    for place in INDEX["shapes"][family]:
        layer, name = place.split(".", 1)
        result.setdefault(int(layer), {})[name] = torch.from_numpy(arrays("sparsegpt_weights")[f"{key}/{place}"])
    return result


def config(run: dict, **changes) -> PruneConfig:
    settings = {
        "sparsity": Sparsity.parse(run.get("stype", str(run.get("ratio", 0.5)))),
        "method": run["method"],
        "metric": run.get("metric", "WD"),
        "granularity": run.get("gran", "output1"),
        "threshold": run.get("th", 0.01),
        "retain_reconstruction": run.get("retain", False),
        "barber": run.get("barber", True),
    }
    return PruneConfig(**settings | changes)
