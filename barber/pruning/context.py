"""How a run is carried out. Nothing here changes what it computes, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from barber.config import PruneConfig
from barber.data.token_sets import CalibrationSet
from barber.models.decoder import DecoderView
from barber.models.providers import LayerProvider
from barber.pruning.activation_store import ActivationStore
from barber.pruning.activations import ActivationStream
from barber.pruning.distributed import Ranks
from barber.pruning.problem import split_sequences
from barber.pruning.refit import BATCH

CALIBRATION_BATCH_TOKENS = 4096  # of one forward pass: enough to keep a processor busy


@dataclass(frozen=True)
class PruningContext:
    """The means of a run.

    provider: lends the model's layers. place: where activations wait. ranks: the processes that share the sequences.
    batch: sequences of one forward pass at most; None for CALIBRATION_BATCH_TOKENS tokens. record_bytes: of dense
    forward passes that are kept until masks are known, rather than made again. compute: the dtype of matrix products,
    None for that of the weights.
    """

    view: DecoderView
    provider: LayerProvider
    place: ActivationStore
    ranks: Ranks = field(default_factory=Ranks)
    batch: int | None = None
    record_bytes: int = 2**30
    compute: torch.dtype | None = None

    def batch_of(self, seqlen: int, config: PruneConfig) -> int:
        """Sequences of a forward pass."""
        size = self.batch or max(1, CALIBRATION_BATCH_TOKENS // seqlen)
        return min(size, max(1, BATCH // self.ranks.world)) if config.reconstruct else size

    def feed(self, calibration: CalibrationSet, config: PruneConfig) -> ActivationStream:
        """This rank's calibration sequences in front of the first layer.

        A batch teaches or judges as a whole. A re-fit takes steps of a few sequences, so its batches have no more.
        """
        samples, seqlen = calibration.tokens.shape
        size = self.batch_of(seqlen, config)
        stream = ActivationStream(
            self.view.model, [layer.module for layer in self.view.layers], self.place, self.provider.open, self.compute
        )
        teaching, judging = split_sequences(samples, config)
        parts = [(teaching, False), (judging, True)] if config.uses_validation else [(teaching, False)]
        for sequences, judges in parts:
            for rows in calibration.tokens[self.ranks.share(sequences)].split(size):
                stream.feed(rows, judges)
        return stream
