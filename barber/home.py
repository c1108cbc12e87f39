"""Where a model's decoder layers are while nobody works on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from barber.memory import return_matrices
from barber.model import DecoderView, DenseWeights, Weight, check_finite

if TYPE_CHECKING:
    from barber.checkpoint import Streamed


class Home(Protocol):
    """Lends the decoder layers of a model, one at a time."""

    device: torch.device

    def open(self, index: int) -> None:
        """Let the layer's module be on the device, with its dense weights where it was away."""

    def close(self, index: int) -> None:
        """The layer's module is not needed for now."""

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        """Dense weights of a layer, name -> (out, in), to be read only."""

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

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        return {weight.name: self.weights[index, weight.name] for weight in weights}

    def restore(self) -> None:
        self.weights.restore()


class OnDisk:
    """A model that is read layer by layer from its checkpoint; the layer that is open is the only one in memory."""

    def __init__(self, streamed: Streamed) -> None:
        self.streamed, self.device = streamed, streamed.checkpoint.device
        self._checked: set[int] = set()
        return_matrices()

    def open(self, index: int) -> None:
        self.streamed.open(index)
        if index not in self._checked:
            check_finite(self.streamed.view.layers[index].module, f"layers.{index}.")
            self._checked.add(index)

    def close(self, index: int) -> None:
        self.streamed.close(index)

    def dense(self, index: int, weights: Sequence[Weight]) -> dict[str, Tensor]:
        found = self.streamed.dense(index)
        return {weight.name: found[weight.name] for weight in weights}

    def restore(self) -> None:
        for layer in self.streamed.view.layers:
            self.streamed.close(layer.index)
