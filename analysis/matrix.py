"""One weight matrix of a run: what its masks keep, in blocks, rows, columns, heads, n:m groups and single weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from barber.events import Fate, Stage
from barber.runs.directory import RunDirectory

CELLS = 128  # blocks in a row or column of the overview at most
WINDOW = 256  # rows or columns of a window at most
PATTERN_WIDTH = 16  # the largest m of n:m whose patterns are counted
OTHER = "other"
_PORTION = 2**22  # weights that are unpacked at a time
_FATES = list(Fate)
_FATE = np.array(  # initial bit * 2 + rebuilt bit -> index in Fate
    [_FATES.index(fate) for fate in (Fate.KEPT, Fate.CUT, Fate.GROWN, Fate.PRUNED)], dtype=np.uint8
)


@dataclass(frozen=True)
class MaskPair:
    """The initial and the rebuilt mask of one weight matrix, packed (see packed_masks.pack), True = pruned.

    Attributes:
        initial, rebuilt: uint8, eight weights a byte; equal where the run has no rebuilt mask.
        shape: (out, in).
    """

    initial: np.ndarray
    rebuilt: np.ndarray
    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Both masks of some rows: bool (stop - start, in)."""
        return _unpacked(self.initial, self.shape, start, stop), _unpacked(self.rebuilt, self.shape, start, stop)

    def portions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Both masks of all rows, some rows at a time."""
        step = max(1, _PORTION // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))


def _unpacked(bits: np.ndarray, shape: tuple[int, int], start: int, stop: int) -> np.ndarray:
    first, last = start * shape[1], stop * shape[1]
    return np.unpackbits(bits[first // 8 : (last + 7) // 8])[first % 8 :][: last - first].reshape(-1, shape[1]) != 0


def read(run: RunDirectory, layer: int, name: str) -> MaskPair | None:
    """The masks of one matrix; None where the run has no initial mask of it. Reads no other matrix."""
    initial = run.packed_mask(layer, Stage.INITIAL, name)
    rebuilt = run.packed_mask(layer, Stage.REBUILT, name) or initial
    if not initial or not rebuilt:
        return None
    rows, columns = initial[1]
    return MaskPair(initial[0].numpy(), rebuilt[0].numpy(), (rows, columns))


class Window(NamedTuple):
    """A part of a matrix.

    Attributes:
        row, column: of its first weight.
        fates: uint8 (rows, columns), each weight as the index of its fate in Fate.
    """

    row: int
    column: int
    fates: np.ndarray


def window(masks: MaskPair, row: int, column: int, size: int) -> Window:
    """The window of at most `size` rows and columns that begins at a weight, or as near to it as the matrix allows."""
    size = max(1, min(size, WINDOW))
    row, column = (max(0, min(at, end - size)) for at, end in zip((row, column), masks.shape, strict=True))
    initial, rebuilt = masks.rows(row, min(row + size, masks.shape[0]))
    part = slice(column, column + size)
    return Window(row, column, _FATE[2 * initial[:, part] + rebuilt[:, part]])


def fate_names(window: Window) -> list[list[str]]:
    """The fate of each weight of a window in words."""
    return np.array([str(fate) for fate in _FATES], dtype=object)[window.fates].tolist()


def changed_weights(window: Window) -> pd.DataFrame:
    """The grown and the cut weights of a window: row and column in the matrix, and the fate."""
    rows, columns = np.nonzero(window.fates >= _FATES.index(Fate.GROWN))
    names = [str(_FATES[index]) for index in window.fates[rows, columns]]
    return pd.DataFrame({"row": rows + window.row, "column": columns + window.column, "fate": names})


@dataclass(frozen=True)
class Overview:
    """How much a matrix keeps, and how much of its mask the rebuild changed. Shares are from 0 to 1.

    Attributes:
        counts: fate -> number of weights.
        block: (rows, columns) of a block; the last ones may be smaller.
        kept, changed: (blocks of rows, blocks of columns), the share that the rebuilt mask keeps, and the share of
            changed mask bits.
        rows, columns: one row per row or column of the matrix, with the shares "initial" and "rebuilt" that the masks
            keep.
    """

    counts: dict[str, int]
    block: tuple[int, int]
    kept: np.ndarray
    changed: np.ndarray
    rows: pd.DataFrame
    columns: pd.DataFrame


def overview(masks: MaskPair) -> Overview:
    """The whole matrix, with at most CELLS blocks in a row and a column."""
    height, width = masks.shape
    block = (-(-height // CELLS), -(-width // CELLS))
    left = np.arange(0, width, block[1])
    in_blocks: dict[str, list[np.ndarray]] = {"initial": [], "rebuilt": [], "changed": []}
    in_columns = {str(stage): np.zeros(width, dtype=np.int64) for stage in (Stage.INITIAL, Stage.REBUILT)}
    for initial, rebuilt in masks.portions():
        for name, bits in (("initial", initial), ("rebuilt", rebuilt), ("changed", initial != rebuilt)):
            in_blocks[name].append(np.add.reduceat(bits.view(np.uint8), left, axis=1, dtype=np.int32))
            if name in in_columns:
                in_columns[name] += bits.sum(axis=0, dtype=np.int32)
    sums = {name: np.concatenate(parts) for name, parts in in_blocks.items()}  # (rows, blocks of columns)
    top = np.arange(0, height, block[0])
    sizes = np.outer(np.diff([*top, height]), np.diff([*left, width]))
    blocks = {name: np.add.reduceat(part, top, axis=0, dtype=np.int64) / sizes for name, part in sums.items()}
    zeros, changed = {stage: int(in_columns[stage].sum()) for stage in in_columns}, int(sums["changed"].sum())
    grown = (changed + zeros["initial"] - zeros["rebuilt"]) // 2
    cut = changed - grown
    counts = {
        Fate.KEPT: height * width - zeros["initial"] - cut,
        Fate.PRUNED: zeros["initial"] - grown,
        Fate.GROWN: grown,
        Fate.CUT: cut,
    }
    return Overview(
        {str(fate): count for fate, count in counts.items()},
        block,
        1 - blocks["rebuilt"],
        blocks["changed"],
        pd.DataFrame({stage: 1 - sums[stage].sum(axis=1) / width for stage in in_columns}),
        pd.DataFrame({stage: 1 - in_columns[stage] / height for stage in in_columns}),
    )


def coarse(overview: Overview, share: str, most: int = 16) -> pd.DataFrame:
    """The share "kept" or "changed" in at most `most` blocks in a row and a column, to read as a table, in percent.

    Each is the mean of the blocks of the overview in it. The first column and the titles say where each
    block begins.
    """
    shares = getattr(overview, share)
    step = [-(-count // most) for count in shares.shape]
    means = pd.DataFrame(shares).groupby(np.arange(shares.shape[0]) // step[0]).mean()
    means = means.T.groupby(np.arange(shares.shape[1]) // step[1]).mean().T
    means.columns = [f"from column {index * step[1] * overview.block[1]}" for index in range(means.shape[1])]
    means.insert(0, "from row", [index * step[0] * overview.block[0] for index in range(means.shape[0])])
    return means.assign(**{name: (100 * means[name]).round(3) for name in means.columns[1:]})


def averaged(shares: pd.DataFrame, most: int = CELLS) -> pd.DataFrame:
    """Means of at most `most` equal runs of rows of a frame, with "first" and "last", the ends of each run."""
    step = -(-len(shares) // most)
    first = np.arange(0, len(shares), step)
    means = shares.groupby(np.arange(len(shares)) // step).mean()
    return means.assign(first=first, last=np.minimum(first + step, len(shares)) - 1)


class Heads(NamedTuple):
    """The attention heads of a matrix.

    Attributes:
        axis: "rows" if a head is some rows (queries, keys, values), "columns" if it is some columns (the output).
        width: rows or columns of one head.
        count: number of heads.
    """

    axis: str
    width: int
    count: int


def heads(model_config: Mapping, modules: pd.DataFrame, layer: int, name: str) -> Heads | None:
    """The heads of an attention matrix by the model's recorded config, None where its shape does not fit them.

    model_config: of environment.json, {} if there is none. modules: as in frames.modules, in the order of the calls,
    with the shape (out, in) of each: the last matrix of an attention is the one that reads the heads.
    """
    config = model_config.get("text_config") or model_config
    count = config.get("num_attention_heads") or config.get("n_head")
    hidden = config.get("hidden_size") or config.get("n_embd")
    width = config.get("head_dim") or (hidden // count if count and hidden else None)
    block = modules[(modules["layer"] == layer) & (modules["kind"] == "attention")]
    if not count or not width or name not in set(block["name"]):
        return None
    groups = config.get("num_key_value_heads") or count
    out, inputs = block.set_index("name")["shape"][name]
    if name == block["name"].iloc[-1]:
        return Heads("columns", width, count) if inputs == count * width else None
    fitting = [number for number in (count, groups, count + 2 * groups) if out == number * width]
    return Heads("rows", width, fitting[0]) if fitting else None


def by_head(overview: Overview, heads: Heads) -> pd.DataFrame:
    """The shares that the masks keep of each head, one row per head."""
    shares = getattr(overview, heads.axis)
    return shares.groupby(np.arange(len(shares)) // heads.width).mean()


def transitions(masks: MaskPair, m: int) -> pd.DataFrame:
    """How often each pattern of m consecutive inputs became each other one: before, after, groups; most often first.

    A pattern is a string like "0110", 1 for a kept weight. Groups begin at every m-th input; a shorter last one is left
    out. m: from 2 to PATTERN_WIDTH.
    """
    width = masks.shape[1] // m * m
    found: dict[int, int] = {}
    for initial, rebuilt in masks.portions():
        before, after = (_codes(mask[:, :width], m) for mask in (initial, rebuilt))
        same = before == after
        counts = np.bincount(before[same])
        for code in np.flatnonzero(counts).tolist():
            found[code << 16 | code] = found.get(code << 16 | code, 0) + int(counts[code])
        pairs, counts = np.unique(before[~same] << 16 | after[~same], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            found[pair] = found.get(pair, 0) + count
    rows = [(_pattern(pair >> 16, m), _pattern(pair & 0xFFFF, m), count) for pair, count in found.items()]
    frame = pd.DataFrame(rows, columns=["before", "after", "groups"])
    return frame.sort_values(["groups", "before", "after"], ascending=[False, True, True], ignore_index=True)


def _codes(mask: np.ndarray, m: int) -> np.ndarray:
    """The pattern of each group as a number, uint32, its first weight in the highest of 16 bits."""
    groups = mask.reshape(-1, m)
    codes = np.zeros(len(groups), dtype=np.uint32)
    for place in range(m):
        codes |= groups[:, place].astype(np.uint32) << (15 - place)
    return codes


def _pattern(code: int, m: int) -> str:
    return "".join("0" if code >> (15 - place) & 1 else "1" for place in range(m))


def folded(transitions: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The transition matrix, before x after, of all patterns, or of the most frequent ones and OTHER for the rest."""
    totals = (
        transitions.groupby("before")["groups"].sum().add(transitions.groupby("after")["groups"].sum(), fill_value=0)
    )
    frequent = totals.sort_values(ascending=False, kind="stable").index
    named = sorted(frequent if len(frequent) <= most else frequent[: most - 1])
    order = named if len(frequent) <= most else [*named, OTHER]
    frame = transitions.assign(
        **{side: transitions[side].where(transitions[side].isin(named), OTHER) for side in ("before", "after")}
    )
    table = frame.pivot_table(index="before", columns="after", values="groups", aggfunc="sum", fill_value=0)
    return table.reindex(index=order, columns=order, fill_value=0).astype(int)
