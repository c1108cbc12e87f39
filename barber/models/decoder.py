"""The structure of a decoder model, found by inspection of the model: layers, sub-blocks and prunable weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from barber.errors import UserError
from barber.events import ModuleInfo
from barber.models.replay import Call, Form, call_module, first_tensor, record_call, record_output, replacing, replay
from barber.models.wrappers import check_plain

Masks = dict[str, Tensor]  # name within the layer -> bool (out, in), True = pruned
Values = dict[str, Tensor]  # name within the layer -> (out, in)
State = tuple[Masks, Values]  # masks, and values where they differ from the masked dense ones


@dataclass(frozen=True)
class Weight:
    """A prunable weight: that of a linear layer, or the slice of one expert in a fused weight (experts, ..., ...).

    Attributes:
        name: within its layer, like "self_attn.q_proj", or "mlp.experts.down_proj.3" for a slice.
        module: the module that has the parameter.
        key: name of the parameter in the module.
        index: number of the expert; None if the weight is the whole parameter.
        transposed: whether the parameter stores (in, out), as GPT-2's Conv1D does.
    """

    name: str
    module: nn.Module
    key: str = "weight"
    index: int | None = None
    transposed: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter(self.key)

    @property
    def whole(self) -> str:
        """The name without the expert's number: all slices of a fused weight have the same."""
        return self.name if self.index is None else self.name.removesuffix(f".{self.index}")

    @property
    def path(self) -> str:
        """Name of the parameter within the layer."""
        return f"{self.whole}.weight" if self.key == "weight" else self.whole

    @property
    def is_expert(self) -> bool:
        """Whether only some tokens may reach it, as a slice of a fused weight or as a member of a list."""
        return self.index is not None or _collected(self.name) != self.name

    def oriented(self, tensor: Tensor) -> Tensor:
        """The weight's part of a tensor of the parameter's shape, as a view (out, in)."""
        part = tensor if self.index is None else tensor[self.index]
        return part.T if self.transposed else part

    @property
    def view(self) -> Tensor:
        """The weight as (out, in), sharing memory with the model; do not modify it."""
        return self.oriented(self.parameter.data)

    def stored(self, value: Tensor) -> Tensor:
        """A value (out, in) as the parameter stores it."""
        return value.T if self.transposed else value

    def assign(self, value: Tensor) -> None:
        """As `assign_values`, for this weight alone."""
        assign_values((self,), {self.name: value})


@dataclass(frozen=True)
class SubBlock:
    """The unit whose error the rebuild measures: the attention or the MLP of one layer.

    Attributes:
        name: of the module within the layer.
        kind: "attention" or "mlp".
        module: the child of the layer, or None if the linears are children of the layer itself (OPT's fc1 and fc2);
            such a sub-block begins with the input of its first linear and ends with the output of its last.
        weights: its prunable weights.
        returns: the "form" of the module's return value at its last replay.
    """

    name: str
    kind: str
    weights: tuple[Weight, ...]
    layer: nn.Module
    module: nn.Module | None
    returns: dict[str, Form] = field(default_factory=dict, compare=False, repr=False)

    @torch.no_grad()
    def record(self, call: Call, outputs: Outputs | None = None) -> Call:
        """The call of the sub-block during a call of the layer; the layer's call if there is no module.

        outputs: known outputs of other sub-blocks, which then do not run.
        """
        if self.module is None:
            return call
        with replacing(_known_forwards(outputs)):
            return record_call(self.layer, self.module, call)

    def replay(self, call: Call, outputs: Outputs | None = None) -> Tensor:
        """The sub-block's output (batch, seqlen, hidden) for a recorded call, in the caller's grad mode.

        outputs: as in `record`; used only if there is no module.
        """
        shape = call.hidden.shape[:-1]
        if self.module is None:
            with replacing(_known_forwards(outputs)):
                output = record_output(self.layer, self.weights[-1].module, call)
            return output.view(*shape, -1)  # OPT flattens the positions of a batch
        output = call_module(self.module, call)
        hidden = first_tensor(output)
        flat = hidden.dim() < call.hidden.dim()  # so does the mixture of experts of Llama 4
        self.returns["form"] = replace(Form.of(output), flat=flat)
        return hidden.view(*shape, -1) if flat else hidden


Outputs = Mapping[SubBlock, Tensor]


@torch.no_grad()
def masked(value: Tensor, mask: Tensor) -> Tensor:
    """The finite value (out, in) with zeros under its mask. Multiplication is faster than a selection."""
    return value.mul(~mask).add_(0.0)  # turns -0.0 into 0.0


def final_values(dense: Values, state: State) -> Values:
    """The weights of a layer in a state, name -> (out, in), from its dense ones: on their device, in their dtype."""
    masks, values = state
    return {
        name: masked(values.get(name, weight).to(weight), masks[name].to(weight.device))
        for name, weight in dense.items()
    }


def _known_forwards(outputs: Outputs | None) -> dict[nn.Module, Callable[..., Any]]:
    """Module -> a forward that returns the known output; sub-blocks without a module are left out."""
    return {
        block.module: lambda *_a, output=output, form=block.returns["form"], **_k: form.wrap(output)
        for block, output in (outputs or {}).items()
        if block.module is not None
    }


@dataclass(frozen=True)
class Layer:
    """One decoder layer with its sub-blocks in the order of their calls; attention first until `inspect` has run."""

    index: int
    module: nn.Module
    sub_blocks: tuple[SubBlock, ...]

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(weight for block in self.sub_blocks for weight in block.weights)

    def zeros(self, but: Collection[str] = ()) -> int:
        """Number of prunable weights that are zero, masked or not, without those in `but`. The layer must be open."""
        counted = [weight.view for weight in self.weights if weight.name not in but]
        return sum(view.numel() - int(view.count_nonzero()) for view in counted)

    @torch.no_grad()
    def replay(self, call: Call, outputs: Outputs | None = None) -> Tensor:
        """The layer's output for a recorded call. Sub-blocks with known `outputs` do not run again."""
        with replacing(_known_forwards(outputs)):
            return replay(self.module, call)

    @torch.no_grad()
    def assign(self, dense: Mapping[str, Tensor], masks: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Assign the weights their dense values or those in `values`, zero under the masks; all (out, in)."""
        for weights in by_parameter(self.weights):
            like = weights[0].parameter
            given = {weight.name: values.get(weight.name, dense[weight.name]).to(like) for weight in weights}
            assign_values(weights, {name: masked(value, masks[name].to(value.device)) for name, value in given.items()})


@dataclass(frozen=True)
class Coverage:
    """How much of the decoder layers' matrices is pruned; vectors, like biases and norms, are not counted.

    Attributes:
        prunable: number of prunable weights.
        dense: name within the layer (members of a list together, as "mlp.experts.*.w1") -> number of weights of all
            layers that are not pruned.
    """

    prunable: int
    dense: dict[str, int]

    def describe(self) -> str | None:
        """One sentence on what stays dense; None if all matrices are pruned."""
        if not self.dense:
            return None
        names = sorted(self.dense, key=self.dense.__getitem__, reverse=True)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        kept = sum(self.dense.values())
        return (
            f"{kept / (kept + self.prunable):.1%} of the weights in the layers stay dense, since they belong to no "
            f"linear layer that can be pruned: {', '.join(names[:NAMED])}{more}."
        )


NAMED = 6  # names in one sentence


def _collected(name: str) -> str:
    """One name for all members of a list, as "experts.*.w1"."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def by_parameter(weights: Iterable[Weight]) -> list[list[Weight]]:
    """The weights of each parameter: one, or the slices of a fused weight."""
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        found.setdefault(weight.path, []).append(weight)
    return list(found.values())


def joined(weights: Sequence[Weight], values: Mapping[str, Tensor]) -> Tensor:
    """The parameter of these weights, which are all that it has, with these values, name -> (out, in).

    It shares memory with a single value, and with slices that lie one after the other in one tensor.
    """
    parts = [weight.stored(values[weight.name]) for weight in weights]
    first, size = parts[0], parts[0].numel()
    if weights[0].index is None:
        return first.contiguous()
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    if first.is_contiguous() and all(
        part.untyped_storage().data_ptr() == storage
        and part.storage_offset() == start + number * size
        and part.stride() == first.stride()
        for number, part in enumerate(parts)
    ):
        return first.as_strided((len(parts), *first.shape), (size, *first.stride()))
    return torch.stack(parts)


def assign_values(weights: Iterable[Weight], values: Mapping[str, Tensor]) -> None:
    """Replace the tensors of the weights' parameters by these values, name -> (out, in); old tensors do not change.

    So dense weights need no copy, and a forward record stays valid while other values are assigned. Slices of a fused
    weight that are not among the weights keep their values.
    """
    for given in by_parameter(weights):
        parameter = given[0].parameter
        new = {weight.name: values[weight.name].to(parameter) for weight in given}
        if given[0].index is not None and len(given) < len(parameter):
            given = [replace(given[0], name=f"{given[0].whole}.{i}", index=i) for i in range(len(parameter))]
            new = {weight.name: new.get(weight.name, weight.view) for weight in given}
        parameter.data = joined(given, new)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The outermost ModuleList with the number of layers in the config, in the text model if there are several."""
    whole: Any = model.config
    config = whole.get_text_config(decoder=True)
    depth = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    if depth is not None and (not isinstance(depth, int) or depth < 1):
        raise UserError(
            f"The configuration of {type(model).__name__} has num_hidden_layers {depth!r}, so there is nothing to "
            "prune: give a model with at least one layer."
        )
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    text = {id(module) for module in model.get_decoder().modules()} if hasattr(model, "get_decoder") else set()
    lists = [item for item in lists if id(item[1]) in text] or lists
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of {depth} decoder layers, so there is nothing to prune: give a "
            "decoder-only language model."
        )
    return min(lists, key=lambda item: item[0].count("."))[1]


def _expert_counts(module: nn.Module) -> set[int]:
    """The numbers of experts inside a module: of fused weights (experts, out, in), and of lists of networks."""
    fused = {
        len(parameter)
        for part in module.modules()
        if not isinstance(part, nn.Conv1d)
        for parameter in part.parameters(recurse=False)
        if parameter.dim() == 3
    }
    lists = {
        len(part)
        for part in module.modules()
        if isinstance(part, nn.ModuleList) and any(_is_linear(m) for m in part.modules())
    }
    return (fused | lists) - {0, 1}


def _linear(name: str, module: nn.Module) -> Weight:
    """The weight of a linear layer."""
    return Weight(name, module, transposed=isinstance(module, Conv1D))


def _weights(name: str, child: nn.Module) -> tuple[Weight, ...]:
    """The weights below a child of a layer: of linears, and slices of fused weights, as far as they look prunable.

    Routers, with one output per expert, are left out.
    """
    experts, found = _expert_counts(child), []
    for n, module in child.named_modules(prefix=name):
        if not _is_linear(module):
            found += _slices(n, module)
        elif not isinstance(module, nn.Linear) or module.out_features not in experts:
            found.append(_linear(n, module))
    return tuple(found)


def _slices(name: str, module: nn.Module) -> list[Weight]:
    """The slices of the fused weights that a module itself has. How they are stored is known once they are used."""
    if isinstance(module, nn.Conv1d):
        return []
    fused = [(key, p) for key, p in module.named_parameters(recurse=False) if p.dim() == 3 and min(p.shape) > 1]
    return [
        Weight(f"{name if key == 'weight' else f'{name}.{key}'}.{index}", module, key, index)
        for key, parameter in fused
        for index in range(len(parameter))
    ]


def _sub_blocks(layer: nn.Module) -> tuple[SubBlock, ...]:
    blocks, direct = [], []
    for name, child in layer.named_children():
        if _is_linear(child):
            direct.append(_linear(name, child))
            continue
        if weights := _weights(name, child):
            attention = any("attn" in text or "attention" in text for text in (name, type(child).__name__.lower()))
            blocks.append(SubBlock(name, "attention" if attention else "mlp", weights, layer, child))
    if direct:
        blocks.append(SubBlock("+".join(weight.name for weight in direct), "mlp", tuple(direct), layer, None))
    return tuple(sorted(blocks, key=lambda block: block.kind != "attention"))


class DecoderView:
    """A model as decoder layers with sub-blocks and prunable weights. Raises UserError if nothing can be pruned.

    coverage: which weights of the layers are pruned and which stay dense.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_plain(model)
        self.model = model
        modules = _find_layers(model)
        self.layers = tuple(Layer(i, module, _sub_blocks(module)) for i, module in enumerate(modules))
        owner: dict[int, str] = {}
        dense: dict[str, int] = {}
        for layer in self.layers:
            for weight in layer.weights:
                name = f"layers.{layer.index}.{weight.whole}"
                other = owner.setdefault(id(weight.parameter), name)
                if other != name:
                    raise UserError(f"{other} and {name} share one tensor, but need two masks: untie them first.")
            for name, parameter in layer.module.named_parameters():
                if sum(size > 1 for size in parameter.shape) > 1 and id(parameter) not in owner:
                    name = _collected(name.removesuffix(".weight"))
                    dense[name] = dense.get(name, 0) + parameter.numel()
        self.coverage = Coverage(sum(w.view.numel() for layer in self.layers for w in layer.weights), dense)
        self._check()
        if not self._first.parameter.is_floating_point():
            raise UserError(
                f"The weights of {type(model).__name__} are {str(self.dtype).removeprefix('torch.')}, so it is "
                "quantised, and packed weights cannot be pruned: give the unquantised model."
            )

    def _check(self) -> None:
        if not self.coverage.prunable:
            raise UserError(
                f"The layers of {type(self.model).__name__} have no linear layer that can be pruned "
                f"({', '.join(list(self.coverage.dense)[:NAMED]) or 'no matrix at all'}): convolutions, and experts "
                "that are not used one by one, are not supported, give a model with linear layers."
            )

    @property
    def _first(self) -> Weight:
        return next(weight for layer in self.layers for weight in layer.weights)

    def leave_dense(
        self,
        names: Collection[tuple[int, str]],
        order: Mapping[int, Sequence[str]] | None = None,
        transposed: Collection[tuple[int, str]] = (),
    ) -> None:
        """Exclude these weights, (layer, name within the layer), from pruning.

        order: layer -> names of its modules in the order of their calls, by which its sub-blocks are then sorted.
        transposed: (layer, Weight.whole) of fused weights that are stored as (in, out).
        Raises UserError if no prunable weight is left.
        """
        prunable, dense, layers = self.coverage.prunable, dict(self.coverage.dense), []
        for layer in self.layers:
            blocks = []
            for block in layer.sub_blocks:
                kept = tuple(
                    replace(weight, transposed=True) if (layer.index, weight.whole) in transposed else weight
                    for weight in block.weights
                    if (layer.index, weight.name) not in names
                )
                for weight in block.weights:
                    if (layer.index, weight.name) in names:
                        size, name = weight.view.numel(), _collected(weight.whole)
                        prunable, dense[name] = prunable - size, dense.get(name, 0) + size
                if kept:
                    blocks.append(replace(block, weights=kept))
            if order:
                called = order[layer.index]
                place = {b: called.index(b.name if b.module is not None else b.weights[0].name) for b in blocks}
                blocks.sort(key=place.__getitem__)
            layers.append(replace(layer, sub_blocks=tuple(blocks)))
        self.layers, self.coverage = tuple(layers), Coverage(prunable, dense)
        self._check()

    @property
    def device(self) -> torch.device:
        return self._first.parameter.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.parameter.dtype

    @property
    def packed_bytes(self) -> int:
        """Bytes of one mask of every weight, eight weights a byte."""
        return sum(weight.view.numel() // 8 + 1 for layer in self.layers for weight in layer.weights)

    @property
    def has_experts(self) -> bool:
        """Whether there are weights that only some tokens may reach."""
        return any(weight.is_expert for layer in self.layers for weight in layer.weights)

    def describe(self) -> list[ModuleInfo]:
        """The prunable weights, in the model's order."""
        return [
            ModuleInfo(layer.index, b.name, b.kind, w.name, list(w.view.shape))
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
    """UserError that names the first parameter with NaN or infinite values, except on the meta device."""
    for name, parameter in module.named_parameters():
        if not (parameter.is_meta or bool(parameter.isfinite().all())):
            raise UserError(
                f"Weight {prefix}{name} of the model holds NaN or infinite values: saliency is undefined for it, so "
                "give an intact checkpoint."
            )


class DenseWeights:
    """All prunable weights at construction, (layer, name) -> (out, in), for comparison and for `restore`.

    They are the model's tensors, not copies: Weight.assign replaces tensors and does not modify them.
    """

    def __init__(self, view: DecoderView) -> None:
        self.view = view
        self._parameters = {(la.index, w.path): w.parameter.data for la in view.layers for w in la.weights}

    def of(self, layer: int, weight: Weight) -> Tensor:
        """The dense weight (out, in) of a layer."""
        return weight.oriented(self._parameters[layer, weight.path])

    @property
    def tensors(self) -> dict[tuple[int, str], Tensor]:
        return {(layer.index, w.name): self.of(layer.index, w) for layer in self.view.layers for w in layer.weights}

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self.tensors[key]

    def restore(self) -> None:
        """Assign the model its dense weights again."""
        for layer in self.view.layers:
            assign_values(layer.weights, {w.name: self.of(layer.index, w) for w in layer.weights})
