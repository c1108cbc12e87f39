"""Tiny random models of every supported family, built from transformers configs."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from barber.models.decoder import DecoderView

WIDTH = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = WIDTH | {"head_dim": 8}
OPT = {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
       "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}  # fmt: skip

# name -> (model_type, config values, prunable weights per layer)
FAMILIES = {
    "llama": ("llama", WIDTH, 7),
    "mistral": ("mistral", WIDTH | {"sliding_window": 8}, 7),
    "qwen2": ("qwen2", WIDTH, 7),
    "qwen3": ("qwen3", WIDTH | {"head_dim": 8}, 7),
    "gemma": ("gemma", GEMMA, 7),
    "gemma2": ("gemma2", GEMMA | {"sliding_window": 8}, 7),
    "gemma3": ("gemma3_text", GEMMA | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, 7),
    "phi": ("phi", WIDTH, 6),
    "phi3": ("phi3", WIDTH, 4),
    "gpt_neox": ("gpt_neox", WIDTH, 4),
    "gpt2": ("gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64}, 4),
    "opt": ("opt", OPT, 6),
    "opt-350m": ("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, 6),
    "falcon": ("falcon", WIDTH | {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True}, 4),
    "falcon-alibi": ("falcon", WIDTH | {"alibi": True, "parallel_attn": False, "multi_query": False}, 4),
    "bloom": ("bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 4),
    "gptj": (
        "gptj",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8, "n_inner": 64},
        6,
    ),
    "olmo2": ("olmo2", WIDTH, 7),
    "stablelm": ("stablelm", WIDTH, 7),
    "granite": ("granite", WIDTH, 7),
}

ROUTED = WIDTH | {"num_experts_per_tok": 2}
DEEPSEEK = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
            "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}  # fmt: skip

# Mixtures of experts with fused weights: name -> (model_type, config values, prunable weights of the last layer)
EXPERTS = {
    "mixtral": ("mixtral", ROUTED | {"num_local_experts": 4}, 4 + 8),
    "qwen3_moe": ("qwen3_moe", ROUTED | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8}, 4 + 8),
    "olmoe": ("olmoe", ROUTED | {"num_experts": 4}, 4 + 8),
    "deepseek_v3": ("deepseek_v3", ROUTED | DEEPSEEK, 5 + 8 + 3),
    "gpt_oss": ("gpt_oss", ROUTED | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 8}, 4 + 8),
    "llama4": (
        "llama4_text",
        ROUTED | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "head_dim": 8,
                  "attention_chunk_size": 64},
        4 + 8 + 3,
    ),
    "jetmoe": (
        "jetmoe",
        {name: value for name, value in ROUTED.items() if name != "num_attention_heads"}
        | {"num_local_experts": 4, "kv_channels": 8},
        1 + 4 * 4,
    ),
}  # fmt: skip


def build(family: str, dtype: torch.dtype = torch.float32):
    """A random model of a family, in eval mode; the same weights at each call."""
    kind, values, _ = (FAMILIES | EXPERTS)[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **values)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def copy_weights(view: DecoderView) -> dict[tuple[int, str], torch.Tensor]:
    """Copies of all prunable weights as they are now: (layer, name) -> (out, in)."""
    return {(layer.index, weight.name): weight.view.clone() for layer in view.layers for weight in layer.weights}
