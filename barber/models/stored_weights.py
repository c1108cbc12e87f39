"""The dense values of one weight, read from the files of a model without loading the model."""

from __future__ import annotations

from torch import Tensor

from barber.models.checkpoint_files import Checkpoint
from barber.models.decoder import DecoderView
from barber.models.loading import cache_if_unreachable, explained, find_source


def read_weight(model: str, layer: int, name: str) -> Tensor | None:
    """The weight (out, in) of a layer on the CPU; None where it is no tensor of its own, as the slice of an expert.

    model: as in `load`. name: within the layer. Raises UserError if the model cannot be found or read.
    """
    source = find_source(model, device="cpu")
    with cache_if_unreachable(source.path), explained(model):
        checkpoint = Checkpoint(source)
        layers = DecoderView(checkpoint.skeleton).layers
        found = [weight for one in layers if one.index == layer for weight in one.weights if weight.name == name]
        if not found or found[0].index is not None:
            return None
        parameter = found[0].parameter
        path = next(path for path, own in checkpoint.skeleton.named_parameters() if own is parameter)
        return found[0].oriented(checkpoint.read(key for key, own in checkpoint.names.items() if own == path)[path])
