"""Layer states: masks and values of finished layers, for later stages and for a resumed run."""

from __future__ import annotations

from typing import Protocol

from barber.events import Stage
from barber.models.decoder import State


class LayerStates(Protocol):
    """Stores masks and values of each layer at a stage."""

    def save(self, layer: int, stage: Stage, state: State) -> None:
        """Store masks and values of weights of a layer, in addition to those of its other weights."""

    def load(self, layer: int, stage: Stage) -> State:
        """The stored masks and values of a layer at a stage."""


class MemoryStates:
    """Keeps the tensors in memory, on their device."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, Stage], State] = {}

    def save(self, layer: int, stage: Stage, state: State) -> None:
        masks, values = self._states.setdefault((layer, stage), ({}, {}))
        masks |= state[0]
        values |= state[1]

    def load(self, layer: int, stage: Stage) -> State:
        return self._states[layer, stage]
