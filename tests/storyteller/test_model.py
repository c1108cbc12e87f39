"""The bundled model itself, on small samples, and the recipe that makes it."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from barber.bundled import MODEL_DIR
from barber.data.token_sets import load_calibration
from barber.errors import UserError
from barber.events import StageReached
from barber.jobs.presets import FIRST_LOOK
from barber.models.loading import load
from barber.pruning.prune import prune
from barber.storyteller import OPENING, card, documents, generate_stories, measure, probe
from barber.storyteller.check import check
from barber.storyteller.tokens import build_tokenizer, token_stream, words
from barber.storyteller.train import Recipe, Step, build_model, train, training_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def evaluation():
    return generate_stories("evaluation", 100, seed=7)


@pytest.fixture(scope="module")
def dense(model, tokenizer, evaluation):
    return measure.story_perplexity(model, tokenizer, [story.text for story in evaluation])


def test_the_folder_is_small_and_complete(model):
    assert isinstance(model, LlamaForCausalLM)
    assert 300_000 <= sum(weight.numel() for weight in model.parameters()) <= 3_000_000
    assert (MODEL_DIR / "model.safetensors").stat().st_size < 8e6
    assert json.loads((MODEL_DIR / "config.json").read_text())["dtype"] == "float16"
    assert model.config.max_position_embeddings >= 512
    assert {"README.md", "loss.svg", "generation_config.json"} <= {path.name for path in MODEL_DIR.iterdir()}


def test_the_bundled_tokenizer_equals_a_new_one(tokenizer):
    built = build_tokenizer(512)
    text = documents("evaluation", 1)[0]
    assert tokenizer(text)["input_ids"] == built(text)["input_ids"]
    assert tokenizer.get_vocab() == built.get_vocab()


def test_the_tokenizer_adds_bos_and_decodes_to_the_same_text(tokenizer):
    for text in [*documents("evaluation", 50), "A robot's 3 odd words, unknown here!"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(tokenizer.tokenize(f"The {word}")) == 2 for word in words())


def test_the_token_stream_concatenates_stories(tokenizer):
    texts = documents("calibration", 5)
    stream = token_stream(tokenizer, texts)
    assert stream.dtype == np.uint16
    expected = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert stream.tolist() == expected


def test_the_best_perplexity_is_that_of_the_generator(tokenizer, evaluation):
    per_token = [story.logprob / len(tokenizer(story.text)["input_ids"]) for story in evaluation]
    best = measure.best_perplexity(tokenizer, evaluation)
    assert math.exp(-max(per_token)) < best < math.exp(-min(per_token))


def test_perplexity_is_near_the_best_possible(dense, tokenizer, evaluation):
    best = measure.best_perplexity(tokenizer, evaluation)
    assert best * 0.98 < dense < best * 1.08


def test_greedy_stories_are_consistent(model, tokenizer):
    found = measure.continue_greedily(model, tokenizer, 40)
    assert sum(continuation.error is None for continuation in found) >= 34
    for continuation, prompt in zip(found, documents("prompts", 40), strict=True):
        assert continuation.text.startswith(prompt)


def test_the_model_knows_the_facts(model, tokenizer):
    asked = probe.questions(150, per_kind=12)
    scores = probe.score_answers(model, tokenizer, asked)
    assert sum(score.asked for score in scores.values()) == len(asked)
    assert probe.overall(scores).share > 0.85


def test_random_weights_score_near_zero_in_the_probe(tokenizer):
    blank = build_model(Recipe(), tokenizer).eval()
    assert probe.overall(probe.score_answers(blank, tokenizer, probe.questions(20))).share < 0.1


def test_pruning_raises_the_perplexity(model, tokenizer, evaluation, dense):
    texts = [story.text for story in evaluation]
    ratios = []
    for pattern, zeros in (({"share": 0.6}, 0.6), ({"n_of_m": (2, 4)}, 0.5)):
        pruned = copy.deepcopy(model)
        measure.prune_by_magnitude(pruned, **pattern)
        weight = pruned.model.layers[0].self_attn.q_proj.weight
        assert (weight == 0).float().mean().item() == pytest.approx(zeros, abs=1e-3)
        ratios.append(measure.story_perplexity(pruned, tokenizer, texts) / dense)
    assert max(ratios) >= 1.5


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 for Muon")
SMALL = {"hidden": 32, "layers": 1, "intermediate": 64, "stories": 200, "batch_tokens": 1024, "compile": False}


@needs_muon
def test_training_lowers_the_loss_and_the_saved_folder_loads(tmp_path, tokenizer):
    recipe = Recipe(**SMALL, steps=60, warmup=4)
    tokens = training_tokens(recipe, tokenizer)
    network = build_model(recipe, tokenizer)
    history = list(train(network, tokenizer, tokens, recipe))
    assert [step.step for step in history] == list(range(1, 61))
    assert min(step.loss for step in history) < history[0].loss - 1
    assert 0.9 < history[-1].tokens / (60 * recipe.batch_tokens) <= 1
    loaded = card.save(network, tokenizer, tmp_path)
    figures = card.measure_figures(loaded, tokenizer, stories=8, generated=2)
    assert figures.best < figures.dense
    assert figures.consistent == 0
    card.write_card(tmp_path, recipe, history, 1234, figures)
    text = (tmp_path / "README.md").read_text()
    assert f"{figures.dense:.4f}" in text
    assert "1,234 parameters" in text
    assert AutoTokenizer.from_pretrained(tmp_path)("Ada")["input_ids"][0] == tokenizer.bos_token_id


@needs_muon
def test_training_is_deterministic(tokenizer):
    recipe = Recipe(**SMALL, steps=3)
    tokens = training_tokens(recipe, tokenizer)
    runs = [train(build_model(recipe, tokenizer), tokenizer, tokens, recipe) for _ in range(2)]
    losses = [[step.loss for step in run] for run in runs]
    assert losses[0] == losses[1]


def test_the_loss_curve_has_a_point_for_each_step():
    picture = card.loss_curve([Step(1, 10, 7.0, 0.1), Step(2, 20, 0.5, 0.2)], floor=0.35)
    assert picture.startswith("<svg")
    assert len(picture.split('points="')[1].split('"')[0].split()) == 2


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"steps": 0}])
def test_a_recipe_without_time_or_steps_is_a_user_error(wrong):
    with pytest.raises(UserError, match="above zero"):
        Recipe(**wrong)


def test_the_rebuild_recovers_perplexity_and_consistency_in_the_preset(tokenizer):
    """The app's default job: continuations stay consistent for longer with the rebuilt mask than with the initial."""
    loaded = load(FIRST_LOOK.model)
    calibration = load_calibration(FIRST_LOOK.calibration, loaded.tokenizer, FIRST_LOOK.nsamples, FIRST_LOOK.seqlen, 0)
    texts, perplexities, sentences = documents("evaluation", 30), {}, {}
    for event in prune(loaded.model, calibration, FIRST_LOOK.prune):
        if isinstance(event, StageReached):
            found = measure.continue_greedily(loaded.model, tokenizer, 12)
            sentences[event.stage] = sum(check(continuation.text).sentence - OPENING for continuation in found)
            perplexities[event.stage] = measure.story_perplexity(loaded.model, tokenizer, texts)
    assert perplexities["rebuilt"] < 0.7 * perplexities["initial"]
    assert sentences["rebuilt"] > 2 * sentences["initial"]
