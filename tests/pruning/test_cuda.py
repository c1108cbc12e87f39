"""Runs on a CUDA device, if there is one."""

from __future__ import annotations

import pytest
import torch

from barber.events import RunFinished, SubBlockRebuilt
from barber.models.layerwise import load_layerwise
from barber.models.loading import find_source
from barber.pruning.prune import prune
from tests.support import golden_data as golden
from tests.support.families import build
from tests.support.layerwise import assert_same

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_masks_agree_with_the_cpu(method):
    """Other kernels round differently, so near-ties may differ, but counts may not."""
    run = golden.RUNS[f"llama-{method}-unstructured-0.5-block-0.5-WD"]
    masks = {}
    for device in ("cpu", "cuda"):
        model = golden.model("llama").to(device)
        events = list(prune(model, golden.calibration(), golden.config(run)))
        masks[device] = {
            (event.layer, name): mask.cpu()
            for event in events
            if isinstance(event, SubBlockRebuilt)
            for name, mask in event.masks.items()
        }
        (finished,) = [event for event in events if isinstance(event, RunFinished)]
        assert finished.zeros == sum(int(mask.sum()) for mask in masks[device].values())
    total = sum(mask.numel() for mask in masks["cpu"].values())
    differing = sum(int((masks["cpu"][key] ^ masks["cuda"][key]).sum()) for key in masks["cpu"])
    assert differing / total < 0.002


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_underflows(dtype):
    run = golden.RUNS["llama-wanda-unstructured-0.5-block-0.5-WD"]
    model = golden.model("llama").to("cuda", dtype)
    rebuilt = [e for e in prune(model, golden.calibration(), golden.config(run)) if isinstance(e, SubBlockRebuilt)]
    assert all(event.swaps > 0 and event.error_after < event.error_before for event in rebuilt)


@torch.no_grad()
def test_layerwise_loading_has_one_layer_in_memory(tmp_path):
    build("gptj", torch.bfloat16).save_pretrained(tmp_path)
    full = build("gptj", torch.bfloat16).to("cuda")
    before = torch.cuda.memory_allocated()
    streamed = load_layerwise(find_source(str(tmp_path), device="cuda"))
    closed = torch.cuda.memory_allocated()
    assert closed - before < streamed.other_bytes * 2  # blocks are rounded up
    for layer in streamed.view.layers:
        streamed.open(layer.index)
        opened = {name: weight.cpu() for name, weight in layer.module.state_dict().items()}
        assert_same(opened, {name: w.cpu() for name, w in full.transformer.h[layer.index].state_dict().items()})
        streamed.close(layer.index)
        assert torch.cuda.memory_allocated() == closed
    for layer in streamed.view.layers:
        streamed.open(layer.index)
    tokens = torch.arange(3, 43, device="cuda")[None]
    assert torch.equal(streamed.loaded.model(tokens).logits, full(tokens).logits)
