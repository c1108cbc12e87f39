"""Generated matrices and sparsities, for properties of the tensor functions."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from barber.config import Sparsity

PATTERNS = ["1:2", "2:4", "4:8", "1:4", "3:4", "8:16", "2:3"]
ratios = st.integers(1, 99).map(lambda percent: Sparsity(percent / 100))
sparsities = st.one_of(ratios, st.sampled_from(PATTERNS).map(Sparsity.parse))


@st.composite
def matrices(draw, count: int = 1, m: int = 1):
    """Random (out, in) matrices, one draw in three with many equal values, for ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = draw(st.integers(0, 2)) == 0
    shapes = [(draw(st.integers(1, 9)), m * draw(st.integers(1, 6))) for _ in range(count)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [matrix.round() if coarse else matrix for matrix in made]


@st.composite
def with_nonfinite(draw, matrix: torch.Tensor) -> torch.Tensor:
    """A copy of the matrix with some or all entries NaN or infinite."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    hit = torch.rand(matrix.shape, generator=generator) < share
    values = torch.tensor(draw(st.sampled_from([[torch.nan], [torch.nan, torch.inf], [torch.inf, -torch.inf]])))
    return torch.where(hit, values[torch.randint(len(values), matrix.shape, generator=generator)], matrix)
