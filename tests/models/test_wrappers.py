"""Wrapped models in the Python API: the error names the wrapper and the remedy."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import SubBlockRebuilt
from barber.pruning.prune import prune
from tests.models.test_families import sequences
from tests.support.families import build

pytestmark = [  # of peft, which calls an old name of transformers, and of torch.compile's own imports
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

HALF = PruneConfig(Sparsity.parse("50%"), "wanda", threshold=0.5)
LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def with_adapter():
    return get_peft_model(build("llama"), LORA)


def with_adapter_inside():
    model = build("llama")
    get_peft_model(model, LORA)
    return model


def compiled():
    return torch.compile(build("llama"))


def compiled_in_place():
    model = build("llama")
    model.model.layers[1].compile()
    return model


def pruned_by_torch():
    model = build("llama")
    torch_prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    return model


def parametrized():
    model = build("llama")
    parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    return model


def in_parallel():
    return nn.DataParallel(build("llama"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_adapter, r"adapter of PEFT.*merge_and_unload\(\)"),
        (with_adapter_inside, r"adapter of PEFT.*merge_and_unload\(\)"),
        (compiled, r"torch\.compile.*before compilation"),
        (compiled_in_place, r"its model\.layers\.1 went through torch\.compile"),
        (pruned_by_torch, r"its model\.layers\.0\.mlp\.up_proj computes its weight.*prune\.remove"),
        (parametrized, r"up_proj computes its weight.*remove_parametrizations"),
        (in_parallel, r"not a model of transformers.*model\.module"),
        (lambda: nn.Linear(2, 2), "one that AutoModelForCausalLM loads"),
    ],
)
def test_the_wrapper_and_the_remedy_are_named(make, message):
    with pytest.raises(UserError, match=message):
        next(prune(make(), sequences(), HALF))


def test_the_remedies_work():
    merged = with_adapter().merge_and_unload()
    torch_pruned = pruned_by_torch()
    torch_prune.remove(torch_pruned.model.layers[0].mlp.up_proj, "weight")
    for model in (merged, torch_pruned):
        assert any(isinstance(event, SubBlockRebuilt) for event in prune(model, sequences(), HALF))


def test_inference_mode_is_refused():
    """Inference mode makes no gradients, and fewer weights would be swapped without an error."""
    model = build("llama")
    with torch.inference_mode(), pytest.raises(UserError, match=r"gradients, which torch\.inference_mode"):
        next(prune(model, sequences(), HALF))
    with torch.inference_mode():
        made = build("llama")
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight was made inside torch\.inference_mode"):
        next(prune(made, sequences(), HALF))


def test_packed_weights_are_refused():
    model = build("llama")
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="int8, so it is quantised"):
        next(prune(model, sequences(), HALF))
