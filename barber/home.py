"""Where a model's decoder layers are while nobody works on them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from barber.model import DecoderView, DenseWeights, Layer


class Home(Protocol):
    """Lends the decoder layers of a model, one at a time."""

    device: torch.device

    def open(self, index: int) -> None:
        """Let the layer's module be on the device, with its dense weights where it was away."""

    def close(self, index: int) -> None:
        """The layer's module is not needed for now."""

    def dense(self, layer: Layer) -> dict[str, Tensor]:
        """The dense weights of an open layer, name -> (out, in), to be read only."""

    def restore(self) -> None:
        """Let every layer be dense again, as far as it is in memory."""


class Resident:
    """A model that is in memory with all its layers, and a copy of their dense weights."""

    def __init__(self, view: DecoderView, weights: DenseWeights | None = None) -> None:
        self.view, self.weights, self.device = view, weights or DenseWeights(view), view.device

    def open(self, index: int) -> None:
        """It always is."""

    def close(self, index: int) -> None:
        """It stays."""

    def dense(self, layer: Layer) -> dict[str, Tensor]:
        return {weight.name: self.weights[layer.index, weight.name] for weight in layer.weights}

    def restore(self) -> None:
        self.weights.restore()
