"""Llamas of any size with random weights, whose layers are made when they are opened, without a download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from barber.errors import UserError
from barber.models.decoder import DecoderView
from barber.models.providers import LayerwiseProvider


@dataclass(frozen=True)
class Shape:
    """The published sizes of a Llama that matter for pruning."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int  # key-value heads
    vocabulary: int


SHAPES = {
    "6m": Shape(256, 688, 8, 8, 8, 1024),
    "26m": Shape(512, 1376, 8, 8, 8, 1024),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256),
    "7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "13b": Shape(5120, 13824, 40, 40, 40, 32000),
    "70b": Shape(8192, 28672, 80, 64, 8, 128256),
    "405b": Shape(16384, 53248, 126, 128, 8, 128256),
}


def config(shape: str, layers: int | None = None, positions: int = 4096) -> LlamaConfig:
    """The configuration of a shape by name, with another number of layers where one is given."""
    if shape not in SHAPES:
        raise UserError(f"Shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}.")
    sizes = SHAPES[shape]
    return LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=layers or sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.groups,
        max_position_embeddings=positions,
    )


class Made:
    """A reader of layers that makes their random weights whenever they are opened, the same each time."""

    def __init__(self, model: LlamaForCausalLM, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype, self.view = model, device, dtype, DecoderView(model)

    def open(self, index: int) -> None:
        layer = self.model.model.layers[index]
        if next(layer.parameters()).device.type != "meta":
            return
        layer.to_empty(device=self.device).to(self.dtype)
        generator = torch.Generator(self.device).manual_seed(index)
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.02, generator=generator)
            else:
                parameter.data.fill_(1)

    def close(self, index: int) -> None:
        self.model.model.layers[index].to("meta")

    def dense(self, index: int) -> dict[str, Tensor]:
        """The weights of a closed layer, as `open` makes them."""
        self.open(index)
        found = {weight.name: weight.view for weight in self.view.layers[index].weights}
        self.close(index)
        return found


def streamed(shape: str, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> LayerwiseProvider:
    """The layer provider of a model of a shape, with its decoder layers on the meta device."""
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config(shape, layers)).eval().requires_grad_(False)
    decoder = model.model
    for part in (decoder.embed_tokens, decoder.norm):
        part.to_empty(device=device).to(dtype)
        torch.nn.init.normal_(part.weight, std=1.0) if part is decoder.embed_tokens else part.weight.data.fill_(1)
    decoder.rotary_emb.to(device)
    return LayerwiseProvider(Made(model, device, dtype), device)


def write_checkpoint(folder: Path, sizes: LlamaConfig) -> int:
    """Write a Llama of random fp32 weights as a Hugging Face folder, a file per layer; the bytes of one layer.

    No more than a layer is in memory at a time.
    """
    folder.mkdir(parents=True)
    sizes.save_pretrained(folder)
    generator, weight_map, layer_bytes = torch.Generator().manual_seed(0), {}, 0
    with init_empty_weights():
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(sizes).named_parameters()}
    for number, part in enumerate(("", *(f"model.layers.{index}." for index in range(sizes.num_hidden_layers))), 1):
        file, tensors = f"model-{number:05d}-of-{sizes.num_hidden_layers + 1:05d}.safetensors", {}
        for name, shape in shapes.items():
            if name.startswith(part) if part else not name.startswith("model.layers."):
                made = torch.empty(shape)
                tensors[name] = made.normal_(0, 0.02, generator=generator) if len(shape) > 1 else made.fill_(1)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        layer_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return layer_bytes
