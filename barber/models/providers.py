"""Where a model's decoder layers are while nobody works on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from barber.memory import return_matrices
from barber.models.decoder import DecoderView, DenseWeights, Weight, check_finite


class LayerProvider(Protocol):
    """Lends the decoder layers of a model, one at a time."""

    device: torch.device

    def open(self, index: int) -> None:
        """Let the layer's module be on the device, with its dense weights where it was away."""

    def close(self, index: int) -> None:
        """The layer's module is not needed for now."""

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        """Dense weights of a layer, name -> (out, in), to be read only."""

    def forget(self, index: int, names: Iterable[str]) -> None:
        """The dense values of these weights of an open layer are not needed before it is opened again."""

    def restore(self) -> None:
        """Let every layer be dense again, as far as it is in memory."""


class ResidentProvider:
    """A model that is in memory with all its layers. Its weights are dense when this is made, and these are kept."""

    def __init__(self, view: DecoderView) -> None:
        self.view, self.weights, self.device = view, DenseWeights(view), view.device

    def open(self, index: int) -> None:
        """It always is."""

    def close(self, index: int) -> None:
        """It stays."""

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        return {weight.name: self.weights[index, weight.name] for weight in weights}

    def forget(self, index: int, names: Iterable[str]) -> None:
        """They are needed to be restored."""

    def restore(self) -> None:
        self.weights.restore()


class LayerReader(Protocol):
    """Where the layers of a model can be had at any time, dense."""

    @property
    def view(self) -> DecoderView:
        """The structure of the model."""

    def open(self, index: int) -> None:
        """Put the dense weights of a layer onto the device, unless it has weights there."""

    def close(self, index: int) -> None:
        """Free the weights of a layer."""

    def dense(self, index: int) -> Mapping[str, Tensor]:
        """Name within the layer -> dense weight (out, in) on the device, not shared with the model."""


class LayerwiseProvider:
    """A model of which no layer is in memory but the one that is open."""

    def __init__(self, reader: LayerReader, device: torch.device) -> None:
        self.reader, self.device = reader, device
        self._dense: dict[int, dict[str, Tensor]] = {}  # of open layers, as far as not forgotten
        self._checked: set[int] = set()
        return_matrices()

    def open(self, index: int) -> None:
        if index in self._dense:
            return
        self.reader.open(index)
        layer = self.reader.view.layers[index]
        if index not in self._checked:
            check_finite(layer.module, f"layers.{index}.")
            self._checked.add(index)
        self._dense[index] = {weight.name: weight.view for weight in layer.weights}

    def close(self, index: int) -> None:
        self._dense.pop(index, None)
        self.reader.close(index)

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        held: Mapping[str, Tensor] = self._dense.get(index, {})
        if not all(weight.name in held for weight in weights):
            held = self.reader.dense(index)
        return {weight.name: held[weight.name] for weight in weights}

    def forget(self, index: int, names: Iterable[str]) -> None:
        for name in names:
            del self._dense[index][name]

    def restore(self) -> None:
        for layer in self.reader.view.layers:
            self.close(layer.index)
