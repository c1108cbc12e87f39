"""Put a model into the state that a recorded run gave it, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from barber.errors import UserError
from barber.events import Stage
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.inspection import inspect
from barber.models.loading import LoadedModel
from barber.models.providers import ResidentProvider
from barber.runs.directory import RunDirectory
from barber.runs.masks_file import StageMasks, by_layer


@contextmanager
def at_stage(loaded: LoadedModel, run: RunDirectory, stage: str) -> Iterator[LoadedModel]:
    """The model with the weights of `stage` ("dense", "initial", "rebuilt") of a run inside, its dense weights after.

    Raises UserError if the run has no such stage or was made of another model.
    """
    if stage == Stage.DENSE:
        yield loaded
        return
    view = DecoderView(loaded.model)
    if view.has_experts:
        inspect(view, ResidentProvider(view))  # finds how their weights are stored
    shapes = by_layer({(m["layer"], m["name"]): m["shape"] for m in run.config["modules"]})
    if loaded.name != run.config["model"] or not fits(view, shapes):
        raise UserError(f"The run in {run.path} was made of another model ({run.config['model']}): load that model.")
    dense = DenseWeights(view)
    try:
        _apply(view, dense, run, stage)
        yield loaded
    finally:
        dense.restore()


def _apply(view: DecoderView, dense: DenseWeights, run: RunDirectory, stage: str) -> None:
    for layer in view.layers:
        masks = run.masks(layer.index, stage)
        if len(masks) < len(layer.weights):
            raise UserError(f"The run in {run.path} has no stage {stage!r}: it had no rebuild, or was stopped before.")
        layer.assign({w.name: dense.of(layer.index, w) for w in layer.weights}, masks, run.weights(layer.index, stage))


def fits(view: DecoderView, shapes: Mapping[int, Mapping[str, list[int]]]) -> bool:
    """Whether a model has weights of these shapes, layer -> name -> [out, in]; its other weights are left dense."""
    own = {(layer.index, weight.name): list(weight.view.shape) for layer in view.layers for weight in layer.weights}
    wanted = {(layer, name): shape for layer, names in shapes.items() for name, shape in names.items()}
    if wanted.keys() < own.keys():
        view.leave_dense(own.keys() - wanted.keys())
    return wanted.items() <= own.items()


def check_model(setting: str, model: str, masks: StageMasks, found: str) -> None:
    """UserError unless a model has the weights that the masks were made for.

    setting: how the model was loaded, for the message. found: the hash of its prunable weights.
    """
    if masks.model_hash not in ("", found):
        raise UserError(
            f"{model} {setting} does not have the weights that the masks in {masks.source} were made for, those of "
            f"{masks.model} in {masks.dtype}: give that model, or --allow_other to apply them to this one all the same."
        )
