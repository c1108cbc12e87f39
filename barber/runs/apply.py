"""Put a model into the state that a recorded run gave it, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from barber.errors import UserError
from barber.events import Stage
from barber.models.decoder import DecoderView, DenseWeights
from barber.models.inspection import inspect
from barber.models.loading import LoadedModel
from barber.models.providers import ResidentProvider
from barber.runs.directory import RunDirectory


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
    recorded = {(module["layer"], module["name"]) for module in run.config["modules"]}
    if recorded <= (own := {(layer.index, weight.name) for layer in view.layers for weight in layer.weights}):
        view.leave_dense(own - recorded)
    if loaded.name != run.config["model"] or _sorted([module.to_dict() for module in view.describe()]) != _sorted(
        run.config["modules"]
    ):
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


def _sorted(modules: list[dict]) -> list[dict]:
    """A run has them in the order in which they are called, which a view does not know until its model has run."""
    return sorted(modules, key=lambda module: (module["layer"], module["name"]))
