"""The world of the bundled model: stories, their probability, the reader, the tokenizer, the story-ending task."""

import math
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from barber.errors import UserError
from barber.storyteller import OPENING, SPLITS, documents, tales
from barber.storyteller.check import check, domain, readings, sentences, shape
from barber.storyteller.grammar import GRAMMAR
from barber.storyteller.stories import Slot, parts, tell
from barber.storyteller.world import KNOWLEDGE, world


def test_story_depends_on_split_seed_and_index_alone():
    assert documents("train", 3, seed=5) == documents("train", 7, seed=5)[:3]
    assert documents("train", 3, seed=5) != documents("train", 3, seed=6)


def test_splits_share_no_story():
    texts = [story.text for split in SPLITS for seed in (0, 1) for story in tales(split, 100, seed)]
    assert len(set(texts)) == len(texts) == 800


def test_prompts_are_openings():
    for prompt, story in zip(documents("prompts", 50), tales("prompts", 50), strict=True):
        assert story.text.startswith(prompt + " ")
        assert len(sentences(prompt)) == OPENING


def test_unknown_split_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"no split 'test'.*train, calibration, evaluation, prompts"):
        documents("test", 1)


@pytest.mark.process
def test_package_stays_light():
    code = (
        "import sys; from barber.bundled import MODEL_DIR; from barber.storyteller import documents;"
        "documents('train', 1); print(MODEL_DIR.name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["storyteller", "False"]


def test_the_world_is_wide_enough():
    told = tales("train", 3000)
    assert len({word for story in told for word in re.findall(r"[A-Za-z]+", story.text)}) >= 800
    assert {len(story.sentences) for story in told} <= set(range(8, 15))
    assert all(len(sentences(story.text)) == len(story.sentences) for story in told)
    assert len(world()["person"]) >= 200
    assert {sentence.template for story in told for sentence in story.sentences} == {
        line for row in GRAMMAR.values() for line in row if not line.startswith("<")
    }


def test_knowledge_is_fixed_and_complete():
    ada = next(person for person in world()["person"] if person.name == "Ada")
    assert {"trade", "town", "food", "colour", "pet", "petname"} < set(ada.facts)
    assert ada.facts["he"] == "she"
    for kind, attributes in KNOWLEDGE.items():
        assert all(entity.text(attribute) for entity in world()[kind] for attribute in attributes)


def test_each_story_has_one_derivation_and_its_probability():
    for story in tales("evaluation", 60):
        assert list(readings(story.text)) == [pytest.approx(story.logprob, abs=1e-9)]


def test_openings_come_as_often_as_their_probability_says():
    told = [tell(random.Random(index)) for index in range(4000)]
    openings = Counter(story.sentences[0].template for story in told)
    assert set(openings) == set(GRAMMAR["who"])
    for count in openings.values():
        assert count == pytest.approx(4000 / 5, abs=5 * math.sqrt(4000 * 0.2 * 0.8))


def test_probabilities_of_every_way_to_end_sum_to_one():
    """Given a story of a contest up to its last sentence, which has no draws but that of its template."""
    for story in [s for s in tales("train", 300) if s.sentences[-1].template in GRAMMAR["prize_end"]][:10]:
        before = story.logprob + math.log(len(GRAMMAR["prize_end"]))
        total = sum(math.exp(check(text).logprob - before) for text in last_sentences(story))
        assert total == pytest.approx(1)


def last_sentences(story):
    """The story with each ending that its plot allows."""
    before = " ".join(sentence.text for sentence in story.sentences[:-1])
    for template in GRAMMAR["prize_end"]:
        filled = [p if isinstance(p, str) else story.facts[p.name].text(p.attribute) for p in parts(template)]
        yield f"{before} {''.join(filled)}"


def test_reader_accepts_what_the_world_tells():
    assert all(check(text).consistent for text in documents("evaluation", 500, seed=3))


def corrupted(story, rng, wanted):
    """The story with one slot changed: a fact of the world ("knowledge") or a recalled fact of the story ("story")."""
    order = list(range(len(story.sentences)))
    rng.shuffle(order)
    for index in order:
        sentence = story.sentences[index]
        slots = [part for part in parts(sentence.template) if isinstance(part, Slot)]
        match = shape(sentence.template).fullmatch(sentence.text)
        for group, slot in enumerate(slots, start=1):
            if slot.kind or slot.alias or (slot.attribute is not None) != (wanted == "knowledge"):
                continue
            wrong = rng.choice(sorted(domain(slot) - {match.group(group)}))
            text = sentence.text[: match.start(group)] + wrong + sentence.text[match.end(group) :]
            return index, [text if at == index else s.text for at, s in enumerate(story.sentences)]
    return None


@pytest.mark.parametrize("wanted", ["knowledge", "story"])
def test_reader_finds_one_wrong_fact(wanted):
    rng, found = random.Random(1), Counter()
    for story in tales("evaluation", 80, seed=4):
        index, texts = corrupted(story, rng, wanted)
        verdict = check(" ".join(texts))
        assert not verdict.consistent
        assert verdict.logprob == -math.inf
        assert verdict.sentence >= index
        found[verdict.error] += 1
    assert found[wanted] > 0.8 * 80  # a wrong fact may also be read as the start of another way to go on


def test_reader_finds_broken_plots():
    story = tales("evaluation", 1, seed=9)[0]
    lines = [sentence.text for sentence in story.sentences]
    assert check(" ".join(lines[:-1])).error == "unfinished"
    assert check(" ".join([*lines, lines[-1]])).error == "too long"
    assert check(" ".join([lines[0], lines[0], *lines[1:]])).error == "grammar"
    assert check(" ".join([*lines[:4], "The moon is made of cheese.", *lines[4:]])).sentence == 4
    assert check("").error == "unfinished"
    assert check(" ".join(lines[1:])).error == "grammar"


def test_reader_rejects_a_friend_who_is_the_hero():
    story = next(s for s in tales("evaluation", 50) if {"hero", "friend"} <= set(s.facts))
    names = {story.facts["friend"].name: story.facts["hero"].name}
    assert not check(re.sub(r"\w+", lambda word: names.get(word[0], word[0]), story.text)).consistent


def test_articles_fit_their_words():
    assert not [text for text in documents("train", 1000) if re.search(r"\b[Aa] [aeiou]", text)]
    assert not [text for text in documents("train", 1000) if re.search(r"\b[Aa]n (?!hour)[^aeiou]", text)]


def test_what_comes_before_a_recalled_person_tells_who_it_is():
    """Otherwise a story could not be told word by word: after a name, nothing says whose sentence it is."""
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
