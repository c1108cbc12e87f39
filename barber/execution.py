"""How a run is carried out. Nothing here changes what it computes, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from barber.calibration import CalibrationSet
from barber.config import PruneConfig
from barber.home import Home
from barber.model import DecoderView
from barber.place import Place
from barber.problem import hold_out
from barber.ranks import Ranks
from barber.reconstruct import BATCH
from barber.stream import Stream

BATCH_TOKENS = 4096  # of one forward pass: enough to keep a processor busy


@dataclass(frozen=True)
class Execution:
    """The means of a run.

    home: lends the model's layers. place: where activations wait. ranks: the processes that share the sequences.
    batch: sequences of one forward pass at most; None for as many as have BATCH_TOKENS. tape_bytes: of dense
    forward passes that are kept until masks are known, rather than made again. compute: the dtype of matrix products,
    None for that of the weights.
    """

    view: DecoderView
    home: Home
    place: Place
    ranks: Ranks = field(default_factory=Ranks)
    batch: int | None = None
    tape_bytes: int = 2**30
    compute: torch.dtype | None = None

    def batch_of(self, seqlen: int, config: PruneConfig) -> int:
        """Sequences of a forward pass."""
        size = self.batch or max(1, BATCH_TOKENS // seqlen)
        return min(size, max(1, BATCH // self.ranks.world)) if config.reconstruct else size

    def feed(self, calibration: CalibrationSet, config: PruneConfig) -> Stream:
        """This rank's calibration sequences in front of the first layer.

        A batch teaches or judges as a whole. A re-fit takes steps of a few sequences, so its batches have no more.
        """
        samples, seqlen = calibration.tokens.shape
        size = self.batch_of(seqlen, config)
        stream = Stream(
            self.view.model, [layer.module for layer in self.view.layers], self.place, self.home.open, self.compute
        )
        teaching, judging = hold_out(samples, config)
        parts = [(teaching, False), (judging, True)] if config.holds_out else [(teaching, False)]
        for sequences, judges in parts:
            for rows in calibration.tokens[self.ranks.share(sequences)].split(size):
                stream.feed(rows, judges)
        return stream
