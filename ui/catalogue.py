"""The models that the form offers. Any other hub id, or a local folder, can be typed."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A model: its name as `load` takes it, a short title, its number of weights, whether it is gated on the hub."""

    name: str
    title: str
    size: str
    gated: bool = False


CATALOGUE = (
    Entry("storyteller", "Storyteller, bundled", "0.4 M"),
    Entry("HuggingFaceTB/SmolLM2-135M", "SmolLM2", "135 M"),
    Entry("HuggingFaceTB/SmolLM2-360M", "SmolLM2", "362 M"),
    Entry("facebook/opt-125m", "OPT", "125 M"),
    Entry("openai-community/gpt2", "GPT-2", "124 M"),
    Entry("EleutherAI/pythia-160m", "Pythia", "162 M"),
    Entry("Qwen/Qwen2.5-0.5B", "Qwen2.5", "494 M"),
    Entry("Qwen/Qwen3-0.6B", "Qwen3", "596 M"),
    Entry("TinyLlama/TinyLlama_v1.1", "TinyLlama", "1.1 B"),
    Entry("meta-llama/Llama-3.2-1B", "Llama 3.2", "1.2 B", gated=True),
    Entry("google/gemma-3-1b-pt", "Gemma 3", "1.0 B", gated=True),
    Entry("meta-llama/Llama-2-7b-hf", "Llama 2", "6.7 B", gated=True),
)


def choices() -> list[tuple[str, str]]:
    """(label, name) for a dropdown."""
    return [(f"{entry.title} · {entry.size}{' · gated' if entry.gated else ''}", entry.name) for entry in CATALOGUE]
