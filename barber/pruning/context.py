"""The context of a run: model, devices, memory and processes. It changes results only by rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from barber.config import PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.events import Event
from barber.models.decoder import DecoderView
from barber.models.providers import LayerProvider, ResidentProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.activations import ActivationStream
from barber.pruning.distributed import Ranks
from barber.pruning.layer_states import LayerStates, MemoryStates
from barber.pruning.refit import BATCH
from barber.pruning.validation import split_sequences

CALIBRATION_BATCH_TOKENS = 4096  # tokens of one forward pass: enough to use a processor fully


@dataclass(frozen=True)
class PruningContext:
    """The context of a run.

    Attributes:
        view: the model's structure.
        provider: gives access to the model's layers.
        store: keeps activations.
        ranks: the processes that share the sequences.
        batch: sequences of one forward pass at most; None for CALIBRATION_BATCH_TOKENS tokens.
        record_bytes: memory for forward records that are kept from the initial mask to the rebuild, to save a pass.
        compute: the dtype of matrix products, None for that of the weights.
        states: keeps masks and values of finished layers.
        name: of the model, for the run's first event.
        resumed: the events so far of a run that is resumed; its finished layers are in `states`.
    """

    view: DecoderView
    provider: LayerProvider
    store: ActivationStore
    ranks: Ranks = field(default_factory=Ranks)
    batch: int | None = None
    record_bytes: int = 2**30
    compute: torch.dtype | None = None
    states: LayerStates = field(default_factory=MemoryStates)
    name: str = ""
    resumed: Sequence[Event] = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> PruningContext:
        """For a model with all layers in memory, on one device. Raises UserError if it is not a decoder."""
        view = DecoderView(model)
        return cls(view, ResidentProvider(view), ActivationStore(view.device), name=type(model).__name__)

    def batch_of(self, seqlen: int, config: PruneConfig) -> int:
        """Sequences of a forward pass.

        A step of the refit uses few sequences, which limits its batches. Squared gradients are by sequence, and the
        tokens of an expert do not say which sequence they are of, so each is a batch of its own.
        """
        size = self.batch or max(1, CALIBRATION_BATCH_TOKENS // seqlen)
        if self.view.has_experts and config.needs_gradients:
            size = 1
        return min(size, max(1, BATCH // self.ranks.world)) if config.reconstruct else size

    def feed(self, calibration: CalibrationSet, config: PruneConfig) -> ActivationStream:
        """A stream at the first layer with this rank's calibration sequences, in train and validation batches."""
        samples, seqlen = calibration.tokens.shape
        size = self.batch_of(seqlen, config)
        modules = [layer.module for layer in self.view.layers]
        stream = ActivationStream(self.view.model, modules, self.store, self.provider.open, self.compute)
        train, validation = split_sequences(samples, config)
        parts = [(train, False), (validation, True)] if config.uses_validation else [(train, False)]
        for sequences, validates in parts:
            for rows in calibration.tokens[self.ranks.share(sequences)].split(size):
                stream.feed(rows, validates)
        return stream
