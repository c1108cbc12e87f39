"""Layer providers: access to the decoder layers of a model, in memory or by layerwise loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from barber.memory import return_freed_memory
from barber.models.decoder import DecoderView, DenseWeights, Weight, check_finite


class LayerProvider(Protocol):
    """Access to the decoder layers of a model."""

    device: torch.device

    def open(self, index: int) -> None:
        """Load the layer onto the device, with its dense weights, unless it is there."""

    def close(self, index: int) -> None:
        """Free the layer if it can be loaded again."""

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        """Dense weights of a layer, name -> (out, in); do not modify them."""

    def release_dense(self, index: int, names: Iterable[str]) -> None:
        """Free the dense values of these weights of an open layer until it is opened again, if they can be loaded."""

    def restore(self) -> None:
        """Make every layer in memory dense again."""


class ResidentProvider:
    """A model with all layers in memory. Its weights at construction are the dense ones, and stay in memory."""

    def __init__(self, view: DecoderView) -> None:
        self.view, self.weights, self.device = view, DenseWeights(view), view.device

    def open(self, index: int) -> None:
        """No effect: all layers are in memory."""

    def close(self, index: int) -> None:
        """No effect: all layers stay in memory."""

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        return {weight.name: self.weights.of(index, weight) for weight in weights}

    def release_dense(self, index: int, names: Iterable[str]) -> None:
        """No effect: `restore` needs them."""

    def restore(self) -> None:
        self.weights.restore()


class LayerReader(Protocol):
    """Reads the dense layers of a model."""

    @property
    def view(self) -> DecoderView:
        """The structure of the model."""

    def open(self, index: int) -> None:
        """Load the dense weights of a layer onto the device unless it is open."""

    def close(self, index: int) -> None:
        """Free the weights of a layer."""

    def dense(self, index: int) -> Mapping[str, Tensor]:
        """Name within the layer -> dense weight (out, in) on the device, not shared with the model."""


class LayerwiseProvider:
    """A model with only its open layers in memory."""

    def __init__(self, reader: LayerReader, device: torch.device) -> None:
        self.reader, self.device = reader, device
        self._dense: dict[int, dict[str, Tensor]] = {}  # of open layers, without released ones
        self._checked: set[int] = set()
        return_freed_memory()

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

    def release_dense(self, index: int, names: Iterable[str]) -> None:
        for name in names:
            del self._dense[index][name]

    def restore(self) -> None:
        for layer in self.reader.view.layers:
            self.close(layer.index)
