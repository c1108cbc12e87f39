"""Check the assumptions of the algorithm about a model by running it once on a few tokens.

It must be a decoder: the logits at a position may not depend on later tokens. Its layers must be a chain: each is
called once, in order, gets exactly the output of the layer before it, and returns the same alone as inside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from barber.errors import UserError, first_line
from barber.memory import is_out_of_memory
from barber.models.decoder import DecoderView, Layer, Weight
from barber.models.modes import eval_mode
from barber.models.providers import LayerProvider
from barber.models.replay import Call, first_tensor, record_layer_calls, replacing, replay
from barber.models.taps import Following, Tap

TOKENS, SHARED = 16, 4  # tokens of each of the two prompts, and of their common prefix


@dataclass(frozen=True)
class Inspection:
    """What a short run shows of a model.

    Attributes:
        weights: number of prunable weights.
        zeros: number of zeros among them before pruning.
        routed: share of the tokens that reach an expert, on average; 1 without experts.
    """

    weights: int
    zeros: int
    routed: float = 1.0

    def describe(self, target: float | None) -> str | None:
        """One sentence on zeros that the model has already; None for a dense model. target: the sparsity of the run."""
        found = self.zeros / self.weights
        if found < ALREADY:
            return None
        sentence = f"{self.zeros} of {self.weights} prunable weights of the model are zero already ({found:.2%})"
        if target is None:
            return f"{sentence}."
        if target < found:
            return f"{sentence}, more than the {target:.2%} to prune: give a larger sparsity or the dense model."
        return f"{sentence}: this run calls that model dense."


ALREADY = 0.1  # share of zeros from which a model counts as pruned; Gemma 3 270M comes with 4.5 %


def count_zeros(view: DecoderView, provider: LayerProvider) -> Inspection:
    """Count the zeros of a model without checking it, for runs that do not prune."""
    zeros = 0
    for layer in view.layers:
        provider.open(layer.index)
        zeros += layer.zeros()
        provider.close(layer.index)
    return Inspection(view.coverage.prunable, zeros)


def inspect(view: DecoderView, provider: LayerProvider) -> Inspection:
    """Check that the model is a decoder and a chain of layers, by running it once on two short prompts.

    The view excludes weights that text does not use, or whose module does not compute x W^T + b, and sorts its
    sub-blocks in the order of their calls. Every layer is opened once, the first of each class twice. Raises UserError
    if the model is not a decoder, or its layers are not a chain.
    """
    model, name = view.model, type(view.model).__name__
    tokens = _prompts(model).to(provider.device)
    with torch.no_grad(), eval_mode(model):
        calls, skipped = _attempt(
            model, lambda: record_layer_calls(model, [la.module for la in view.layers], tokens, {}, provider.open)[1]
        )
        chain = _Chain(view, provider, calls, tokens.shape)
        with replacing({layer.module: chain.watched(layer) for layer in view.layers}):
            logits, failed = _attempt(model, lambda: model(input_ids=tokens, use_cache=False).logits)
        for layer in view.layers:
            provider.close(layer.index)
    if failed or skipped:  # the error of the whole model is more specific
        raise failed or skipped
    chain.check_end()
    difference = (logits[0] - logits[1]).float().abs()
    leak, change = difference[: SHARED if len(difference) > SHARED else 1].max(), difference.max()
    if leak > _tolerance(logits.dtype) * change:
        raise UserError(
            f"{name} is not a decoder here: its logits at a position change with later tokens, as in encoders "
            "like BERT, so give a decoder-only language model."
        )
    view.leave_dense(chain.dense, chain.order, chain.transposed)
    return Inspection(view.coverage.prunable, chain.zeros, chain.routed)


def _attempt(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """The return value of `run`, or its error as a UserError: a model's code can raise any exception."""
    try:
        return run(), None
    except UserError as error:
        return None, error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None, UserError(
            f"{type(model).__name__} cannot be run on text alone ({first_line(error)}): give a decoder-only language "
            "model."
        )


class _Chain:
    """Checks the calls of the layers in one forward pass.

    calls: the calls of the layers when these are skipped; None if the model fails then.
    """

    def __init__(self, view: DecoderView, provider: LayerProvider, calls: list[Call] | None, shape: torch.Size) -> None:
        self.view, self.provider, self.calls, self.shape = view, provider, calls, shape
        self.name = type(view.model).__name__
        self.zeros = self.reached = 0
        self.dense: set[tuple[int, str]] = set()  # weights that are not pruned
        self.transposed: set[tuple[int, str]] = set()  # fused weights that are stored as (in, out)
        self.rows: list[int] = []  # number of tokens that reached each expert
        self.order: dict[int, list[str]] = {}  # layer -> names of its modules in the order of their calls
        self.before: Tensor | None = None  # output of the layer before

    def watched(self, layer: Layer):
        """A forward of the layer that checks its call and its output."""
        forward = layer.module.forward

        def call(*args, **kwargs):
            if layer.index != self.reached:
                raise self._refusal(f"layer {layer.index} is called instead of layer {self.reached}")
            real = Call(args, kwargs)
            if not real.has_hidden:
                raise self._refusal(f"layer {layer.index} is called without a hidden state")
            if self.before is not None and not _equal(real.hidden, self.before):
                raise self._refusal(f"the output of layer {layer.index - 1} is changed before layer {layer.index}")
            if real.hidden.shape[:2] != self.shape:
                found = f"{tuple(real.hidden.shape)} for {tuple(self.shape)} tokens"
                raise self._refusal(f"the hidden state of layer {layer.index} is {found}")
            hidden = real.hidden.clone()
            self.provider.open(layer.index)
            rows: dict[str, int] = {}
            with _calls(layer, rows) as (called, odd), _followed(layer, rows, called) as transposed:
                output = forward(*args, **kwargs)
            dense = _unused(layer, called) | odd
            self.transposed |= {(layer.index, name) for name in transposed}
            experts = [weight.name for weight in layer.weights if weight.is_expert and weight.name not in dense]
            self.rows += [rows.get(name, 0) for name in experts]
            self.zeros += layer.zeros(but=dense)
            self.dense |= {(layer.index, name) for name in dense}
            self.order[layer.index] = list(called)
            self.before = first_tensor(output).clone()
            if self.calls:
                with replacing({layer.module: forward}):
                    lone = self.calls[layer.index].with_hidden(hidden)
                    alone, failed = _attempt(self.view.model, lambda: replay(layer.module, lone))
                if failed or not _alike(alone, self.before):
                    raise self._refusal(f"layer {layer.index} returns another output alone than inside the model")
            self.provider.close(layer.index)
            self.reached += 1
            return output

        return call

    @property
    def routed(self) -> float:
        return sum(self.rows) / (len(self.rows) * self.shape.numel()) if self.rows else 1.0

    def check_end(self) -> None:
        if self.reached < len(self.view.layers):
            raise self._refusal(f"layer {self.reached} is not called")

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"The layers of {self.name} are no chain, since {what}, and masks would be measured on activations that "
            "the model never has: give a model that runs its layers once, one after the other."
        )


@contextmanager
def _calls(layer: Layer, rows: dict[str, int]) -> Iterator[tuple[dict[str, None], set[str]]]:
    """Names of a layer's modules in the order of their calls, and of linears that do not compute x W^T + b.

    rows: the number of inputs of each linear is added to it.
    """
    called: dict[str, None] = {"": None}  # the layer itself
    odd: set[str] = set()
    with ExitStack() as stack:
        for name, module in layer.module.named_modules():
            stack.enter_context(module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name)))
        for weight in layer.weights:
            if weight.index is not None:
                continue

            def compare(module, args, output, weight=weight):
                x, bias = args[0], getattr(module, "bias", None)
                rows[weight.name] = rows.get(weight.name, 0) + x[..., 0].numel()
                if x.shape[-1] != weight.view.shape[1] or not _alike(output, F.linear(x, weight.view, bias)):
                    odd.add(weight.name)

            stack.enter_context(weight.module.register_forward_hook(compare))
        yield called, odd


@contextmanager
def _followed(layer: Layer, rows: dict[str, int], called: dict[str, None]) -> Iterator[set[str]]:
    """Add the slices of fused weights that are used to `called`, and the number of their inputs to `rows`.

    Yields the names of the fused weights that are stored as (in, out). A weight that is used in both ways, as (in, out)
    and as (out, in), is as if it were not used.
    """
    uses: dict[tuple[str, bool], list[str]] = {}

    def note(weight: Weight, tap: Tap, transposed: bool) -> None:
        rows[weight.name] = rows.get(weight.name, 0) + tap.own(tap.x)[..., 0].numel()
        uses.setdefault((weight.whole, transposed), []).append(weight.name)

    found: set[str] = set()
    with Following([weight for weight in layer.weights if weight.index is not None], note):
        yield found
    for (name, transposed), slices in uses.items():
        if (name, not transposed) not in uses:
            called.update(dict.fromkeys(slices))
            found |= {name} if transposed else set()


def _unused(layer: Layer, called: Collection[str]) -> set[str]:
    """Weights that are not called on text: their child of the layer is not called, or uses them in another way.

    An expert without tokens is not among them, since other tokens may be routed to it.
    """
    used = {weight.whole for weight in layer.weights if weight.name in called}
    unused = {weight.name for weight in layer.weights if weight.index is not None and weight.whole not in used}
    for block in layer.sub_blocks:
        names = {weight.name for weight in block.weights}
        idle = names.isdisjoint(called) or (block.module is not None and block.name not in called)
        unused |= {name for name in names.difference(called) if idle or name.rpartition(".")[0] in called}
    return unused


def _prompts(model: PreTrainedModel) -> Tensor:
    """Two prompts (2, TOKENS) with a common prefix, of ids from inside the vocabulary, to avoid special tokens."""
    size = cast("Tensor", model.get_input_embeddings().weight).shape[0]
    tokens = torch.randint(size // 4, size // 2 + 1, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    tokens[1, :SHARED] = tokens[0, :SHARED]
    return tokens


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, 0, 0, equal_nan=True)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding, since accelerators sum in any order. NaN is equal to anything."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return not one.numel() or not (one - other).abs().max() > _tolerance(one.dtype) * other.abs().max()


def _tolerance(dtype: torch.dtype) -> float:
    """Relative tolerance above rounding errors and below other differences: 6e-6 in fp32, 0.03 in bf16."""
    return torch.finfo(dtype).eps ** 0.75
