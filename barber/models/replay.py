"""Record and replay calls of modules, with all arguments that a model family passes.

This is independent of the family: recorded calls contain rotary embeddings, attention masks and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from barber.errors import UserError
from barber.models.products import fast_products


@dataclass(frozen=True)
class Call:
    """The arguments of one module call. The hidden state comes first, by position or as `hidden_states`.

    compute: the dtype of matrix products; None for that of the weights.
    """

    args: tuple
    kwargs: dict[str, Any]
    compute: torch.dtype | None = None

    @property
    def hidden(self) -> Tensor:
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    @property
    def has_hidden(self) -> bool:
        """Whether the call has a hidden state."""
        return isinstance(self.args[0] if self.args else self.kwargs.get("hidden_states"), Tensor)

    def with_hidden(self, hidden: Tensor | None) -> Call:
        if self.args:
            return replace(self, args=(hidden, *self.args[1:]))
        return replace(self, kwargs=self.kwargs | {"hidden_states": hidden})


class _Reached(Exception):
    """Ends a forward pass once the call or output is recorded."""


def _never_called(root: nn.Module, target: nn.Module) -> UserError:
    return UserError(
        f"{type(root).__name__} does not call its {type(target).__name__} on text, so it cannot be recorded: "
        "give a model whose layers use all their modules."
    )


def first_tensor(output: Any) -> Tensor:
    """The hidden state of a module's output, which is a tensor, or a tuple or list that begins with one."""
    return output[0] if isinstance(output, tuple | list) else output


@dataclass(frozen=True)
class Form:
    """How a module returns its hidden state: alone (container None), or first of `size` things in a tuple or list.

    flat: as (positions, hidden) for all sequences together.
    """

    container: type[tuple] | type[list] | None
    size: int = 1
    flat: bool = False

    @classmethod
    def of(cls, output: Any) -> Form:
        """The form of a module's return value."""
        container = next((kind for kind in (tuple, list) if isinstance(output, kind)), None)
        return cls(container, len(output)) if container else cls(None)

    def wrap(self, output: Tensor) -> Any:
        """A stored output in this form, copied, since models add residuals in place."""
        copied = output.clone().flatten(0, -2) if self.flat else output.clone()
        return self.container((copied, *[None] * (self.size - 1))) if self.container else copied


def call_module(module: nn.Module, call: Call) -> Any:
    """Call the module as recorded, in the caller's grad mode; its return value."""
    device, dtype = call.hidden.device, call.hidden.dtype
    with torch.autocast(device.type, call.compute, enabled=call.compute is not None), fast_products(device, dtype):
        return module(*call.args, **call.kwargs)


def replay(module: nn.Module, call: Call) -> Tensor:
    """Call the module as recorded, in the caller's grad mode; the output's hidden state."""
    return first_tensor(call_module(module, call))


def record_call(root: nn.Module, target: nn.Module, call: Call) -> Call:
    """Run `root` until it calls `target`, and return that call."""
    seen: list[Call] = []

    def stop(_module, args, kwargs):
        seen.append(Call(args, kwargs, call.compute))
        raise _Reached

    with target.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            call_module(root, call)
        except _Reached:
            return seen[0]
    raise _never_called(root, target)


def record_output(root: nn.Module, target: nn.Module, call: Call) -> Tensor:
    """Run `root` until `target` returns, and return the hidden state of its output."""
    seen: list[Tensor] = []

    def stop(_module, _args, output):
        seen.append(first_tensor(output))
        raise _Reached

    with target.register_forward_hook(stop):
        try:
            call_module(root, call)
        except _Reached:
            return seen[0]
    raise _never_called(root, target)


@contextmanager
def replacing(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of each module inside the context."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


@torch.no_grad()
def record_layer_calls(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    tokens: Tensor,
    forms: dict[type, Form],
    open: Callable[[int], None] | None = None,
    compute: torch.dtype | None = None,
) -> tuple[Tensor, list[Call]]:
    """The input of the first layer for tokens (batch, seqlen), and the calls of all layers, in order.

    The layers are skipped. The other arguments are recorded for each layer, since they can differ (sliding and global
    attention). One layer of each class that is not in `forms` runs, to find the form of its output. open: loads the
    weights of a layer before it runs, given its number. compute: see Call.
    """
    calls: list[Call] = []

    def skipping(index: int, layer: nn.Module):
        kind, forward = type(layer), layer.forward

        def skip(*args, **kwargs):
            call = Call(args, kwargs, compute)
            if not call.has_hidden:
                raise UserError(
                    f"{type(model).__name__} calls its {kind.__name__} without a hidden state, so its layers cannot "
                    "be run one by one: give a model whose layers take the hidden state first."
                )
            calls.append(call)
            if kind not in forms:
                if open:
                    open(index)
                once = call.with_hidden(call.hidden.clone())
                forms[kind] = Form.of(forward(*once.args, **once.kwargs))
            return forms[kind].wrap(call.hidden)

        return skip

    with replacing({layer: skipping(index, layer) for index, layer in enumerate(layers)}):
        # The base model, since the logits are not needed, and large.
        model.base_model(tokens, use_cache=False)
    if not calls:
        raise _never_called(model, layers[0])
    return calls[0].hidden.clone(), calls
