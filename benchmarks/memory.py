"""Memory of a run with layerwise loading from real files: its peak over the number of layers, and under a limit.

python benchmarks/memory.py [--layers 8,32,64] [--orders one-pass,paper] [--settings] [--csv FILE] [--markdown FILE]

Llamas of equal layers with random fp32 weights are written to a temporary folder, and `main.py --stream` runs on each
in a new process. The memory of Python, torch and transformers is the peak of the same run on a model of tiny width; it
is subtracted, and the rest is given in layers. Then the address space is limited to that of the tiny run and a few
layers of the largest model: a run with --stream has to succeed, and one without cannot. With --settings, runs follow
that each differ in one setting, beside the estimate of their memory. See docs/scaling.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
from transformers import LlamaConfig

from barber.errors import UserError
from benchmarks.measure import GIB, MIB, Used, machine, measured, table, this_command, write
from benchmarks.synthetic import write_checkpoint

TINY = 64  # hidden size of the model whose run gives the memory of the libraries
VOCABULARY = 1024
HEADS = 8
WINDOWS = 2  # of the evaluation
ROOM = 8  # layers that fit into the limited address space beside the libraries, or half of a small model
PRUNE = {
    "--sparsity_ratio": "0.5",
    "--prune_method": "wanda",
    "--prune_granularity": "block",
    "--threshold": "0.1",
    "--order": "paper",
    "--device": "cpu",
}
SETTINGS = {
    "as above": {},
    "output1": {"--prune_granularity": "output1"},
    "2:4": {"--sparsity_ratio": None, "--sparsity_type": "2:4"},
    "SparseGPT": {"--prune_method": "sparsegpt"},
    "OWL": {"--allocation": "owl"},
    "auto": {"--threshold": "auto", "--prune_granularity": None},
    "one-swap": {"--refiner": "one-swap", "--threshold": None, "--prune_granularity": None},
    "refit": {"--reconstruct": ""},
}
EXPECTED = re.compile(r"([0-9.]+) GiB in the host's memory")
TITLES = [
    "order", "layers", "model", "processor", "peak", "peak - libraries", "less activations, in layers", "to the first",
]  # fmt: skip


def config(options: argparse.Namespace, layers: int, hidden: int, intermediate: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=max(512, options.seqlen),
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )


def activations(options: argparse.Namespace) -> int:
    """Bytes of the stored activations and of one dense pass of an MLP with its gradients, all sequences at once.

    Stored: hidden states, the inputs, targets and outputs of a sub-block, and its sparse outputs. The pass: gate, its
    activation, up, their product, and the gradients of three of them.
    """
    tokens = options.samples * options.seqlen
    return 4 * tokens * (5 * options.hidden + 7 * options.intermediate)


def prune(
    folder: Path, model: str, changed: dict[str, str | None], options: argparse.Namespace, limit: int | None = None
) -> Used:
    """A run of the command line in a new process. changed: flags that differ from PRUNE; None leaves a flag out."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        data = {"--calibration": f"{folder}/calibration.npy", "--eval_data": f"{folder}/evaluation.npy"}
        size = {"--nsamples": f"{options.samples}", "--seqlen": f"{options.seqlen}"}
        flags = {"--model": f"{folder}/{model}", **data, **size, **PRUNE, "--run_dir": f"{run}/run", **changed}
        given = [word for flag, value in flags.items() if value is not None for word in (flag, value) if word]
        return measured([sys.executable, "main.py", "--prune_barber", *given], limit=limit)


def checked(used: Used) -> Used:
    if used.code:
        raise UserError(f"A run that was to be measured ended with exit code {used.code}: {used.last}")
    return used


def rows(folder: Path, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each order and number of layers, then those of the limit."""
    rng, counts = np.random.default_rng(0), options.layers
    np.save(folder / "calibration.npy", rng.integers(0, VOCABULARY, (options.samples, options.seqlen)))
    np.save(folder / "evaluation.npy", rng.integers(0, VOCABULARY, (WINDOWS, options.seqlen)))
    write_checkpoint(folder / "tiny", config(options, counts[0], TINY, TINY))
    bases = {order: checked(prune(folder, "tiny", streamed(order), options)) for order in options.orders}
    first: dict[str, int] = {}
    for layers in counts:
        layer_bytes = write_checkpoint(
            folder / f"{layers}", config(options, layers, options.hidden, options.intermediate)
        )
        for order in options.orders:
            used = checked(prune(folder, f"{layers}", streamed(order), options))
            above = used.peak - bases[order].peak
            yield {
                "measure": "peak",
                "order": order,
                "layers": layers,
                "layer_bytes": layer_bytes,
                "model_bytes": layers * layer_bytes,
                "seconds": used.seconds,
                "processor_seconds": used.processor,
                "libraries_bytes": bases[order].peak,
                "peak_bytes": used.peak,
                "activation_bytes": activations(options),
                "above_in_layers": above / layer_bytes,
                "in_layers": (above - activations(options)) / layer_bytes,
                "ratio": used.peak / first.setdefault(order, used.peak),
            }
    model_bytes = counts[-1] * layer_bytes
    for order in options.orders:
        limit = bases[order].address + min(model_bytes // 2, ROOM * layer_bytes)
        for how in ("streamed", "whole"):
            changed = streamed(order) if how == "streamed" else {"--order": order, "--max_memory": "1000GB"}
            used = prune(folder, f"{counts[-1]}", changed, options, limit)
            yield {
                "measure": "limit",
                "order": order,
                "layers": counts[-1],
                "model_bytes": model_bytes,
                "limit_bytes": limit,
                "libraries_bytes": bases[order].address,
                "how": how,
                "code": used.code,
                "message": used.last if used.code else "",
            }

    for name, changed in SETTINGS.items() if options.settings else ():
        tiny, used = (
            checked(prune(folder, model, changed | {"--stream": ""}, options)) for model in ("tiny", f"{counts[0]}")
        )
        yield {
            "measure": "setting",
            "setting": name,
            "layers": counts[0],
            "layer_bytes": layer_bytes,
            "libraries_bytes": tiny.peak,
            "peak_bytes": used.peak,
            "above_in_layers": (used.peak - tiny.peak) / layer_bytes,
            "expected_bytes": float(EXPECTED.search(used.errors)[1]) * GIB,
        }


def streamed(order: str) -> dict[str, str]:
    return {"--order": order, "--stream": ""}


def mib(size: float) -> str:
    return f"{size / MIB:.0f} MiB"


def markdown(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    peaks, limits = (frame[frame["measure"] == measure] for measure in ("peak", "limit"))
    layer = int(peaks["layer_bytes"].iloc[0])
    parts = [
        f"{this_command('memory.py')}\n"
        f"- model: Llamas, hidden size {options.hidden}, intermediate {options.intermediate}, random fp32 weights, "
        f"{layer / MIB:.1f} MiB a layer; {options.samples} sequences of {options.seqlen} tokens, whose activations are "
        f"{activations(options) / MIB:.1f} MiB ({activations(options) / layer:.2f} layers)\n"
        f"{machine()}",
        table(
            TITLES,
            [
                [
                    *(row["order"], f"{row['layers']}", mib(row["model_bytes"]), f"{row['processor_seconds']:.1f} s"),
                    *(mib(row["peak_bytes"]), mib(row["peak_bytes"] - row["libraries_bytes"])),
                    *(f"{row['in_layers']:.1f}", f"{row['ratio']:.3f}"),
                ]
                for row in peaks.to_dict("records")
            ],
        ),
        table(
            [
                "order",
                "model",
                "address space allowed",
                "of that the libraries",
                "model in memory",
                "exit code",
                "message",
            ],
            [
                [
                    *(row["order"], mib(row["model_bytes"]), mib(row["limit_bytes"]), mib(row["libraries_bytes"])),
                    *(row["how"], f"{row['code']:.0f}", row["message"] or "-"),
                ]
                for row in limits.to_dict("records")
            ],
        ),
    ]
    settings = frame[frame["measure"] == "setting"].to_dict("records")
    if settings:
        cells = [
            [
                *(row["setting"], mib(row["peak_bytes"] - row["libraries_bytes"]), f"{row['above_in_layers']:.1f}"),
                mib(row["expected_bytes"]),
            ]
            for row in settings
        ]
        parts.append(table(["setting", "peak - libraries", "in layers", "expected"], cells))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="8,32,64", help="numbers of layers, rising")
    parser.add_argument("--orders", default="one-pass,paper")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=2752)
    parser.add_argument("--samples", type=int, default=8, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=32, help="tokens of each")
    parser.add_argument("--settings", action="store_true", help="also run other settings on the smallest model")
    parser.add_argument("--csv", type=Path, help="a line per run")
    parser.add_argument("--markdown", type=Path, help="where to write the tables, instead of stdout")
    options = parser.parse_args()
    options.layers = [int(number) for number in options.layers.split(",")]
    options.orders = options.orders.split(",")
    made = []
    try:
        with tempfile.TemporaryDirectory(prefix="barber-memory-") as folder:
            for row in rows(Path(folder), options):
                made.append(row)
                print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, file=sys.stderr)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    frame = pd.DataFrame(made)
    if options.csv:
        frame.to_csv(options.csv, index=False)
    write(markdown(frame, options), options.markdown)


if __name__ == "__main__":
    main()
