"""The inspection of a model by a short run: it must be a causal decoder whose layers run one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from barber.config import PruneConfig, Sparsity
from barber.errors import UserError
from barber.events import Notice, Stage
from barber.jobs.job import run_job
from barber.models.decoder import DecoderView
from barber.models.inspection import Inspection, count_zeros, inspect
from barber.models.providers import LayerwiseProvider, ResidentProvider
from barber.pruning.prune import prune
from tests.models.test_families import sequences
from tests.support.families import FAMILIES, WIDTH, build
from tests.support.jobs import job, masks_in_events, same, save_inputs
from tests.support.layerwise import load_by_layer

HALF = PruneConfig(Sparsity.parse("50%"), "wanda")


def of(kind: str, dtype: torch.dtype = torch.float32, **values):
    """A random model of a type."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **WIDTH | values)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def inspected(model) -> tuple[DecoderView, Inspection]:
    view = DecoderView(model)
    return view, inspect(view, ResidentProvider(view))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_pass(family, dtype):
    model = build(family, dtype)
    model.train()
    view, found = inspected(model)
    assert found == Inspection(sum(w.parameter.numel() for la in view.layers for w in la.weights), 0)
    assert view.coverage.dense == {}
    assert view.coverage.describe() is None
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_encoders_are_refused(kind):
    with pytest.raises(UserError, match="is not a decoder here"):
        inspected(of(kind, embedding_size=32))
    with pytest.raises(UserError, match="is not a decoder here"):
        inspected(of(kind, torch.bfloat16, embedding_size=32, initializer_range=0.2))


def test_a_bert_that_is_a_decoder_passes():
    inspected(of("bert", is_decoder=True))


@pytest.mark.parametrize("loops", [1, 2])
def test_a_hidden_state_that_changes_between_layers_is_refused(loops):
    """Dory changes the hidden state around its middle layers, and may run them twice."""
    sizes = {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1, "head_dim": 8}
    with pytest.raises(UserError, match="the output of layer 0 is changed before layer 1"):
        inspected(of("dory", n_recurrent_loops=loops, **sizes))


def test_looped_layers_are_refused():
    model = build("llama")
    once = model.model.forward

    def twice(**inputs):
        return once(inputs_embeds=once(**inputs).last_hidden_state, use_cache=False)

    model.model.forward = twice
    with pytest.raises(UserError, match="layer 0 is called instead of layer 2"):
        inspected(model)


def test_skipped_layers_are_refused():
    """A model that ends after its first layer."""
    model = build("llama")
    model.model.config.num_hidden_layers = 1
    model.config.get_text_config = lambda **_: type(model.config)(num_hidden_layers=2)
    with pytest.raises(UserError, match="layer 1 is not called"):
        inspected(model)


def test_layers_that_depend_on_another_call_are_refused():
    """The second layer adds the output of the first layer's last call, which skipping layers changes."""
    model = build("llama")
    first, second = model.model.layers
    inner, plain = first.forward, second.forward

    def recording(hidden, **kwargs):
        model.noted = inner(hidden, **kwargs)
        return model.noted

    def adding(hidden, **kwargs):
        noted, model.noted = getattr(model, "noted", 0), 0
        return plain(hidden, **kwargs) + noted

    first.forward, second.forward = recording, adding
    with pytest.raises(UserError, match="layer 1 returns another output alone than inside the model"):
        inspected(model)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("xlm", {"vocab_size": 96, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
        ("xlnet", {"vocab_size": 96, "d_model": 32, "d_inner": 64, "n_layer": 2, "n_head": 4}),
    ],
)
def test_layouts_that_cannot_be_replayed_are_refused(kind, values):
    with pytest.raises(UserError, match="are no chain, since"):
        inspected(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)))


def test_layers_that_return_lists(tmp_path):
    """OpenAI GPT: pruned, and layer by layer as in memory."""
    model = of("openai-gpt", n_embd=32, n_positions=64, n_layer=2, n_head=4)
    finals = {}
    for stream in (False, True):
        workspace = save_inputs(tmp_path / str(stream), model)
        finals[stream] = masks_in_events(list(run_job(replace(job(workspace, method="wanda"), stream=stream))))
    assert same(finals[False], finals[True])
    zeros = sum(int(mask.sum()) for (_, _, stage), mask in finals[True].items() if stage == Stage.REBUILT)
    assert zeros == 2 * 32 * (96 + 32 + 128 + 128) // 2


class TestWhatStaysDense:
    def test_routers_of_fused_experts(self):
        view, found = inspected(of("mixtral", num_local_experts=4))
        assert view.coverage.dense == {"mlp.gate": 2 * 4 * 32}
        assert found == Inspection(2 * (2 * 32 * 32 + 2 * 16 * 32 + 4 * 192 * 32), 0, routed=0.5)
        assert [[block.name for block in la.sub_blocks] for la in view.layers] == [["self_attn", "mlp"]] * 2
        message = view.coverage.describe()
        assert message.startswith("0.5% of the weights in the layers stay dense")
        assert message.endswith(": mlp.gate.")

    def test_convolutions_and_weights_that_are_used_directly(self):
        view, _ = inspected(of("mamba", state_size=8, time_step_rank=4, expand=2))
        assert set(view.coverage.dense) == {"mixer.A_log", "mixer.conv1d", "mixer.dt_proj"}
        names = [weight.name for weight in view.layers[0].weights]
        assert names == ["mixer.in_proj", "mixer.x_proj", "mixer.out_proj"]

    def test_cross_attention_that_text_does_not_reach(self):
        sizes = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4}
        view, _ = inspected(of("bart", **sizes))
        assert view.coverage.dense == {
            f"encoder_attn.{n}": 2 * 32 * 32 for n in ("q_proj", "k_proj", "v_proj", "out_proj")
        }
        assert [[b.name for b in layer.sub_blocks] for layer in view.layers] == [["self_attn", "fc1+fc2"]] * 2

    def test_routers_that_are_linear_layers(self):
        """A linear with an output for each expert is a router; one of another width is not."""
        model = build("llama")
        for layer in model.model.layers:
            layer.mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            layer.mlp.router, layer.mlp.other = nn.Linear(32, 3), nn.Linear(32, 5)
        view = DecoderView(model)
        assert view.coverage.dense == {"mlp.router": 2 * 3 * 32}
        assert "mlp.other" in {weight.name for weight in view.layers[0].weights}

    def test_linears_that_do_something_else_with_their_weight(self):
        model = build("llama")
        linear = model.model.layers[1].mlp.up_proj
        linear.forward = lambda x: nn.functional.linear(x, linear.weight.abs())
        view, _ = inspected(model)
        assert view.coverage.dense == {"mlp.up_proj": 32 * 64}
        assert [len(layer.weights) for layer in view.layers] == [7, 6]

    def test_sub_blocks_stand_in_the_order_of_their_calls(self):
        """Bamba's mamba comes after its MLP in the module, but runs before it."""
        model = of("bamba", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
        assert [block.name for block in DecoderView(model).layers[0].sub_blocks] == ["feed_forward", "mamba"]
        view, _ = inspected(model)
        names = [[block.name for block in layer.sub_blocks] for layer in view.layers]
        assert names == [["mamba", "feed_forward"], ["self_attn", "feed_forward"]]

    def test_a_model_of_which_nothing_can_be_pruned(self):
        model = build("llama")
        model.model.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(4, 4, 2)) for _ in range(2))
        with pytest.raises(UserError, match=r"have no linear layer that can be pruned \(0\)"):
            DecoderView(model)

    def test_layerwise_and_resident_inspections_agree(self, tmp_path):
        model = of("mamba", state_size=8, time_step_rank=4)
        model.save_pretrained(tmp_path)
        streamed = load_by_layer(str(tmp_path), device="cpu")
        inspect(streamed.view, LayerwiseProvider(streamed, torch.device("cpu")))
        view, _ = inspected(model)
        assert streamed.view.describe() == view.describe()
        assert streamed.view.coverage == view.coverage
        assert all(p.is_meta for layer in streamed.view.layers for p in layer.module.parameters())


class TestZeros:
    def test_the_sparsity_of_a_pruned_model_is_reported(self, tmp_path):
        """In the summary of the dense model, and before it is pruned to less."""
        model = build("llama")
        list(prune(model, sequences(), PruneConfig(Sparsity.parse("60%"), "wanda")))
        found = count_zeros(DecoderView(model), ResidentProvider(DecoderView(model)))
        assert found.zeros / found.weights == pytest.approx(0.6, abs=0.02)
        assert inspected(model)[1] == found
        assert (
            found.describe(None) == f"{found.zeros} of 18432 prunable weights of the model are zero already (59.38%)."
        )
        assert "more than the 50.00% to prune" in found.describe(0.5)
        assert "this run calls that model dense" in found.describe(0.7)
        workspace = save_inputs(tmp_path, model)
        notes = [event.message for event in run_job(job(workspace, method="wanda")) if isinstance(event, Notice)]
        assert found.describe(0.5) in notes

    def test_a_dense_model_has_no_report(self):
        assert inspected(build("llama"))[1].describe(0.5) is None
        assert Inspection(weights=100_270_080, zeros=4_558_952).describe(0.5) is None  # Gemma 3 270M as published
