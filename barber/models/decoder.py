"""The structure of a decoder model, found from the model itself: layers, sub-blocks and prunable weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from barber.errors import UserError
from barber.models.replay import Call, answer, first_tensor, record_call, record_output, replacing, replay, run

Masks = dict[str, Tensor]  # name within the layer -> bool (out, in), True = pruned
Values = dict[str, Tensor]  # name within the layer -> (out, in)
State = tuple[Masks, Values]  # masks, and the values that are not the dense ones under them


@dataclass(frozen=True)
class Weight:
    """A prunable weight. `name` is within its layer, like "self_attn.q_proj"."""

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter("weight")

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape seen as (out, in): GPT-2's Conv1D stores (in, out)."""
        return tensor.T if isinstance(self.module, Conv1D) else tensor

    @property
    def view(self) -> Tensor:
        """The weight as (out, in), sharing memory with the model; not to be written into."""
        return self.oriented(self.parameter.data)

    def assign(self, value: Tensor) -> None:
        """Let the module have this value, (out, in), in the place of the tensor that it has, which stays as it is.

        So dense weights need no copy, and a dense forward pass may be kept while other values are tried.
        """
        self.parameter.data = self.oriented(value.to(self.parameter)).contiguous()


@dataclass(frozen=True)
class SubBlock:
    """The unit whose error the rebuild measures: the attention or the MLP of one layer.

    module: the child of the layer, or None where the linears sit directly on the layer (OPT's fc1 and fc2); such a
    sub-block reaches from the input of its first linear to the output of its last. returns: the "arity" of what the
    module returned at its last replay, 0 for a tensor alone.
    """

    name: str
    kind: str
    weights: tuple[Weight, ...]
    layer: nn.Module
    module: nn.Module | None
    returns: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @torch.no_grad()
    def record(self, call: Call, outputs: Outputs | None = None) -> Call:
        """How the layer's call reaches the sub-block; for linears on the layer itself, the layer's own call.

        outputs: of sub-blocks that need not run for it, since what they give is known.
        """
        if self.module is None:
            return call
        with replacing(_answers(outputs)):
            return record_call(self.layer, self.module, call)

    def replay(self, call: Call, outputs: Outputs | None = None) -> Tensor:
        """The sub-block's output (..., hidden) for a recorded call, in the caller's grad mode.

        outputs: as in `record`; only linears on the layer itself have others before them.
        """
        if self.module is None:
            with replacing(_answers(outputs)):
                output = record_output(self.layer, self.weights[-1].module, call)
            return output.view(*call.hidden.shape[:-1], -1)  # OPT lays all positions of a batch in one row
        output = run(self.module, call)
        self.returns["arity"] = len(output) if isinstance(output, tuple) else 0
        return first_tensor(output)


Outputs = Mapping[SubBlock, Tensor]


@torch.no_grad()
def masked(value: Tensor, mask: Tensor) -> Tensor:
    """The finite value (out, in) with zeros under its mask. Multiplied, since to choose is a branch at each number."""
    return value.mul(~mask).add_(0.0)  # which makes zero of minus zero


def _answers(outputs: Outputs | None) -> dict[nn.Module, Callable[..., Any]]:
    """The forward of each sub-block whose output is known; linears on the layer itself run as ever."""
    return {
        block.module: lambda *_a, output=output, arity=block.returns["arity"], **_k: answer(output, arity)
        for block, output in (outputs or {}).items()
        if block.module is not None
    }


@dataclass(frozen=True)
class Layer:
    """One decoder layer with its sub-blocks, attention first."""

    index: int
    module: nn.Module
    sub_blocks: tuple[SubBlock, ...]

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(weight for block in self.sub_blocks for weight in block.weights)

    @torch.no_grad()
    def replay(self, call: Call, outputs: Outputs | None = None) -> Tensor:
        """The layer's output for a recorded call. `outputs`, of sub-blocks that ran before, are not made again."""
        with replacing(_answers(outputs)):
            return replay(self.module, call)

    @torch.no_grad()
    def assign(self, dense: Mapping[str, Tensor], masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Give the weights their dense values, or those of `values`, and zeros under the masks; all (out, in)."""
        for weight in self.weights:
            value = values.get(weight.name, dense[weight.name]).to(weight.parameter)
            weight.assign(masked(value, masks[weight.name].to(value.device)))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _find_layers(model: nn.Module) -> nn.ModuleList:
    """The outermost ModuleList that is as long as the config says."""
    config: Any = model.config
    depth = config.get_text_config().num_hidden_layers
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of {depth} decoder layers, so there is nothing to prune: give a "
            "decoder-only language model."
        )
    return min(lists, key=lambda item: item[0].count("."))[1]


def _sub_blocks(layer: nn.Module) -> tuple[SubBlock, ...]:
    blocks, direct = [], []
    for name, child in layer.named_children():
        if _is_linear(child):
            direct.append(Weight(name, child))
            continue
        linears = tuple(Weight(f"{name}.{n}", m) for n, m in child.named_modules() if _is_linear(m))
        if linears:
            attention = any("attn" in text or "attention" in text for text in (name, type(child).__name__.lower()))
            blocks.append(SubBlock(name, "attention" if attention else "mlp", linears, layer, child))
    if direct:
        blocks.append(SubBlock("+".join(weight.name for weight in direct), "mlp", tuple(direct), layer, None))
    return tuple(sorted(blocks, key=lambda block: block.kind != "attention"))


class DecoderView:
    """A model as the paper sees it. Coverage is computed: a weight without a place is an error that names it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        modules = _find_layers(model)
        self.layers = tuple(Layer(i, module, _sub_blocks(module)) for i, module in enumerate(modules))
        owner: dict[int, str] = {}
        for layer in self.layers:
            for weight in layer.weights:
                name = f"layers.{layer.index}.{weight.name}"
                other = owner.setdefault(id(weight.parameter), name)
                if other != name:
                    raise UserError(f"{other} and {name} are one weight, but need two masks: untie them first.")
            covered = {id(weight.parameter) for weight in layer.weights}
            missed = [n for n, p in layer.module.named_parameters() if p.dim() > 1 and id(p) not in covered]
            if missed or not covered:
                raise UserError(
                    f"Layer {layer.index} of {type(model).__name__} holds weights that cannot be pruned here "
                    f"({', '.join(missed) or 'no linear layer found'}): fused mixture-of-experts and convolutions are "
                    "not supported, give a model whose layers are made of linear layers."
                )

    @property
    def device(self) -> torch.device:
        return self.layers[0].weights[0].parameter.device

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].weights[0].parameter.dtype

    @property
    def packed_bytes(self) -> int:
        """Bytes of one mask of every weight, eight weights a byte."""
        return sum(weight.parameter.numel() // 8 + 1 for layer in self.layers for weight in layer.weights)

    def describe(self) -> list[dict]:
        """One JSON-able dict per prunable weight, as in events.RunStarted."""
        return [
            {"layer": layer.index, "sub_block": b.name, "kind": b.kind, "name": w.name, "shape": list(w.view.shape)}
            for layer in self.layers
            for b in layer.sub_blocks
            for w in b.weights
        ]

    def check_width(self, m: int) -> None:
        """UserError unless m divides the input width of every prunable weight; no-op for m = 0."""
        for layer in self.layers if m else ():
            for weight in layer.weights:
                if weight.view.shape[1] % m:
                    raise UserError(
                        f"A pattern over {m} consecutive inputs does not fit layers.{layer.index}.{weight.name}, which "
                        f"has {weight.view.shape[1]} inputs: choose an m that divides it."
                    )


def check_finite(module: nn.Module, prefix: str = "") -> None:
    """UserError that names the first parameter with NaN or infinite values; those on the meta device have none yet."""
    for name, parameter in module.named_parameters():
        if not (parameter.is_meta or bool(parameter.isfinite().all())):
            raise UserError(
                f"Weight {prefix}{name} of the model holds NaN or infinite values: saliency means nothing with it, so "
                "give an intact checkpoint."
            )


class DenseWeights:
    """All prunable weights as they are now, to measure against and to go back to: (layer, name) -> (out, in).

    They are the model's own tensors, not copies: whatever changes weights assigns others, see Weight.assign.
    """

    def __init__(self, view: DecoderView) -> None:
        self.view = view
        self.tensors = {(la.index, w.name): w.view for la in view.layers for w in la.weights}

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self.tensors[key]

    def restore(self) -> None:
        """Give the model its dense weights back."""
        for layer in self.view.layers:
            for weight in layer.weights:
                weight.assign(self.tensors[layer.index, weight.name])


def assign_values(weights: Sequence[Weight], values: Values) -> None:
    """Let the weights have these values, name -> (out, in)."""
    for weight in weights:
        weight.assign(values[weight.name])
