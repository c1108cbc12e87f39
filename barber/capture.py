"""Record and replay calls of modules, with whatever arguments the model family passes.

Nothing here knows a family: rotary embeddings, attention masks and biases travel inside the recorded calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from barber.errors import UserError


@dataclass(frozen=True)
class Call:
    """The arguments of one module call. The hidden state comes first, by position or as `hidden_states`."""

    args: tuple
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def with_hidden(self, hidden: Tensor | None) -> Call:
        if self.args:
            return replace(self, args=(hidden, *self.args[1:]))
        return replace(self, kwargs=self.kwargs | {"hidden_states": hidden})


class _Reached(Exception):
    """Ends a forward pass at the point of interest."""


def _never_called(root: nn.Module, target: nn.Module) -> UserError:
    return UserError(
        f"{type(root).__name__} does not call its {type(target).__name__} on text, so it cannot be measured: give a "
        "model whose layers use all their parts."
    )


def first_tensor(output: Any) -> Tensor:
    """The hidden state of a module's output, which is a tensor or a tuple that begins with one."""
    return output[0] if isinstance(output, tuple) else output


def replay(module: nn.Module, call: Call) -> Tensor:
    """Call the module as recorded, in the caller's grad mode; the output's hidden state."""
    return first_tensor(module(*call.args, **call.kwargs))


def record_call(root: nn.Module, target: nn.Module, call: Call) -> Call:
    """Run `root` until it calls `target`; that call, its tensors as they were at that moment."""
    seen: list[Call] = []

    def stop(_module, args, kwargs):
        seen.append(Call(args, kwargs))
        raise _Reached

    with target.register_forward_pre_hook(stop, with_kwargs=True):
        try:
            root(*call.args, **call.kwargs)
        except _Reached:
            return seen[0]
    raise _never_called(root, target)


def record_output(root: nn.Module, target: nn.Module, call: Call) -> Tensor:
    """Run `root` until `target` has its output; that output's hidden state."""
    seen: list[Tensor] = []

    def stop(_module, _args, output):
        seen.append(first_tensor(output))
        raise _Reached

    with target.register_forward_hook(stop):
        try:
            root(*call.args, **call.kwargs)
        except _Reached:
            return seen[0]
    raise _never_called(root, target)


@contextmanager
def watching(watch: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, the input (tokens, in) of each watched linear is passed to `see` under its name as it is called."""
    with ExitStack() as stack:
        for name, linear in watch.items():

            def look(_module, args, name=name):
                see(name, args[0].detach().flatten(0, -2))

            stack.enter_context(linear.register_forward_pre_hook(look))
        yield


def observe_inputs(
    module: nn.Module, call: Call, watch: dict[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Tensor:
    """Replay `call`, passing the input (tokens, in) of each watched linear to `see` under its name; the output."""
    with watching(watch, see):
        return replay(module, call)
