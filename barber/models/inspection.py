"""Whether a model is what the algorithm takes it for, found by running it once on a few tokens.

It must be a decoder: what it says of a token may not depend on later ones. And its layers must be a chain: each is
called once, in order, gets exactly what the one before put out, and gives by itself what it gives inside the model.
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
from barber.models.decoder import DecoderView, Layer
from barber.models.modes import eval_mode
from barber.models.providers import LayerProvider
from barber.models.replay import Call, first_tensor, record_layer_calls, replacing, replay

TOKENS, SHARED = 16, 4  # of each of the two prompts, and how many they share at the beginning


@dataclass(frozen=True)
class Inspection:
    """What the model's prunable weights were found like: how many there are, and how many are zero already."""

    weights: int
    zeros: int

    def describe(self, asked: float | None) -> str | None:
        """One sentence on zeros that the model has already; None for a dense model. asked: the sparsity to come."""
        found = self.zeros / self.weights
        if found < ALREADY:
            return None
        said = f"{self.zeros} of {self.weights} prunable weights of the model are zero already ({found:.2%})"
        if asked is None:
            return f"{said}."
        if asked < found:
            return f"{said}, more than the {asked:.2%} that are to be pruned: ask for more, or give the dense model."
        return f"{said}: what is called dense here is that pruned model."


ALREADY = 0.1  # share of zeros from which a model counts as pruned; Gemma 3 270M comes with 4.5 %


def count_zeros(view: DecoderView, provider: LayerProvider) -> Inspection:
    """The zeros of a model that need not be a chain of layers, since nothing is to be pruned."""
    zeros = 0
    for layer in view.layers:
        provider.open(layer.index)
        zeros += layer.zeros()
        provider.close(layer.index)
    return Inspection(view.coverage.prunable, zeros)


def inspect(view: DecoderView, provider: LayerProvider) -> Inspection:
    """Run the model once on two short prompts, and let the view leave dense what text does not reach, or is no
    plain linear, and have its sub-blocks in the order in which they run.

    Every layer is opened once, and the first of each class twice. Raises UserError where the model is not a decoder, or
    its layers are not a chain.
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
    if failed or skipped:  # what failed in the whole model says more
        raise failed or skipped
    chain.check_end()
    difference = (logits[0] - logits[1]).float().abs()
    leak, change = difference[: SHARED if len(difference) > SHARED else 1].max(), difference.max()
    if leak > _tolerance(logits.dtype) * change:
        raise UserError(
            f"{name} is not a decoder here: what it says of a token changes with the tokens after it, as in encoders "
            "like BERT, so give a decoder-only language model."
        )
    view.settle(chain.dense, chain.order)
    return Inspection(view.coverage.prunable, chain.zeros)


def _attempt(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """What `run` returns, or why it failed: a model's own code can fail anywhere."""
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
    """Watches the layers of one forward pass.

    calls: what they are called with where the layers are skipped; None where the model fails without its layers.
    """

    def __init__(self, view: DecoderView, provider: LayerProvider, calls: list[Call] | None, shape: torch.Size) -> None:
        self.view, self.provider, self.calls, self.shape = view, provider, calls, shape
        self.name = type(view.model).__name__
        self.zeros = self.reached = 0
        self.dense: set[tuple[int, str]] = set()  # weights that cannot be pruned
        self.order: dict[int, list[str]] = {}  # layer -> names of its modules as they are called
        self.before: Tensor | None = None  # what the layer before put out

    def watched(self, layer: Layer):
        """A forward of the layer that checks its call and its output."""
        forward = layer.module.forward

        def call(*args, **kwargs):
            if layer.index != self.reached:
                raise self._refusal(f"layer {layer.index} is called where layer {self.reached} is due")
            real = Call(args, kwargs)
            if not real.has_hidden:
                raise self._refusal(f"layer {layer.index} is called without a hidden state")
            if self.before is not None and not _equal(real.hidden, self.before):
                raise self._refusal(f"what layer {layer.index - 1} puts out is changed before layer {layer.index}")
            if real.hidden.shape[:2] != self.shape:
                found = f"{tuple(real.hidden.shape)} for {tuple(self.shape)} tokens"
                raise self._refusal(f"the hidden state of layer {layer.index} is {found}")
            hidden = real.hidden.clone()
            self.provider.open(layer.index)
            with _calls(layer) as (called, odd):
                output = forward(*args, **kwargs)
            dense = _unused(layer, called) | odd
            self.zeros += layer.zeros(but=dense)
            self.dense |= {(layer.index, name) for name in dense}
            self.order[layer.index] = list(called)
            self.before = first_tensor(output).clone()
            if self.calls:
                with replacing({layer.module: forward}):
                    lone = self.calls[layer.index].with_hidden(hidden)
                    alone, failed = _attempt(self.view.model, lambda: replay(layer.module, lone))
                if failed or not _alike(alone, self.before):
                    raise self._refusal(f"layer {layer.index} gives something else by itself than inside the model")
            self.provider.close(layer.index)
            self.reached += 1
            return output

        return call

    def check_end(self) -> None:
        if self.reached < len(self.view.layers):
            raise self._refusal(f"layer {self.reached} is not called")

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"The layers of {self.name} are no chain, since {what}, and masks would be measured on activations that "
            "the model never has: give a model that runs its layers once, one after the other."
        )


@contextmanager
def _calls(layer: Layer) -> Iterator[tuple[dict[str, None], set[str]]]:
    """The names of the modules in a layer as they are called inside, and of its linears that do not give x W^T + b."""
    called: dict[str, None] = {"": None}  # the layer itself
    odd: set[str] = set()
    with ExitStack() as stack:
        for name, module in layer.module.named_modules():
            stack.enter_context(module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name)))
        for weight in layer.weights:

            def compare(module, args, output, weight=weight):
                x, bias = args[0], getattr(module, "bias", None)
                if x.shape[-1] != weight.view.shape[1] or not _alike(output, F.linear(x, weight.view, bias)):
                    odd.add(weight.name)

            stack.enter_context(weight.module.register_forward_hook(compare))
        yield called, odd


def _unused(layer: Layer, called: Collection[str]) -> set[str]:
    """Linears that are not called on text: of a child that is not called either, or whose weight is used directly.

    An expert without tokens is not among them, for others may be sent to it: it is a part of something that is used.
    """
    unused = set()
    for block in layer.sub_blocks:
        names = {weight.name for weight in block.weights}
        idle = names.isdisjoint(called) or (block.module is not None and block.name not in called)
        unused |= {name for name in names.difference(called) if idle or name.rpartition(".")[0] in called}
    return unused


def _prompts(model: PreTrainedModel) -> Tensor:
    """Two prompts (2, TOKENS) that begin alike, of arbitrary ids from within the vocabulary: not special ones."""
    size = cast("Tensor", model.get_input_embeddings().weight).shape[0]
    tokens = torch.randint(size // 4, size // 2 + 1, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    tokens[1, :SHARED] = tokens[0, :SHARED]
    return tokens


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, 0, 0, equal_nan=True)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding; kernels of accelerators may add in any order. NaN is anything's like."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return not one.numel() or not (one - other).abs().max() > _tolerance(one.dtype) * other.abs().max()


def _tolerance(dtype: torch.dtype) -> float:
    """A share between what rounding and what another computation changes: 6e-6 in fp32, 0.03 in bf16."""
    return torch.finfo(dtype).eps ** 0.75
