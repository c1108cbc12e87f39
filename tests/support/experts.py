"""Mixtures of experts without fused weights: the same model with a linear layer for each expert and projection."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Unfused(nn.Module):
    """The experts of a module with fused weights, as lists of linear layers."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = _linears(fused, "gate_up_proj")
        self.down_proj = _linears(fused, "down_proj")
        self.act_fn = getattr(fused, "act_fn", None)
        self._gate = type(fused)._apply_gate
        self.limit, self.alpha = (getattr(fused, name, None) for name in ("limit", "alpha"))

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        output = torch.zeros_like(hidden)
        for expert, (up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            if len(token):
                value = down(self._gate(self, up(hidden[token])))
                output.index_add_(0, token, value * shares[token, place, None])
        return output


def _linears(fused: nn.Module, name: str) -> nn.ModuleList:
    weights, biases = getattr(fused, name).data, getattr(fused, f"{name}_bias", None)
    weights = weights.transpose(1, 2) if fused.is_transposed else weights
    found = nn.ModuleList()
    for expert, weight in enumerate(weights):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=biases is not None)
        linear.weight.data = weight.clone(memory_format=torch.contiguous_format)
        if biases is not None:
            linear.bias.data = biases.data[expert].clone()
        found.append(linear)
    return found


def unfused(model):
    """A copy of a model in which every module with fused weights is an `Unfused`; weights have the same names."""
    other = copy.deepcopy(model)
    for name, module in list(other.named_modules()):
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            parent, _, child = name.rpartition(".")
            setattr(other.get_submodule(parent), child, Unfused(module))
    return other
