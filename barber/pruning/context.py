"""How a run is carried out. Nothing here changes what it computes, but for rounding."""

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

CALIBRATION_BATCH_TOKENS = 4096  # of one forward pass: enough to keep a processor busy


@dataclass(frozen=True)
class PruningContext:
    """The means of a run.

    Attributes:
        view: the model's structure.
        provider: lends the model's layers.
        store: where activations wait.
        ranks: the processes that share the sequences.
        batch: sequences of one forward pass at most; None for CALIBRATION_BATCH_TOKENS tokens.
        record_bytes: of dense forward passes that are kept until masks are known, rather than made again.
        compute: the dtype of matrix products, None for that of the weights.
        states: where masks and values of finished layers are kept.
        name: of the model, for the run's first event.
        resumed: the events of the run so far, if it was begun before; their layers are in `states`.
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
        """For a model that is in memory with all its layers, on one device. Raises UserError if it is no decoder."""
        view = DecoderView(model)
        return cls(view, ResidentProvider(view), ActivationStore(view.device), name=type(model).__name__)

    def batch_of(self, seqlen: int, config: PruneConfig) -> int:
        """Sequences of a forward pass. A refit takes steps of a few sequences, so its batches have no more."""
        size = self.batch or max(1, CALIBRATION_BATCH_TOKENS // seqlen)
        return min(size, max(1, BATCH // self.ranks.world)) if config.reconstruct else size

    def feed(self, calibration: CalibrationSet, config: PruneConfig) -> ActivationStream:
        """This rank's calibration sequences in front of the first layer, in batches of train or of validation ones."""
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
