"""The sparse stream: the calibration activations that the model at work really produces, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from barber.capture import Call, replay


def _share(value: Any, known: Any) -> Any:
    """`known` where it equals `value`, so that what repeats from sequence to sequence is stored once."""
    if isinstance(value, Tensor) and isinstance(known, Tensor):
        alike = value.shape == known.shape and value.dtype == known.dtype
        return known if value is known or (alike and torch.equal(value, known)) else value
    if isinstance(value, tuple) and isinstance(known, tuple) and len(value) == len(known):
        return tuple(_share(v, k) for v, k in zip(value, known, strict=True))
    if isinstance(value, dict) and isinstance(known, dict):
        return {key: _share(v, known.get(key)) for key, v in value.items()}
    return value


@contextmanager
def _forwards(layers: Sequence[nn.Module], forwards: Sequence[Any]) -> Iterator[None]:
    """Give each layer another `forward` inside the context."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


class Stream:
    """Hidden states of every calibration sequence in front of one layer, and how the model calls its layers.

    `hidden[j]` is (1, seqlen, hidden) of sequence j in the model's dtype. It moves on by `advance`, which runs a layer
    with the weights it has at that moment.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        self.model, self.layers = model, layers
        self.hidden: list[Tensor] = []
        self._calls: list[list[Call]] = []  # [sequence][layer], without hidden states
        self._tuples: list[bool] = []  # whether a layer returns a tuple

    @torch.no_grad()
    def feed(self, tokens: Tensor) -> None:
        """Add one sequence, tokens (1, seqlen) on the model's device: its embedding and the arguments of each layer.

        The layers are skipped; what they would be called with beside the hidden state is recorded for each of them,
        since families differ between layers (sliding and global attention).
        """
        if not self._tuples:
            self._tuples = self._output_kinds(tokens[:, :2])
        calls: list[Call] = []

        def skipping(index: int):
            def skip(*args, **kwargs):
                call = Call(args, kwargs)
                calls.append(call)
                return (call.hidden, None) if self._tuples[index] else call.hidden

            return skip

        with _forwards(self.layers, [skipping(i) for i in range(len(self.layers))]):
            self.model(tokens, use_cache=False)
        self.hidden.append(calls[0].hidden.clone())
        known = self._calls[0] if self._calls else calls
        bare = [call.with_hidden(None) for call in calls]
        self._calls.append(
            [
                Call(_share(call.args, k.args), _share(call.kwargs, k.kwargs))
                for call, k in zip(bare, known, strict=True)
            ]
        )

    def fork(self) -> Stream:
        """Another stream that stands where this one does and moves on by itself."""
        twin = copy(self)
        twin.hidden = list(self.hidden)
        return twin

    def _output_kinds(self, tokens: Tensor) -> list[bool]:
        kinds: list[bool] = []
        hooks = [
            layer.register_forward_hook(lambda _m, _a, out: kinds.append(isinstance(out, tuple)))
            for layer in self.layers
        ]
        try:
            self.model(tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return kinds

    def __len__(self) -> int:
        return len(self.hidden)

    def call(self, layer: int, sequence: int) -> Call:
        """The call of a layer for one sequence, with the stream's hidden state as it stands."""
        return self._calls[sequence][layer].with_hidden(self.hidden[sequence])

    @torch.no_grad()
    def advance(self, layer: int, sequence: int) -> None:
        """Replace the hidden state of one sequence by the layer's output."""
        # Cloned, since some families add the residual in place.
        self.hidden[sequence] = replay(self.layers[layer], self.call(layer, sequence)).clone()
