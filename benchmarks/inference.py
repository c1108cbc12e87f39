"""Measure 2:4 sparsity at inference: time per linear layer, in prefill and decode, and size on disk.

python benchmarks/inference.py [--model MODEL | --shape 7b] [--csv FILE] [--markdown FILE]

Weights are random, in the shapes of a real model. Where torch has no 2:4 kernels, the script prints so and measures
only the sizes. See docs/inference.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from barber.bundled import MODEL_DIR, STORYTELLER
from barber.errors import UserError, first_line
from barber.models.decoder import DecoderView
from barber.models.loading import DTYPES, pick_device
from benchmarks import two_four

ALL_DTYPES = {**DTYPES, "int8": torch.int8}
LLAMA2 = {  # LLaMA-2 (arXiv 2307.09288), as in its published configurations
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
SIZE, PREFILL, DECODE = "size", "prefill", "decode"
BYTES = {"dense_bytes": "dense", "zeros_bytes": "with 2:4 zeros", "compressed_bytes": "compressed 2:4"}


@dataclass(frozen=True)
class Shape:
    """The weights (out, width) of a model that have one shape: how many there are, and what they are called."""

    out: int
    width: int
    count: int = 1
    names: str = ""


def config_shapes(config: PreTrainedConfig) -> list[Shape]:
    """The distinct shapes of a model's prunable weights, without reading or making any weight."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names: dict[tuple[int, int], list[str]] = {}
    for weight in DecoderView(model).describe():
        names.setdefault(tuple(weight.shape), []).append(weight.name.rpartition(".")[2])
    return [Shape(*shape, len(named), ", ".join(dict.fromkeys(named))) for shape, named in names.items()]


def model_shapes(name: str) -> list[Shape]:
    """The shapes of a model, named as for barber.models.loading.load."""
    try:
        source = str(MODEL_DIR) if name == STORYTELLER else name
        return config_shapes(AutoConfig.from_pretrained(source, trust_remote_code=False))
    except UserError:
        raise
    except Exception as error:  # a damaged folder can fail anywhere in transformers, and the network in the hub client
        raise UserError(
            f"The shapes of model {name!r} cannot be read ({first_line(error)}): give '{STORYTELLER}', an intact "
            "Hugging Face folder or hub id of a decoder model, or --shape instead."
        ) from error


def read_shapes(text: str) -> list[Shape]:
    """The shapes of a LLaMA-2 model by its size, or those given as OUTxIN with commas between them."""
    if text in LLAMA2:
        return config_shapes(LlamaConfig(**LLAMA2[text]))
    given = [re.fullmatch(r"([1-9]\d{0,6})x(\d{1,7})", part.strip()) for part in text.split(",")]
    if not all(given):
        raise UserError(f"Shape {text!r} is unknown: choose {', '.join(LLAMA2)}, or give OUTxIN like 4096x11008.")
    return [Shape(int(match[1]), int(match[2])) for match in given]


def read_counts(text: str, what: str) -> list[int]:
    """Whole numbers from 1, with commas between them."""
    if not re.fullmatch(r"[1-9]\d{0,6}(,[1-9]\d{0,6})*", text):
        raise UserError(f"{what} {text!r} cannot be used: give whole numbers from 1, with commas between them.")
    return [int(part) for part in text.split(",")]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU"


def measure(
    shapes: list[Shape], dtype: torch.dtype, device: torch.device, kernels: str, cases: list[tuple[str, int, int]]
) -> Iterator[dict]:
    """A row of sizes for each shape and, if kernels names some, one for each case: phase, batch, input rows."""
    for shape in shapes:
        weight = two_four.random_matrix(shape.out, shape.width, dtype, device)
        mask = two_four.mask_2_4(weight)
        sizes = two_four.measure_sizes(weight, mask)
        if kernels:
            masked, convert = weight.masked_fill(mask, 0), two_four.KERNELS[kernels]
            sizes["packed_bytes"], sizes["packed_bytes_refused"] = two_four.attempt(
                two_four.packed_size, masked, convert
            )
        yield asdict(shape) | {"measure": SIZE} | sizes
        if kernels:
            speeds = two_four.measure_speed(weight, masked, convert, [rows for _, _, rows in cases])
            for (phase, batch, _), speed in zip(cases, speeds, strict=True):
                yield asdict(shape) | {"measure": phase, "batch": batch} | speed


def report(row: dict) -> None:
    """Print a line of progress."""
    batch = f", batch {row['batch']}" if "batch" in row else ""
    print(f"{row['out']}x{row['width']}: {row['measure']}{batch}", file=sys.stderr, flush=True)


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def cell(row: dict, column: str, form: str) -> str:
    """A value, or why torch refused to make it."""
    refused = row[f"{column}_refused"]
    return f"refused: {refused}".replace("|", "/") if refused else form.format(row[column])


def size_table(rows: list[dict]) -> str:
    """A line per shape, and the sum over all matrices; torch's own layout where it was written."""
    packed = any("packed_bytes" in row for row in rows)
    head = ["out x in", "weights", "matrices", *BYTES.values(), "compressed / dense"]
    lines = [
        [
            f"{row['out']} x {row['width']}",
            row["names"] or "-",
            str(row["count"]),
            *(f"{row[column]:,}" for column in BYTES),
            f"{row['compressed_bytes'] / row['dense_bytes']:.4f}",
            *([cell(row, "packed_bytes", "{:,}")] if packed else []),
        ]
        for row in rows
    ]
    total = {column: sum(row["count"] * row[column] for row in rows) for column in BYTES}
    sums = [f"{value:,}" for value in total.values()]
    share = f"{total['compressed_bytes'] / total['dense_bytes']:.4f}"
    lines.append(["all", "", str(sum(row["count"] for row in rows)), *sums, share, *[""] * packed])
    return table(head + ["torch's packed layout"] * packed, lines)


def speed_table(rows: list[dict]) -> str:
    """A line per shape and batch: milliseconds, or why torch refused."""
    lines = [
        [
            f"{row['out']} x {row['width']}",
            *(str(row[column]) for column in ("batch", "rows")),
            *(cell(row, column, "{:.4f}") for column in ("dense_ms", "sparse_ms")),
            f"{row['ratio']:.2f}" if "ratio" in row else "-",
        ]
        for row in rows
    ]
    return table(["out x in", "batch", "rows", "dense, ms", "2:4, ms", "dense / 2:4"], lines)


def markdown(rows: list[dict], options: argparse.Namespace, device: torch.device, speed: str) -> str:
    """What was run, on what, and all tables."""
    parts = [
        f"- command: `{shlex.join(['python', 'benchmarks/inference.py', *sys.argv[1:]])}`\n"
        f"- shapes: {options.model or options.shape}, {options.dtype}, random weights, magnitude masks\n"
        f"- machine: {device_name(device)}, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{date.today().isoformat()}",
        speed,
    ]
    for phase, what in ((PREFILL, f"{options.prefill} tokens per sequence"), (DECODE, "one token per sequence")):
        if chosen := [row for row in rows if row["measure"] == phase]:
            parts += [f"Time of one layer, {phase}, {what}, median:", speed_table(chosen)]
    parts += [
        "Size on disk, bytes of a safetensors file of one matrix; the last line is the sum over all matrices, size "
        "times count. Zeros alone save nothing; a compressed file holds the kept values, and two bits for the place of "
        "each.",
        size_table([row for row in rows if row["measure"] == SIZE]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", help="take the shapes of this model: hub id, folder or storyteller; no weights needed")
    what.add_argument("--shape", default="7b", help="LLaMA-2's 7b (default), 13b or 70b, or OUTxIN,OUTxIN,...")
    parser.add_argument("--batches", default="1,8,32", help="sequences at a time (default: %(default)s)")
    parser.add_argument("--prefill", default="2048", help="tokens per sequence in prefill (default: %(default)s)")
    parser.add_argument("--dtype", choices=ALL_DTYPES, default="float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--csv", type=Path, help="a line per measurement; written anew")
    parser.add_argument("--markdown", type=Path, help="where to write the tables, instead of stdout")
    options = parser.parse_args()

    dtype = ALL_DTYPES[options.dtype]
    try:
        batches, (prefill, *more) = read_counts(options.batches, "Batch"), read_counts(options.prefill, "Prefill")
        if more:
            raise UserError(f"Prefill {options.prefill!r} is more than one length: give one number of tokens.")
        device = torch.device(pick_device(options.device))
        shapes = model_shapes(options.model) if options.model else read_shapes(options.shape)
        for shape in shapes:
            two_four.check_width(shape.width)
    except UserError as error:
        parser.error(str(error))
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # the timer synchronises the current device
    kernels, why = two_four.find_kernels(dtype, device)
    speed = (
        f"Speed by torch's {kernels} kernels, each call on another copy of the weight, so that none is in the cache."
        if kernels
        else f"No speed was measured: {device_name(device)} has no 2:4 kernels for {options.dtype} ({why})."
    )
    cases = [(PREFILL, batch, batch * prefill) for batch in batches] + [(DECODE, batch, batch) for batch in batches]
    rows = []
    for row in measure(shapes, dtype, device, kernels, cases):
        report(row)
        rows.append(row)
    if options.csv:
        common = {"model": options.model or options.shape, "dtype": options.dtype, "device": device_name(device)}
        pd.DataFrame([common | {"kernels": kernels} | row for row in rows]).to_csv(options.csv, index=False)
    text = markdown(rows, options, device, speed)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
        print(speed)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
