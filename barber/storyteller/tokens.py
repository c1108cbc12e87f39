"""The tokenizer of the stories, and the conversion of stories to a token stream.

The tokenizer is a byte-pair model in which every word of the stories is one token; all other words are tokenised
character by character. A story of n words and punctuation marks thus has n + 1 tokens with its BOS.
"""

import re
from collections.abc import Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from barber.storyteller.grammar import GRAMMAR
from barber.storyteller.stories import Slot, parts
from barber.storyteller.world import world

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SPACE = "▁"  # represents the space before a word, as in Llama's tokenizer


def words() -> list[str]:
    """Return every word that a story can contain, sorted."""
    texts = [part for row in GRAMMAR.values() for line in row for part in parts(line) if not isinstance(part, Slot)]
    texts = [text for text in texts if not text.startswith("<")]
    texts += [text for entities in world().values() for e in entities for text in (e.name, *e.facts.values())]
    return sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", text)})


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer for a model of `max_length` positions. It prepends BOS to a text; the caller appends EOS."""
    characters = [chr(code) for code in range(33, 127)] + [SPACE]
    vocabulary = [BOS, EOS, UNKNOWN, *characters, *(SPACE + word for word in words())]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token=UNKNOWN, ignore_merges=True))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(SPACE, prepend_scheme="first"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> np.ndarray:
    """Return the concatenated token ids of texts, (tokens,) uint16: BOS text EOS BOS text EOS ..."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return np.concatenate([np.array([*row.ids, tokenizer.eos_token_id], dtype=np.uint16) for row in encoded])
