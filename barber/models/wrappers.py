"""Refuse models of the Python API that are wrapped, and say how to unwrap them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import PreTrainedModel

from barber.errors import UserError


def check_plain(model: nn.Module) -> None:
    """UserError that names the wrapper and the remedy, unless this is an unwrapped model of transformers.

    A wrapper computes with other weights, or overwrites them.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        where = f"its {name}" if name else "it"
        if type(module).__module__.split(".")[0] == "peft":
            raise UserError(
                f"{kind} has an adapter of PEFT ({where} is a {type(module).__name__}), whose weights are not part of "
                "the model: call merge_and_unload() and give what that returns."
            )
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise UserError(
                f"{kind} is compiled ({where} went through torch.compile), so its layers cannot be run one by one: "
                "give the model before compilation, and compile it after pruning."
            )
        if prune.is_pruned(module) and any(True for _ in module.named_buffers(recurse=False)):
            raise UserError(
                f"{kind} is pruned by torch.nn.utils.prune ({where or kind} computes its weight at each call): make "
                "that permanent first, by torch.nn.utils.prune.remove(module, name) for every module."
            )
        if parametrize.is_parametrized(module):
            raise UserError(
                f"{kind} has parametrized weights ({where} computes its weight at each call): make that permanent "
                "first, by torch.nn.utils.parametrize.remove_parametrizations(module, name)."
            )
    if not isinstance(model, PreTrainedModel):
        inner = " the one that it wraps (model.module)" if isinstance(getattr(model, "module", None), nn.Module) else ""
        raise UserError(
            f"{kind} is not a model of transformers, with the number of layers in its config: give"
            f"{inner or ' one that AutoModelForCausalLM loads'}."
        )
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if len(places) > 1:
        raise UserError(
            f"{kind} is on several devices ({', '.join(sorted(places))}) by its device_map: load it without "
            "one, or let the job read it layer by layer (--stream)."
        )


def check_differentiable(model: nn.Module) -> None:
    """UserError inside torch.inference_mode() and for a model made there: the rebuild needs gradients.

    Without this check, the gradients would be zero, without an error, and fewer weights would be swapped.
    """
    if torch.is_inference_mode_enabled():
        raise UserError(
            "Pruning needs gradients, which torch.inference_mode() forbids: call it outside of that context."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise UserError(
                f"Pruning needs gradients, but {name} was made inside torch.inference_mode(): load the model outside "
                "of that context."
            )
