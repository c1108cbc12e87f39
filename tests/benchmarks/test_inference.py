"""The benchmark of 2:4 inference as a process: sizes of real files, and speeds only where they can be measured."""

from __future__ import annotations

import subprocess
import sys
from math import ceil
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from transformers import LlamaConfig

from barber.errors import UserError
from barber.models.decoder import DecoderView
from barber.models.loading import load
from benchmarks.inference import model_shapes, read_shapes, speed_table
from benchmarks.two_four import (
    KERNELS,
    compress_2_4,
    expand_2_4,
    find_kernels,
    mask_2_4,
    measure_speed,
    random_matrix,
    timed_2_4,
)

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]  # what may be kept of four
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks" / "inference.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def file_size(**tensors: torch.Tensor) -> int:
    return len(save(tensors))


@st.composite
def masked_weights(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) with some zeros, and any 2:4 mask of it."""
    out, groups = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    kept = draw(st.lists(st.sampled_from(PAIRS), min_size=out * groups, max_size=out * groups))
    mask = torch.ones(out * groups, 4, dtype=torch.bool).scatter_(1, torch.tensor(kept), False)
    values = torch.randint(-3, 4, (out, 4 * groups), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return values.to(draw(st.sampled_from(DTYPES))), mask.view(out, -1)


@given(masked_weights())
def test_decompression_is_the_inverse_of_compression(case):
    weight, mask = case
    values, indices = compress_2_4(weight, mask)
    assert values.shape == (len(weight), weight.shape[1] // 2)
    assert (indices.dtype, indices.shape) == (torch.uint8, (ceil(weight.numel() / 8),))
    again = expand_2_4(values, indices)
    assert again.dtype == weight.dtype
    assert torch.equal(again, weight.masked_fill(mask, 0))


def test_the_indices_have_the_documented_format():
    weight = torch.arange(1.0, 13.0).view(1, 12)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, [0, 3, 5, 6, 8, 9]] = False
    values, indices = compress_2_4(weight, mask)
    assert values.tolist() == [[1, 4, 6, 7, 9, 10]]
    assert indices.tolist() == [0b10_01_11_00, 0b01_00]


def test_the_compressed_size_is_that_of_torch():
    name = "torch.sparse._semi_structured_conversions"
    torch_packs = pytest.importorskip(name).sparse_semi_structured_from_dense_cutlass
    weight = random_matrix(64, 128, torch.float16, CPU)
    mask = mask_2_4(weight)
    packed, meta = torch_packs(weight.masked_fill(mask, 0))
    values, indices = compress_2_4(weight, mask)
    assert torch.equal(values, packed)
    assert indices.nbytes == meta.nbytes


@pytest.mark.parametrize("width", [6, 8])
def test_weights_without_the_2_4_pattern_are_refused(width):
    mask = torch.arange(width).expand(2, width) < width // 2
    with pytest.raises(UserError, match=r"multiple of 4|does not have 2:4"):
        compress_2_4(torch.ones(2, width), mask)


def test_the_bundled_model_gives_sizes_and_no_speed(tmp_path):
    csv, markdown = tmp_path / "rows.csv", tmp_path / "tables.md"
    made = benchmark("--model", "storyteller", "--device", "cpu", "--csv", str(csv), "--markdown", str(markdown))
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("No speed was measured: ")
    assert made.stdout.count("\n") == 1
    frame, text = pd.read_csv(csv), markdown.read_text("utf-8")
    shapes = [tuple(weight.shape) for weight in DecoderView(load("storyteller").model).describe()]
    assert set(zip(frame["out"], frame["width"], strict=True)) == set(shapes)
    assert (frame["measure"] == "size").all()
    for row in frame.to_dict("records"):
        out, width = row["out"], row["width"]
        half, places = torch.zeros(out, width // 2).half(), torch.zeros(out * width // 8, dtype=torch.uint8)
        assert row["count"] == shapes.count((out, width))
        assert row["dense_bytes"] == row["zeros_bytes"] == file_size(weight=torch.zeros(out, width).half())
        assert row["compressed_bytes"] == file_size(values=half, indices=places)
        assert f"| {out} x {width} | {row['names']} | {row['count']} | {row['dense_bytes']:,} |" in text
    total = (frame["count"] * frame["compressed_bytes"]).sum()
    assert f" {total:,} " in text
    assert made.stdout in text
    assert " ms |" not in text


def test_the_sizes_of_a_given_shape_are_printed():
    made = benchmark("--shape", "64x32,5x12", "--device", "cpu", "--dtype", "int8")
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("No speed was measured: ") == 1
    dense = file_size(weight=torch.zeros(64, 32, dtype=torch.int8))
    compressed = file_size(values=torch.zeros(64, 16, dtype=torch.int8), indices=torch.zeros(256, dtype=torch.uint8))
    row = f"| 64 x 32 | - | 1 | {dense:,} | {dense:,} | {compressed:,} | {compressed / dense:.4f} |"
    assert row in made.stdout
    assert "| 5 x 12 | " in made.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "9b"], "Shape '9b' is unknown: choose 7b, 13b, 70b, or give OUTxIN"),
        (["--shape", "64x30"], "A weight with 30 inputs cannot be 2:4"),
        (["--shape", "64x32", "--batches", "8,0"], "Batch '8,0' cannot be used"),
        (["--shape", "64x32", "--prefill", "16,32"], "is more than one length"),
        (["--model", "no/such/model"], "The shapes of model 'no/such/model' cannot be read"),
    ],
)
def test_a_user_error_is_one_sentence(arguments, message):
    refused = benchmark(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert not refused.stdout


def test_llama_2_has_its_published_shapes():
    weights = {size: sum(s.out * s.width * s.count for s in read_shapes(size)) for size in ("7b", "13b", "70b")}
    assert weights == {"7b": 6_476_005_376, "13b": 12_687_769_600, "70b": 68_451_041_280}
    shapes = {(shape.out, shape.width): (shape.count, shape.names) for shape in read_shapes("70b")}
    assert shapes[1024, 8192] == (160, "k_proj, v_proj")


def test_shapes_need_no_weights(tmp_path):
    LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    shapes = {(shape.out, shape.width): shape.count for shape in model_shapes(str(tmp_path))}
    assert shapes == {(64, 64): 8, (96, 64): 4, (64, 96): 2}


def test_an_error_of_torch_stands_in_place_of_the_time():
    """torch refuses to convert a CPU tensor, so there is a dense time only and no ratio."""
    weight = random_matrix(64, 64, torch.float32, CPU)
    masked = weight.masked_fill(mask_2_4(weight), 0)
    rows = list(measure_speed(weight, masked, KERNELS["CUTLASS"], [1, 16]))
    assert [row["rows"] for row in rows] == [1, 16]
    for row in rows:
        assert row["dense_ms"] > 0
        assert row["sparse_ms"] is None
        assert "ratio" not in row
        shown = speed_table([{"out": 64, "width": 64, "batch": 1} | row])
        assert f"{row['dense_ms']:.4f} | refused: " in shown
        assert "CUDA" in shown
        assert shown.endswith("| - |")


def test_a_wrong_product_has_no_time():
    weight = random_matrix(64, 64, torch.float32, CPU)
    masked = weight.masked_fill(mask_2_4(weight), 0)
    assert timed_2_4(4, [masked], masked)[0] > 0
    with pytest.raises(RuntimeError, match="its time means nothing"):
        timed_2_4(4, [weight], masked)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_on_cuda_speed_is_measured_or_reported_as_missing(tmp_path, dtype):
    csv = tmp_path / "rows.csv"
    made = benchmark(
        *("--shape", "256x512,512x256", "--dtype", dtype, "--device", "cuda"),
        *("--batches", "1,8", "--prefill", "16", "--csv", str(csv)),
    )
    assert made.returncode == 0, made.stderr
    frame = pd.read_csv(csv)
    if torch.cuda.get_device_capability() < (8, 0) or dtype == "float32":
        assert "No speed was measured: " in made.stdout
        assert (frame["measure"] == "size").all()
        return
    speeds = frame[frame["measure"] != "size"]
    assert speeds.groupby("measure")["rows"].unique().map(list).to_dict() == {"prefill": [16, 128], "decode": [1, 8]}
    assert len(speeds) == 8
    assert (speeds["dense_ms"] > 0).all()
    assert (speeds["sparse_ms"] > 0).all()
    assert speeds["ratio"].to_numpy() == pytest.approx((speeds["dense_ms"] / speeds["sparse_ms"]).to_numpy())
    sizes = frame[frame["measure"] == "size"]
    assert (sizes["packed_bytes"] < sizes["dense_bytes"]).all()


def test_a_cpu_has_no_kernels():
    name, why = find_kernels(torch.float16, CPU)
    assert not name
    assert "CUDA" in why
