"""Every causal language model type of the installed transformers, built tiny and pruned: which work, which are refused.

    python -m benchmarks.families [TYPE ...] [--json FILE] [--markdown FILE]

Each type is built with random weights from its own configuration, shrunk, and saved. Then it is pruned in a process of
its own, once with all layers in memory and once layer by layer, and the masks and perplexities of both are compared,
bit for bit. It ends as one of: pruned (both equal), refused (in one sentence), not built (its configuration
cannot be shrunk by rule, or its code fails on it), or failed, which is a defect. The table is that of docs/families.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import __version__ as version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import LayerInitialised, Notice, PerplexityMeasured, SubBlockRebuilt
from barber.job_spec import JobSpec
from barber.jobs.job import run_job

OUTCOMES = {
    "pruned": "masks and perplexities are the same, bit for bit, with all layers in memory and layer by layer",
    "refused": "before any work, in one sentence, the same both ways",
    "failed": "a defect",
    "not built": "not tested: the script's rules cannot shrink it, or it does not run on text alone",
}

SECONDS = 240  # for one type

SIZES = {  # setting -> tiny value, for every setting of that name that a configuration has
    "vocab_size": 96, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "emb_dim": 32, "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "n_inner": 64,
    "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "d_inner": 64, "dim_ff": 64, "ffn_hidden_size": 64,
    "dense_intermediate_size": 64, "block_ff_dim": 64, "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4,
    "num_layers": 4, "decoder_layers": 4, "encoder_layers": 2, "num_decoder_layers": 4, "num_encoder_layers": 2,
    "num_blocks": 4, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_key_value_heads": 2, "num_attention_groups": 2, "num_kv_heads": 2, "head_dim": 8, "global_head_dim": 8,
    "attention_head_size": 8, "attention_head_dim": 8, "dim_head": 8, "d_head": 8, "d_kv": 8, "rotary_dim": 8,
    "kv_channels": 8, "swa_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "swa_v_head_dim": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16,
    "v_head_dim": 8, "o_lora_rank": 16, "index_head_dim": 16, "index_n_heads": 4, "index_topk": 8,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "max_target_positions": 64,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 16, "intermediate_size_mlp": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_top_k": 2, "moe_k": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "zero_expert_num": 0, "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "sliding_window": 8, "attention_window_size": 8, "local_size": 8,
    "attention_chunk_size": 8, "chunk_size": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 32, "mamba_d_state": 8, "mamba_n_heads": 8,
    "mamba_d_head": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64,
    "mamba_chunk_size": 8, "ssm_state_size": 8, "n_groups": 1, "mamba_dt_rank": 4, "state_size": 8, "time_step_rank": 4,
    "n_mamba_heads": 2, "mamba_ngroups": 1, "mamba_headdim": 8, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96, "laurel_rank": 8, "num_kv_shared_layers": 0, "altup_num_inputs": 2,
    "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1, "conv_kernel": 4,
    "project_dim": 32, "attention_hidden_size": 32, "adapter_rank": 8,
    "num_buckets": 32, "unpadded_vocab_size": 96, "padded_vocab_size": 96, "expand": 1,
}  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def shrink(config, lists: bool = True) -> dict:
    """A configuration's values with tiny sizes: settings by name, lists with an entry per layer cut to as many.

    lists: without, those are left to the configuration, which often makes them from the number of layers.
    """
    found = config.to_dict()
    depth = getattr(config, "num_hidden_layers", None)
    values = {}
    for name, value in found.items():
        if name in TOKENS:
            values[name] = TOKENS[name]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            values[name] = SIZES[name]
        elif value is None or name == "per_layer_config" or (isinstance(value, list) and not lists):
            continue
        elif isinstance(value, list) and depth and len(value) == depth:
            kinds = list(dict.fromkeys(map(str, value)))  # each kind once, then the first again
            first = [next(v for v in value if str(v) == kind) for kind in kinds[:4]]
            values[name] = [SIZES.get(name, v) if isinstance(v, int) else v for v in (first * 4)[:4]]
        elif name in config.sub_configs and hasattr(getattr(config, name), "to_dict"):
            values[name] = shrink(getattr(config, name), lists) | {"model_type": getattr(config, name).model_type}
        elif not name.startswith("_") and name not in ("transformers_version", "architectures", "dtype"):
            values[name] = value
    if "kv_lora_rank" in values and "num_key_value_heads" in values:  # latent attention has as many as heads
        values["num_key_value_heads"] = SIZES["num_attention_heads"]
    return {name: value for name, value in values.items() if name != "model_type"}


def build(kind: str):
    """A tiny random model of a type that runs on text."""
    try:
        return _build(kind, lists=True)
    except Exception:  # the code of the type may fail in any way
        return _build(kind, lists=False)


def _build(kind: str, lists: bool):
    config = AutoConfig.for_model(kind, **shrink(AutoConfig.for_model(kind), lists))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if sum(parameter.numel() for parameter in model.parameters()) > 2e7:
        raise ValueError("its configuration stays large")
    with torch.no_grad():
        model(input_ids=torch.arange(24, 40)[None], use_cache=False)
    return model


def check(kind: str) -> dict:
    """The outcome of one type: {"outcome", "message"}."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = build(kind)
            tokens = torch.randint(24, 48, (8, 16), generator=torch.Generator().manual_seed(1))
            model.save_pretrained(folder)
        except Exception as error:  # the rule, or the code of the type
            return {"outcome": "not built", "message": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        np.save(f"{folder}/tokens.npy", tokens.numpy())
        spec = JobSpec(
            model=folder, prune=PruneConfig(Sparsity.parse("50%"), "wanda", threshold=0.5), nsamples=4, seqlen=16,
            calibration=f"{folder}/tokens.npy", evaluation=(f"{folder}/tokens.npy",), device="cpu",
        )  # fmt: skip
        ends: dict[bool, object] = {}
        for stream in (False, True):
            try:
                events = list(run_job(replace(spec, stream=stream)))
            except UserError as error:
                ends[stream] = str(error).replace(folder, "MODEL")
                continue
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                return {"outcome": "failed", "message": f"{type(error).__name__} in {where}: {str(error)[:200]}"}
            masks = {
                (type(event), event.layer, name): mask
                for event in events
                if isinstance(event, LayerInitialised | SubBlockRebuilt)
                for name, mask in event.masks.items()
            }
            values = [event.perplexity for event in events if isinstance(event, PerplexityMeasured)]
            notes = [e.message for e in events if isinstance(e, Notice) and "stay dense" in e.message]
            ends[stream] = masks, values, " ".join(notes)
        one, other = ends[False], ends[True]
        if isinstance(one, str) or isinstance(other, str):
            texts = [text if isinstance(text, str) else "pruned" for text in (one, other)]
            same = texts[0] == texts[1]
            return {"outcome": "refused" if same else "failed", "message": texts[0] if same else " / ".join(texts)}
        equal = one[0].keys() == other[0].keys() and all(torch.equal(one[0][key], other[0][key]) for key in one[0])
        if not equal or one[1] != other[1]:
            return {"outcome": "failed", "message": f"resident {one[1]}, layerwise {other[1]}, masks alike: {equal}"}
        return {"outcome": "pruned", "message": one[2]}


def in_a_process(kind: str) -> dict:
    """`check` in a process of its own, since a type may take any time or crash the process."""
    context = multiprocessing.get_context("fork")  # so that torch and transformers are imported once
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(check(kind)))
    process.start()
    sending.close()
    try:
        if receiving.poll(SECONDS):
            return receiving.recv()
        process.kill()
        return {"outcome": "failed", "message": f"took more than {SECONDS} seconds"}
    except EOFError:
        return {"outcome": "failed", "message": "its process ended with a traceback"}
    finally:
        process.join()


def report(found: dict[str, dict]) -> str:
    """The outcomes as Markdown: counts, what is pruned (and what stays dense), what is refused, what not built."""
    kinds = {name: [k for k in sorted(found) if found[k]["outcome"] == name] for name in OUTCOMES}
    counts = "\n".join(f"| {name} | {len(kinds[name])} | {means} |" for name, means in OUTCOMES.items())
    whole = [kind for kind in kinds["pruned"] if not found[kind]["message"]]
    partly = [kind for kind in kinds["pruned"] if found[kind]["message"]]
    parts = [
        f"# Model types\n\nAll {len(found)} types that `AutoModelForCausalLM` of transformers {version} knows, each "
        "tiny and with random weights. Made by `python -m benchmarks.families --markdown docs/families.md`.\n\n"
        f"| outcome | types | what it means |\n|---|---:|---|\n{counts}",
        f"## Pruned completely: {len(whole)}\n\n{', '.join(whole)}.",
        f"## Pruned, except for weights that stay dense: {len(partly)}\n\n" + _rows(found, partly, "what stays dense"),
        *(
            f"## {name.capitalize()}: {len(kinds[name])}\n\n" + _rows(found, kinds[name], "why")
            for name in list(OUTCOMES)[1:]
            if kinds[name]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(found: dict[str, dict], kinds: list[str], title: str) -> str:
    lines = [f"| {kind} | {found[kind]['message'].replace('|', ' ')} |" for kind in kinds]
    return "\n".join([f"| type | {title} |", "|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    given = parser.parse_args()
    torch.set_num_threads(1)  # small tensors on shared cores only wait
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = {}
    for kind in given.types:
        found[kind] = in_a_process(kind)
        print(f"| {kind} | {found[kind]['outcome']} | {found[kind]['message']} |", flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(report(found), encoding="utf-8")
    counts = Counter(outcome["outcome"] for outcome in found.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()), f"of {len(found)} types")


if __name__ == "__main__":
    main()
