"""Perplexity against its definition, and generated text against transformers' generate()."""

from __future__ import annotations

import copy
import json
import math
import re
from itertools import chain, pairwise

import pytest
import torch

from barber.data.token_sets import EvaluationSet, load_calibration, load_evaluation
from barber.errors import UserError
from barber.evaluation import generation
from barber.evaluation import perplexity as perplexity_module
from barber.evaluation.generation import generate
from barber.evaluation.perplexity import perplexity
from barber.events import Event, Notice, PerplexityMeasured, Progress, TextGenerated
from tests.support.families import FAMILIES, build
from tests.support.tiny import SHARED, llama, tokenizer


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def windows(count: int = 7, seqlen: int = 20, vocabulary: int = 300) -> EvaluationSet:
    tokens = torch.randint(vocabulary, (count, seqlen), generator=torch.Generator().manual_seed(0))
    return EvaluationSet(tokens, "random (test)")


def by_definition(model, tokens: torch.Tensor) -> float:
    """exp of the mean over windows of the mean over predictions of the fp32 cross-entropy, one window at a time."""
    means = []
    for row in tokens:
        with torch.no_grad():
            logits = model(row[None]).logits[0].float()
        chances = torch.log_softmax(logits[:-1], dim=-1)
        means.append(-chances[torch.arange(len(row) - 1), row[1:]].double().mean())
    return math.exp(torch.stack(means).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_perplexity_is_that_of_the_papers_for_any_batch(monkeypatch, dtype, batch):
    monkeypatch.setattr(perplexity_module, "EVALUATION_BATCH_TOKENS", 20 * batch)
    model = llama(dtype=dtype)
    data = windows()
    *progress, measured = perplexity(model, data, "dense")
    assert all(event.phase == "perplexity dense" and event.where == "random (test)" for event in progress)
    assert [event.done for event in progress] == [*range(0, 7, batch), 7]
    assert {event.total for event in progress} == {7}
    expected = by_definition(model, data.tokens)
    assert measured.perplexity == pytest.approx(expected, rel=1e-5 if dtype is torch.float32 else 2e-2)
    named = {"window_start": "none", "low": measured.low, "high": measured.high}
    assert measured == PerplexityMeasured(
        "dense", "random (test)", 20, 140, measured.perplexity, measured.seconds, **named
    )
    assert measured.seconds > 0


def test_the_perplexity_of_uniform_logits_is_the_vocabulary():
    model = llama()
    model.lm_head.weight.data.zero_()
    *_, measured = perplexity(model, windows(), "initial")
    assert measured.perplexity == pytest.approx(model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e30])
def test_a_model_with_nan_has_perplexity_inf_and_the_event_is_json(weight):
    model = llama()
    model.lm_head.weight.data.fill_(weight)
    model.lm_head.weight.data[::2] *= -1
    *_, measured = perplexity(model, windows(), "initial")
    assert measured.perplexity == math.inf
    assert json.loads(json.dumps(measured.to_dict()))["perplexity"] == math.inf


@pytest.mark.parametrize("shape", [(0, 20), (3, 1), (20,)])
def test_too_few_tokens(model, shape):
    with pytest.raises(UserError, match="at least one window of 2 tokens"):
        next(perplexity(model, EvaluationSet(torch.zeros(shape, dtype=torch.int64), "nothing"), "dense"))


def test_evaluation_changes_neither_the_model_nor_the_grad_mode(tok):
    model = llama(attention_dropout=0.5).train()
    model.model.layers[0].mlp.eval()  # flags that differ are kept as they are, module by module
    flags = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    scores = set()
    for _ in range(2):
        for event in chain(generate(model, tok, "the cat", "dense"), perplexity(model, windows(), "dense")):
            assert torch.is_grad_enabled()
            assert [module.training for module in model.modules()] == flags
            last = event
        scores.add(last.perplexity)
    assert len(scores) == 1  # no dropout
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers(family, tok, monkeypatch):
    """With the cache, every family generates the tokens of the library's own greedy loop."""
    model = build(family)
    prompt = torch.randint(3, 96, (1, 6), generator=torch.Generator().manual_seed(1))
    model.generation_config.eos_token_id = None
    expected = model.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)[0].tolist()
    monkeypatch.setattr(generation, "_prompt_ids", lambda tokenizer, text: prompt[0].tolist())
    monkeypatch.setattr(generation, "_end_tokens", lambda model, tokenizer: set())
    monkeypatch.setattr(generation, "_decode", lambda tokenizer, ids: "".join(map(chr, ids)))
    *_, last = generate(model, tok, "", "dense", max_new_tokens=20)
    assert [ord(character) for character in last.text] == expected[6:]


def test_text_arrives_in_parts_that_grow(tok, monkeypatch):
    force(monkeypatch, tok, "the cat", " sat on the big red mat and saw the dog run to town")
    events = list(generate(llama(), tok, "the cat", "rebuilt"))
    assert all(isinstance(event, TextGenerated) for event in events)
    assert [event.done for event in events] == [False, False, False, True]  # 13 words, 4 at a time
    assert {(event.stage, event.prompt) for event in events} == {("rebuilt", "the cat")}
    for before, after in pairwise(events):
        assert after.text.startswith(before.text)
        assert len(after.text) > len(before.text)


def test_the_text_begins_with_the_space_after_the_prompt(tok, monkeypatch):
    force(monkeypatch, tok, "the cat sat", " on a mat and saw")
    *_, last = generate(llama(), tok, "the cat sat", "dense")
    assert last.text == " on a mat and saw"


def test_a_character_of_several_tokens_is_shown_when_complete(tok, monkeypatch):
    force(monkeypatch, tok, "the cat", " é日é日é日é日")
    events = list(generate(llama(), tok, "the cat", "dense"))
    assert len(events) > 3
    assert all("\ufffd" not in event.text for event in events)
    assert events[-1].text == " é日é日é日é日"


def force(monkeypatch, tok, prompt: str, continuation: str) -> None:
    """Make every model generate `continuation` and then the end-of-text token."""
    planned = [*tok(prompt + continuation).input_ids, tok.eos_token_id]
    monkeypatch.setattr(generation, "_next_token", lambda model, ids, *rest: (planned[len(ids)], None))


def test_closing_the_stream_stops_the_generation(model, tok, monkeypatch):
    steps = []
    real = generation._next_token
    monkeypatch.setattr(generation, "_next_token", lambda *rest: steps.append(1) or real(*rest))
    text = generate(model, tok, "the cat", "dense", max_new_tokens=40)
    next(text)
    text.close()
    assert len(steps) == generation.TOKENS_PER_EVENT


def test_the_end_token_and_the_last_position_end_the_text(tok, monkeypatch):
    model = llama()
    force(monkeypatch, tok, "the cat", " sat" * 500)
    *_, last = generate(model, tok, "the cat", "dense", max_new_tokens=500)
    assert last.text == " sat" * (64 - 3)
    monkeypatch.undo()
    model.generation_config.eos_token_id = [first_token(model, tok)]  # the config's end counts beside the tokenizer's
    assert [event.text for event in generate(model, tok, "the cat", "dense")] == [""]


def first_token(model, tok) -> int:
    return int(model(torch.tensor([tok("the cat").input_ids])).logits[0, -1].argmax())


def test_sampling_depends_on_its_seed_alone(model, tok):
    def text(seed: int, temperature: float = 1.0) -> str:
        torch.manual_seed(torch.seed() % 1000)
        *_, last = generate(model, tok, "the cat", "dense", max_new_tokens=20, temperature=temperature, seed=seed)
        return last.text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1
    assert len({text(seed, temperature=0.0) for seed in range(3)}) == 1
    state = torch.get_rng_state()
    list(generate(model, tok, "the cat", "dense", temperature=1.0))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_with_nan_generates_text(tok, temperature):
    model = llama()
    model.lm_head.weight.data.fill_(math.nan)
    *_, last = generate(model, tok, "the cat", "initial", max_new_tokens=8, temperature=temperature)
    assert last.done


def test_an_empty_prompt_starts_from_the_first_token(model, tok):
    *_, last = generate(model, tok, "", "dense", max_new_tokens=8)
    assert last.text
    assert generation._prompt_ids(tok, "") == [tok.bos_token_id]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (" the" * 80, {}, "has 81 tokens, but the model has room for 63"),
        ("the", {"temperature": -1.0}, "Temperature -1"),
        ("the", {"temperature": math.nan}, "Temperature nan"),
        ("the", {"max_new_tokens": 0}, "new tokens 0"),
    ],
)
def test_bad_requests(model, tok, prompt, options, message):
    with pytest.raises(UserError, match=message):
        next(generate(model, tok, prompt, "dense", **options))


def test_text_needs_a_tokenizer(model):
    with pytest.raises(UserError, match="no tokenizer"):
        next(generate(model, None, "the", "dense"))


def test_the_real_model_on_real_stories():
    """Perplexity and text of a pretrained model, which a wrong window, shift or mean would change."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, text = SHARED / "models" / "stories260K", SHARED / "text" / "tinystories.jsonl"
    if not (folder.is_dir() and text.is_file()):
        pytest.skip("../shared/models or ../shared/text is absent")
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    data = load_evaluation(str(text), tok, 256, windows=64, window_start="none")
    *_, measured = perplexity(model, data, "dense")
    assert isinstance(measured, PerplexityMeasured)
    assert measured.perplexity == pytest.approx(3.93, abs=0.02)
    *_, last = generate(model, tok, "Once upon a time", "dense", max_new_tokens=12)
    assert last.text == ", there was a little girl named Lily. She"
    assert load_calibration(str(text), tok, 4, 256, 0, evaluation=[str(text)]).tokens.shape == (4, 256)
    assert Progress("perplexity dense", 64, 64, data.dataset) in list(perplexity(model, data, "dense"))


def test_the_interval_is_that_of_the_mean_loss_of_windows():
    losses = [2.0, 2.5, 3.5, 4.0]
    error = (((1 + 0.25 + 0.25 + 1) / 3) ** 0.5) / 2
    low, high = perplexity_module.interval(losses)
    assert (low, high) == (pytest.approx(math.exp(3 - 1.96 * error)), pytest.approx(math.exp(3 + 1.96 * error)))
    assert perplexity_module.interval([700.0, 715.0])[1] == math.inf  # beyond a float
    assert perplexity_module.interval([2.0]) == perplexity_module.interval([2.0, math.nan]) == (None, None)
    data = windows()
    *_, measured = perplexity(llama(), data, "dense")
    assert measured.low < measured.perplexity < measured.high


def test_the_event_has_the_first_token_of_windows(tok, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on a mat " * 40)
    for start, begins in (("auto", "bos"), ("none", "none")):
        data = load_evaluation(str(tmp_path / "text.txt"), tok, 20, window_start=start)
        *_, measured = perplexity(llama(), data, "dense")
        assert measured.window_start == begins


def test_events_of_earlier_versions_still_open():
    old = {"event": "PerplexityMeasured", "stage": "dense", "dataset": "x", "seqlen": 2, "tokens": 4}
    event = Event.read(old | {"perplexity": 3.0, "seconds": 1.0})
    assert (event.window_start, event.low, event.high) == ("", None, None)


def test_an_infinite_perplexity_comes_with_its_cause():
    model = llama().half()
    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
        linear.weight.data.mul_(1e4)  # each is a number of float16, their product is none
    *_, notice, measured = perplexity(model, windows(), "dense")
    assert measured.perplexity == math.inf
    assert isinstance(notice, Notice)
    assert re.search(r"dense model on random \(test\) is inf: .* not finite in 7 of 7 windows, float16", notice.message)
    assert "--dtype bfloat16" in notice.message
    model = llama()
    model.lm_head.weight.data.mul_(1e6)
    *_, notice, measured = perplexity(model, windows(), "initial")
    assert measured.perplexity == math.inf
    assert "nats overflows exp" in notice.message
    assert not any(isinstance(event, Notice) for event in perplexity(llama(), windows(), "dense"))
