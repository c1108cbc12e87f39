"""One weight, dense and 2:4: its compressed form, the size of its files, and the time of its products in torch.

Used by benchmarks/inference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.sparse import SparseSemiStructuredTensorCUTLASS, to_sparse_semi_structured
from torch.utils.benchmark import Timer

from barber.config import Granularity, Sparsity
from barber.errors import UserError, first_line
from barber.kernels.masks import check_pattern, initial_mask
from barber.kernels.scores import magnitude

PATTERN = Sparsity.parse("2:4")
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.int8)
KERNELS = {"cuSPARSELt": to_sparse_semi_structured, "CUTLASS": SparseSemiStructuredTensorCUTLASS.from_dense}
MASK_ROWS = 1024  # rows masked at a time: sorting needs many times the memory of the weight
CHECKED_ROWS = 256  # rows of a 2:4 product that are compared with the dense one
TOLERANCE = 0.01  # relative error of that product; rounding of half precision stays far below


def check_width(width: int) -> None:
    """UserError unless a row of so many inputs is made of whole groups of four."""
    if not width or width % 4:
        raise UserError(f"A weight with {width} inputs cannot be 2:4: give a width that is a multiple of 4.")


def compress_2_4(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The kept values (out, in / 2) of a weight (out, in), and their places, uint8 (ceil(out * in / 8),).

    mask: bool (out, in), True = pruned. A place is two bits, 0 to 3 within its group of four inputs, row by row, the
    first in the lowest bits. UserError unless every four consecutive inputs hold exactly two zeros.
    """
    check_width(weight.shape[1])
    check_pattern(mask, PATTERN, "the weight")
    four = torch.arange(4, dtype=torch.uint8, device=weight.device)
    places = four.repeat(weight.shape[1] // 4).expand(mask.shape)[~mask]
    packed = pad(places, (0, -len(places) % 4)).view(-1, 4) << (2 * four)
    return weight[~mask].view(len(weight), -1), packed.sum(1, dtype=torch.uint8)


def expand_2_4(values: Tensor, indices: Tensor) -> Tensor:
    """The inverse of `compress_2_4`: the weight (out, in), with zeros where it was pruned."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=indices.device)
    places = (indices.unsqueeze(1) >> shifts & 3).flatten()[: values.numel()]
    pairs = values.unflatten(1, (-1, 2))
    dense = values.new_zeros(*pairs.shape[:2], 4)
    return dense.scatter_(2, places.view(pairs.shape).long(), pairs).flatten(1)


def random_matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, columns), normal, or uniform where the dtype is int8; the same each time."""
    generator = torch.Generator(device).manual_seed(0)
    if dtype == torch.int8:
        return torch.randint(-127, 128, (rows, columns), generator=generator, dtype=dtype, device=device)
    return torch.randn(rows, columns, generator=generator, dtype=dtype, device=device)


def mask_2_4(weight: Tensor) -> Tensor:
    """The 2:4 magnitude mask (out, in), True = pruned."""
    parts = weight.split(MASK_ROWS)
    return torch.cat([initial_mask(magnitude(part), PATTERN, Granularity.LAYER) for part in parts])


def save(tensors: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    """The bytes of a safetensors file of these tensors, and what is read back from it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weight.safetensors"
        save_file(tensors, path)
        return path.stat().st_size, load_file(path)


def measure_sizes(weight: Tensor, mask: Tensor) -> dict[str, int]:
    """Bytes of the files of a weight (out, in): dense, with 2:4 zeros, and compressed.

    What is read back of the compressed file is the masked weight again, value for value.
    """
    masked = weight.masked_fill(mask, 0)
    dense, _ = save({"weight": weight})
    zeros, _ = save({"weight": masked})
    values, indices = compress_2_4(weight, mask)
    compressed, read = save({"values": values, "indices": indices})
    assert torch.equal(expand_2_4(**read), masked.cpu()), f"{tuple(weight.shape)} was not read as it was written"
    return {"dense_bytes": dense, "zeros_bytes": zeros, "compressed_bytes": compressed}


def attempt(operation: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """The result of the operation, or None and the reason why torch refused it."""
    try:
        return operation(*arguments), ""
    except RuntimeError as error:
        return None, first_line(error)


def find_kernels(dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """The name in KERNELS of what converts and multiplies 2:4 weights here, or "" and why nothing does."""
    if device.type != "cuda":
        return "", "they need a CUDA device of compute capability 8.0 or more"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return "", "they need compute capability 8.0 or more, and this is {}.{}".format(*capability)
    if dtype not in KERNEL_DTYPES:
        return "", "they take float16, bfloat16 and int8"
    small, refusals = random_matrix(256, 256, dtype, device), []
    masked = small.masked_fill(mask_2_4(small), 0)
    for name, convert in KERNELS.items():
        sparse, refused = attempt(convert, masked)
        if not refused:
            _, refused = attempt(linear, small, sparse)
        if not refused:
            return name, ""
        refusals.append(f"{name}: {refused}")
    return "", "; ".join(refusals)


def packed_size(masked: Tensor, convert: Callable[[Tensor], Tensor]) -> int:
    """Bytes of the file of torch's own packed layout; RuntimeError if that is not the masked weight (out, in)."""
    sparse = convert(masked)
    if not torch.equal(sparse.to_dense(), masked):
        raise RuntimeError("what torch packed is another weight")
    parts = {"packed": sparse.packed, "meta": sparse.meta}
    return save({name: part for name, part in parts.items() if part is not None})[0]


def timed(rows: int, weights: list[Tensor]) -> tuple[float, float]:
    """Median and interquartile range, in milliseconds, of linear() on (rows, in) inputs; synchronised where it is CUDA.

    weights: copies of one weight (out, in) that take turns, so that each has to come from memory.
    """
    like = weights[0]
    names = {
        "inputs": random_matrix(rows, like.shape[1], like.dtype, like.device),
        "turn": cycle(weights),
        "linear": linear,
    }
    measured = Timer("linear(inputs, next(turn))", globals=names).adaptive_autorange()
    return measured.median * 1e3, measured.iqr * 1e3


def timed_2_4(rows: int, weights: list[Tensor], masked: Tensor) -> tuple[float, float]:
    """`timed` of 2:4 weights; RuntimeError if their product is not that of the masked weight (out, in)."""
    if masked.is_floating_point():  # torch has no dense int8 product to compare with
        inputs = random_matrix(rows, masked.shape[1], masked.dtype, masked.device)
        expected = linear(inputs[:CHECKED_ROWS], masked).float()
        off = (linear(inputs, weights[0])[:CHECKED_ROWS].float() - expected).norm() / expected.norm()
        if not off <= TOLERANCE:
            raise RuntimeError(f"the product is off by {off:.1%}, so its time means nothing")
    return timed(rows, weights)


def copies_beyond_cache(weight: Tensor) -> int:
    """How many compressed copies of a weight make twice the GPU's second-level cache; 1 on a CPU."""
    if not weight.is_cuda:
        return 1
    return ceil(2 * torch.cuda.get_device_properties(weight.device).L2_cache_size / (weight.nbytes / 2)) or 1


def measure_speed(
    weight: Tensor, masked: Tensor, convert: Callable[[Tensor], Tensor], sizes: list[int]
) -> Iterator[dict[str, Any]]:
    """For each number of input rows, a dense weight (out, in) against the same one with 2:4 zeros, converted.

    Milliseconds (median), their interquartile range, and dense / 2:4; where torch refuses one of them, why. The 2:4
    side is all that torch does in linear(), its padding of few rows included.
    """
    copies = range(copies_beyond_cache(weight))
    dense = [weight.clone() for _ in copies]
    sparse, unconverted = attempt(lambda: [convert(masked) for _ in copies])
    for rows in sizes:
        times, refused = attempt(timed, rows, dense)
        times_2_4, refused_2_4 = attempt(timed_2_4, rows, sparse, masked) if sparse else (None, unconverted)
        result: dict[str, Any] = {"rows": rows, "copies": len(copies)}
        result |= {"dense_ms_refused": refused, "sparse_ms_refused": refused_2_4}
        result["dense_ms"], result["dense_iqr_ms"] = times or (None, None)
        result["sparse_ms"], result["sparse_iqr_ms"] = times_2_4 or (None, None)
        if times and times_2_4:
            result["ratio"] = times[0] / times_2_4[0]
        yield result
