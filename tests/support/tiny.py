"""A tiny tokenizer and model, for tests that need text."""

from __future__ import annotations

import random
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[3] / "shared"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "big", "red", "dog", "run", "to", "town"]


def story(seed: int, words: int = 30) -> str:
    """A text of words in the vocabulary of `tokenizer`."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def tokenizer(extra: str = "") -> PreTrainedTokenizerFast:
    """Words and characters, BOS before each text, no padding token, bytes for every other character.

    extra: one more token, for a tokenizer that differs.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters, ".", ","]
    words = ["▁" + word for word in (*WORDS, *([extra] if extra else []))]
    ids = {piece: index for index, piece in enumerate([*pieces, *words])}
    core = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama(seed: int = 0, **options) -> LlamaForCausalLM:
    """A random Llama of one layer with the vocabulary of `tokenizer`, whose logits differ clearly."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**values | options)).eval()
