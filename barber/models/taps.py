"""Watch the calls of weights: of linear layers by hooks, of the slices of fused weights by the products they are in.

Experts are followed without knowing the model: whatever multiplies inputs by a view of a fused weight, for one expert
(F.linear, matmul) or for all of them at once (bmm, grouped_mm), is a call of those experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers.integrations.moe  # noqa: F401 registers an operator, see GROUPED
from torch import Tensor
from torch.overrides import TorchFunctionMode

from barber.models.decoder import Weight, by_parameter


@dataclass(frozen=True, eq=False)
class Tap:
    """One call of a weight: its inputs are rows of x (..., in), its outputs the same rows of y (..., out).

    rows: from and to which row of the flattened tensors; None for all, in the tensors' own shape.
    """

    x: Tensor
    y: Tensor
    rows: tuple[int, int] | None = None

    def own(self, tensor: Tensor) -> Tensor:
        """The part of this call in x, y, or the gradient of y."""
        return tensor if self.rows is None else tensor.flatten(0, -2)[slice(*self.rows)]


Taps = dict[str, list[Tap]]


def by_name(weights: Iterable[Weight]) -> dict[str, Weight]:
    """The weights by name, for `tapping`."""
    return {weight.name: weight for weight in weights}


@contextmanager
def tapping(watch: Mapping[str, Weight], leaves: bool = False) -> Iterator[Taps]:
    """Collect the calls of each weight in `watch` by name, inside the context.

    leaves: the outputs of weights require a gradient also if no input does. So the backward pass of a sub-block ends at
    its first weights, and does not compute the gradient of its input.
    """
    taps: Taps = {}
    names = {weight: name for name, weight in watch.items() if weight.index is not None}
    with ExitStack() as stack:
        for name, weight in watch.items():

            def look(_module, args, output, name=name):
                if leaves and not output.requires_grad:
                    output.requires_grad_(True)
                taps.setdefault(name, []).append(Tap(args[0], output))

            if weight.index is None:
                stack.enter_context(weight.module.register_forward_hook(look))

        def note(weight: Weight, tap: Tap, _transposed: bool) -> None:
            taps.setdefault(names[weight], []).append(tap)

        if names:
            stack.enter_context(Following(names, note, leaves))
        yield taps


# These multiply rows by (experts, in, out), given the ends of each expert's rows. The second is an operator that
# transformers registers for devices without the first.
GROUPED = {torch._grouped_mm, torch.ops.transformers.grouped_mm_fallback}
BY_INPUT = GROUPED | {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm}  # by (..., in, out)
BY_OUTPUT = {F.linear}  # multiply by (out, in)


class Following(TorchFunctionMode):
    """Calls `note(weight, tap, transposed)` for each call of a slice of a fused weight, inside the context.

    weights: all slices of their parameters. transposed: whether the call uses the parameter as (in, out). leaves: as in
    `tapping`.
    """

    def __init__(
        self, weights: Iterable[Weight], note: Callable[[Weight, Tap, bool], None], leaves: bool = False
    ) -> None:
        super().__init__()
        self._fused = [(slices[0].parameter.data, slices) for slices in by_parameter(weights)]
        self._note, self._leaves = note, leaves

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (func not in BY_INPUT and func not in BY_OUTPUT) or len(args) < 2:
            return func(*args, **kwargs)
        x, factor, *rest = args
        found = [(*place, slices) for fused, slices in self._fused if (place := _place(factor, fused))]
        if not found:
            return func(*args, **kwargs)
        turned, index, slices = found[0]
        offsets = kwargs.get("offs", rest[0] if rest else None) if func in GROUPED else None
        used = x
        if self._leaves and torch.is_grad_enabled() and not x.requires_grad:
            used = x.detach().requires_grad_(True)  # not the output, which bias may be added to in place
        y = func(used, factor, *rest, **kwargs)
        for number, rows in _rows(x, index, len(slices), offsets):
            self._note(slices[number], Tap(x, y, rows), turned is (func in BY_OUTPUT))
        return y


def _place(factor: Tensor, fused: Tensor) -> tuple[bool, int | None] | None:
    """Where in a fused weight a factor of a product is, None if it is no view of it.

    Returns whether the two last dimensions are exchanged, and the expert's number, None for all experts.
    """
    if factor.dtype != fused.dtype or factor.device != fused.device or factor.dim() not in (2, 3):
        return None
    index, rest = divmod(factor.data_ptr() - fused.data_ptr(), fused.stride(0) * fused.element_size())
    for turned, like in ((False, fused), (True, fused.transpose(1, 2))):
        if factor.dim() == 2 and (factor.shape, factor.stride()) == (like.shape[1:], like.stride()[1:]):
            return (turned, index) if not rest and 0 <= index < len(fused) else None
        if (factor.shape, factor.stride()) == (like.shape, like.stride()):
            return None if index or rest else (turned, None)
    return None


def _rows(
    x: Tensor, index: int | None, experts: int, offsets: Tensor | None
) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """The experts that a product with inputs x calls, and the rows of each.

    index: the expert, or None for all; then offsets are the ends of their rows, or x is (experts, rows, in).
    """
    if index is not None:
        yield index, None
        return
    ends = offsets.tolist() if offsets is not None else range(x.shape[-2], experts * x.shape[-2] + 1, x.shape[-2])
    start = 0
    for number, end in enumerate(ends):
        if end > start:
            yield number, (start, end)
        start = end
