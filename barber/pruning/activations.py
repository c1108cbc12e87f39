"""Activation streams: hidden states of the calibration sequences, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from barber.events import Event, Notice
from barber.memory import is_out_of_memory
from barber.models.decoder import Layer, Outputs
from barber.models.products import fast_products
from barber.models.replay import Call, Form, record_layer_calls, replacing
from barber.progress import TICK, Steps, T, Tick
from barber.pruning.activation_store import ActivationStore
from barber.pruning.distributed import Ranks


def _share(value: Any, known: Any) -> Any:
    """`known` where it equals `value`, so that values that all batches share are stored once."""
    if isinstance(value, Tensor) and isinstance(known, Tensor):
        alike = value.shape == known.shape and value.dtype == known.dtype
        return known if value is known or (alike and torch.equal(value, known)) else value
    if isinstance(value, tuple) and isinstance(known, tuple) and len(value) == len(known):
        return tuple(_share(v, k) for v, k in zip(value, known, strict=True))
    if isinstance(value, dict) and isinstance(known, dict):
        return {key: _share(v, known.get(key)) for key, v in value.items()}
    return value


class ActivationStream:
    """Input hidden states of one layer for every calibration sequence, and the calls of all layers.

    The sequences are in batches. `advance` replaces a batch's hidden state by the output of a layer, with the weights
    that the layer has then.

    Attributes:
        hidden: of each batch, (batch, seqlen, hidden) in the model's dtype, as stored.
        outputs: of sub-blocks, key -> one (batch, ...) per batch; split together with the batches.
        halved: whether batches were split because memory ran out.
        open: loads the weights of a layer, given its number, if the layer has to run in `feed`.
        compute: see Call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        store: ActivationStore,
        open: Callable[[int], None] | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        self.model, self.layers, self.store, self.open, self.compute = model, layers, store, open, compute
        self.hidden: list[Tensor] = []
        self.halved = False
        self.outputs: dict[Any, list[Tensor]] = {}
        self._tokens: list[Tensor] = []
        self._validates: list[bool] = []
        self._calls: list[list[Call]] = []  # [batch][layer], without hidden states
        self._forms: dict[type, Form] = {}  # class of layer -> form of its output

    def feed(self, tokens: Tensor, validates: bool = False) -> None:
        """Add tokens (batch, seqlen) as one batch, or as several if memory does not suffice for one.

        validates: whether its sequences are validation sequences.
        """
        if not self._forms:
            self._call_layers(tokens[:1, :2])
        try:
            hidden, calls = self._call_layers(tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(tokens) == 1:
                raise
            hidden = None
        if hidden is None:  # outside the handler, since its traceback keeps tensors in memory
            for part in tokens.split((len(tokens) + 1) // 2):
                self.feed(part, validates)
            return
        self._tokens.append(tokens)
        self._validates.append(validates)
        self.hidden.append(self.store.save(hidden))
        self._calls.append(calls)

    @torch.no_grad()
    def _call_layers(self, tokens: Tensor) -> tuple[Tensor, list[Call]]:
        """Input of the first layer, and the calls of all layers without hidden states."""
        tokens = tokens.to(self.store.device)
        hidden, calls = record_layer_calls(self.model, self.layers, tokens, self._forms, self.open, self.compute)
        known = self._calls[0] if self._calls else calls
        bare = [call.with_hidden(None) for call in calls]
        shared = [
            Call(_share(call.args, k.args), _share(call.kwargs, k.kwargs), self.compute)
            for call, k in zip(bare, known, strict=True)
        ]
        return hidden, shared

    def fork(self) -> ActivationStream:
        """A copy of the stream, which advances independently."""
        twin = copy(self)
        twin.hidden, twin.outputs = list(self.hidden), {}
        twin._tokens, twin._validates, twin._calls = list(self._tokens), list(self._validates), list(self._calls)
        return twin

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.hidden)

    @property
    def sizes(self) -> list[int]:
        """Sequences of each batch."""
        return [len(tokens) for tokens in self._tokens]

    @property
    def train(self) -> list[int]:
        """The train batches."""
        return [batch for batch, validates in enumerate(self._validates) if not validates]

    @property
    def validation(self) -> list[int]:
        """The validation batches, or the train batches if there are none."""
        return [batch for batch, validates in enumerate(self._validates) if validates] or self.train

    def call(self, layer: int, batch: int) -> Call:
        """The call of a layer for one batch, with the stream's current hidden state."""
        return self._calls[batch][layer].with_hidden(self.store.load(self.hidden[batch]))

    def save_output(self, key: Any, batch: int, tensor: Tensor) -> None:
        """Store an output (batch, ...) for a batch; batches must come in order."""
        stored = self.outputs.setdefault(key, [])
        assert len(stored) == batch, f"batch {batch} after {len(stored)}"
        stored.append(self.store.save(tensor))

    def load_outputs(self, keys: Iterable[Any], batch: int) -> dict[Any, Tensor]:
        """The stored outputs of some keys for a batch, on the device."""
        return {key: self.store.load(self.outputs[key][batch]) for key in keys}

    def advance(self, layer: Layer, batch: int, outputs: Outputs | None = None) -> None:
        """Replace the hidden state of one batch by the layer's output; `outputs` as in Layer.replay."""
        self.hidden[batch] = self.store.save(layer.replay(self.call(layer.index, batch), outputs))

    def advance_all(self, layer: Layer, known: tuple = ()) -> Steps[None]:
        """Advance every batch by a layer; known: keys of stored outputs of its sub-blocks, which do not run again."""
        for batch in range(len(self)):
            self.advance(layer, batch, self.load_outputs(known, batch))
            yield TICK

    @torch.no_grad()
    def logits(self, batch: int) -> Tensor:
        """Logits (batch, seqlen, vocabulary) of one batch, after the stream has passed the last layer."""
        hidden = self.store.load(self.hidden[batch])
        forms = [(layer, self._forms[type(layer)]) for layer in self.layers]
        passing = {layer: lambda *_a, form=form, **_k: form.wrap(hidden) for layer, form in forms}
        with replacing(passing), fast_products(hidden.device, hidden.dtype):
            return self.model(self._tokens[batch].to(self.store.device), use_cache=False).logits

    def halve(self) -> None:
        """Split every batch of two sequences or more in two."""
        self.halved = True
        tokens, validates, hidden, calls = self._tokens, self._validates, self.hidden, self._calls
        outputs, self.outputs = self.outputs, {key: [] for key in self.outputs}
        self._tokens, self._validates, self.hidden, self._calls = [], [], [], []
        for batch, rows in enumerate(tokens):
            size = max(1, (len(rows) + 1) // 2)
            for part, state in zip(rows.split(size), hidden[batch].split(size), strict=True):
                self._calls.append(calls[batch] if len(rows) == 1 else self._call_layers(part)[1])
                self._tokens.append(part)
                self._validates.append(validates[batch])
                self.hidden.append(state)
            for key, tensors in outputs.items():
                self.outputs[key] += tensors[batch].split(size) if batch < len(tensors) else ()


def halving(
    streams: Sequence[ActivationStream], ranks: Ranks, attempt: Callable[[], Steps[T]]
) -> Generator[Event | Tick, None, T]:
    """Do work on the streams, and restart it with batches of half the size whenever memory runs out.

    attempt: starts the work from its beginning. Raises the memory error if batches have one sequence, or with several
    ranks, since the others would wait for the sums of the restarted rank.
    """
    while True:
        try:
            return (yield from attempt())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or max(streams[0].sizes) == 1 or ranks.world > 1:
                raise
        # Outside the handler, since its traceback keeps tensors in memory.
        for stream in streams:
            stream.halve()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield Notice(f"Memory ran out, so batches were halved; the largest now has {max(streams[0].sizes)} sequences.")
