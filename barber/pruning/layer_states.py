"""Where the masks and values that a run gives its layers are kept until the run, or a later one, needs them again."""

from __future__ import annotations

from typing import Protocol

from barber.events import Stage
from barber.models.decoder import State


class LayerStates(Protocol):
    """Keeps what each layer's weights are at a stage."""

    def save(self, layer: int, stage: Stage, state: State) -> None:
        """Keep the masks and values of some or all weights of a layer, beside those of its others."""

    def load(self, layer: int, stage: Stage) -> State:
        """All that was kept of a layer at a stage."""


class MemoryStates:
    """Keeps them as they are, on their device."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, Stage], State] = {}

    def save(self, layer: int, stage: Stage, state: State) -> None:
        masks, values = self._states.setdefault((layer, stage), ({}, {}))
        masks |= state[0]
        values |= state[1]

    def load(self, layer: int, stage: Stage) -> State:
        return self._states[layer, stage]
