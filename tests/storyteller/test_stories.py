"""The generated stories: splits, facts and log-probabilities, and the checker on correct and on changed stories."""

import math
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from barber.errors import UserError
from barber.storyteller import OPENING, SPLITS, documents, generate_stories
from barber.storyteller.check import check, derivations, domain, sentences, template_pattern
from barber.storyteller.grammar import GRAMMAR
from barber.storyteller.stories import Slot, generate_story, parts
from barber.storyteller.world import KNOWLEDGE, world


def test_story_depends_on_split_seed_and_index_alone():
    assert documents("train", 3, seed=5) == documents("train", 7, seed=5)[:3]
    assert documents("train", 3, seed=5) != documents("train", 3, seed=6)


def test_splits_share_no_story():
    texts = [story.text for split in SPLITS for seed in (0, 1) for story in generate_stories(split, 100, seed)]
    assert len(set(texts)) == len(texts) == 800


def test_prompts_are_openings():
    for prompt, story in zip(documents("prompts", 50), generate_stories("prompts", 50), strict=True):
        assert story.text.startswith(prompt + " ")
        assert len(sentences(prompt)) == OPENING


def test_an_unknown_split_is_a_user_error():
    with pytest.raises(UserError, match=r"no split 'test'.*train, calibration, evaluation, prompts"):
        documents("test", 1)


@pytest.mark.process
def test_generating_stories_imports_no_torch():
    code = (
        "import sys; from barber.bundled import MODEL_DIR; from barber.storyteller import documents;"
        "documents('train', 1); print(MODEL_DIR.name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["storyteller", "False"]


def test_stories_use_all_templates_and_many_words():
    stories = generate_stories("train", 3000)
    assert len({word for story in stories for word in re.findall(r"[A-Za-z]+", story.text)}) >= 800
    assert {len(story.sentences) for story in stories} <= set(range(8, 15))
    assert all(len(sentences(story.text)) == len(story.sentences) for story in stories)
    assert len(world()["person"]) >= 200
    assert {sentence.template for story in stories for sentence in story.sentences} == {
        line for row in GRAMMAR.values() for line in row if not line.startswith("<")
    }


def test_knowledge_is_fixed_and_complete():
    ada = next(person for person in world()["person"] if person.name == "Ada")
    assert {"trade", "town", "food", "colour", "pet", "petname"} < set(ada.facts)
    assert ada.facts["he"] == "she"
    for kind, attributes in KNOWLEDGE.items():
        assert all(entity.text(attribute) for entity in world()[kind] for attribute in attributes)


def test_each_story_has_one_derivation_and_its_probability():
    for story in generate_stories("evaluation", 60):
        assert list(derivations(story.text)) == [pytest.approx(story.logprob, abs=1e-9)]


def test_the_frequency_of_openings_is_their_probability():
    stories = [generate_story(random.Random(index)) for index in range(4000)]
    openings = Counter(story.sentences[0].template for story in stories)
    assert set(openings) == set(GRAMMAR["who"])
    for count in openings.values():
        assert count == pytest.approx(4000 / 5, abs=5 * math.sqrt(4000 * 0.2 * 0.8))


def test_the_probabilities_of_all_endings_sum_to_one():
    """Of a contest story without its last sentence, for which only the template is drawn."""
    for story in [s for s in generate_stories("train", 300) if s.sentences[-1].template in GRAMMAR["prize_end"]][:10]:
        before = story.logprob + math.log(len(GRAMMAR["prize_end"]))
        total = sum(math.exp(check(text).logprob - before) for text in last_sentences(story))
        assert total == pytest.approx(1)


def last_sentences(story):
    """The story with each last sentence that the grammar allows."""
    before = " ".join(sentence.text for sentence in story.sentences[:-1])
    for template in GRAMMAR["prize_end"]:
        filled = [p if isinstance(p, str) else story.facts[p.name].text(p.attribute) for p in parts(template)]
        yield f"{before} {''.join(filled)}"


def test_generated_stories_are_consistent():
    assert all(check(text).consistent for text in documents("evaluation", 500, seed=3))


def corrupted(story, rng, wanted):
    """The story with one wrong slot: a fact of the world ("knowledge") or an entity of the story ("story")."""
    order = list(range(len(story.sentences)))
    rng.shuffle(order)
    for index in order:
        sentence = story.sentences[index]
        slots = [part for part in parts(sentence.template) if isinstance(part, Slot)]
        match = template_pattern(sentence.template).fullmatch(sentence.text)
        for group, slot in enumerate(slots, start=1):
            if slot.kind or slot.alias or (slot.attribute is not None) != (wanted == "knowledge"):
                continue
            wrong = rng.choice(sorted(domain(slot) - {match.group(group)}))
            text = sentence.text[: match.start(group)] + wrong + sentence.text[match.end(group) :]
            return index, [text if at == index else s.text for at, s in enumerate(story.sentences)]
    return None


@pytest.mark.parametrize("wanted", ["knowledge", "story"])
def test_the_checker_finds_one_wrong_fact(wanted):
    rng, found = random.Random(1), Counter()
    for story in generate_stories("evaluation", 80, seed=4):
        index, texts = corrupted(story, rng, wanted)
        verdict = check(" ".join(texts))
        assert not verdict.consistent
        assert verdict.logprob == -math.inf
        assert verdict.sentence >= index
        found[verdict.error] += 1
    assert found[wanted] > 0.8 * 80  # the parser may also take a wrong fact for the beginning of another sentence


def test_the_checker_finds_missing_repeated_and_foreign_sentences():
    story = generate_stories("evaluation", 1, seed=9)[0]
    lines = [sentence.text for sentence in story.sentences]
    assert check(" ".join(lines[:-1])).error == "unfinished"
    assert check(" ".join([*lines, lines[-1]])).error == "too long"
    assert check(" ".join([lines[0], lines[0], *lines[1:]])).error == "grammar"
    assert check(" ".join([*lines[:4], "The moon is made of cheese.", *lines[4:]])).sentence == 4
    assert check("").error == "unfinished"
    assert check(" ".join(lines[1:])).error == "grammar"


def test_the_checker_rejects_a_friend_who_is_the_hero():
    story = next(s for s in generate_stories("evaluation", 50) if {"hero", "friend"} <= set(s.facts))
    names = {story.facts["friend"].name: story.facts["hero"].name}
    assert not check(re.sub(r"\w+", lambda word: names.get(word[0], word[0]), story.text)).consistent


def test_articles_match_the_next_word():
    assert not [text for text in documents("train", 1000) if re.search(r"\b[Aa] [aeiou]", text)]
    assert not [text for text in documents("train", 1000) if re.search(r"\b[Aa]n (?!hour)[^aeiou]", text)]


def test_the_text_before_a_person_determines_which_one_it_is():
    """Otherwise a model that predicts word by word could not know whose name comes next."""
    roles: dict[str, set[str]] = {}
    for row in GRAMMAR.values():
        for line in row:
            before, *_ = [*parts(line), ""]
            if isinstance(before, Slot):
                before, slot = "", before
            else:
                slot = next((part for part in parts(line)[1:2] if isinstance(part, Slot)), None)
            if slot and not slot.kind and not slot.attribute and slot.name in ("hero", "friend", "winner"):
                roles.setdefault(before, set()).add(slot.alias or slot.name)
    assert roles[""] == {"hero"}
    assert all(len(names) == 1 for names in roles.values()), roles
