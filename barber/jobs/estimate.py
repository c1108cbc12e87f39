"""Estimate the device memory, host memory and disk space of a run before it starts.

They are computed from the sizes of layers and activations; benchmarks/memory.py --settings compares the estimate with
runs. See costs.py for the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from barber.config import PruneConfig
from barber.registry import INITIAL_MASKS

Shape = tuple[int, int]  # (out, in) of a weight

KEPT = 4  # stored activations of all sequences: hidden states, a sub-block's inputs, targets and outputs
WORK = 4  # fp32 tensors the size of a sub-block's weights: squared gradients or saliency, sorted values, masks
REFIT = 5  # additional ones for a refit: weights, two moments, gradients of the step and of the batch
GRAMS = 3  # (in, in) fp32 matrices that "auto" keeps in memory at once


@dataclass(frozen=True)
class Model:
    """The sizes of a model that the estimate depends on.

    Attributes:
        layers: number of decoder layers.
        hidden: size of the hidden states.
        layer_parameters: prunable weights of the largest layer.
        block_parameters: prunable weights of the largest sub-block.
        width: largest number of inputs of a weight matrix.
        spread: largest sum of the input and output sizes of the linears of a sub-block, per token.
        blocks: shapes of the prunable weights of every sub-block, in the order of the model.
        other_bytes: bytes of the parameters that are not prunable weights of the layers.
        element: bytes of one number in the dtype of the model.
        grams: numbers in the gram matrices of the experts of the largest layer, each of which has inputs of its own.
    """

    layers: int
    hidden: int
    layer_parameters: int
    block_parameters: int
    width: int
    spread: int
    blocks: tuple[tuple[Shape, ...], ...]
    other_bytes: int
    element: int
    grams: int = 0


@dataclass(frozen=True)
class Needs:
    """Estimated memory of a run.

    Attributes:
        weights: bytes of the weights that are in memory at once.
        activations: bytes of stored activations.
        work: bytes of temporary tensors.
    """

    weights: int
    activations: int
    work: int

    @property
    def least(self) -> int:
        """Bytes without stored activations."""
        return self.weights + self.work


def estimate(
    model: Model, config: PruneConfig, samples: int, seqlen: int, batch: int, whole: bool, ranks: int = 1
) -> Needs:
    """Estimate the memory of one process of a run.

    batch: sequences of a forward pass. whole: whether all layers are in memory, instead of one. ranks: number of
    processes that share the calibration sequences.
    """
    tokens = samples * seqlen / ranks
    parameters = 2 * model.layers * model.layer_parameters if whole else model.layer_parameters + model.block_parameters
    copies = WORK + REFIT * config.reconstruct
    method = INITIAL_MASKS.get(config.method)
    matrices = max(method.hessians if method else 0, GRAMS if config.auto else 0)
    hessian = 4 * (matrices * model.width**2 + (model.grams if matrices else 0))
    return Needs(
        weights=model.other_bytes + parameters * model.element,  # dense weights, and the new values of rebuilt layers
        activations=int(KEPT * tokens * model.hidden * model.element),
        work=copies * 4 * model.block_parameters + 3 * batch * seqlen * model.spread * model.element + hessian,
    )
