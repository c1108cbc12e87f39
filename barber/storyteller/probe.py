"""The knowledge probe: it measures which facts of the world the weights of a model store.

Each fact is tested once, at its first mention in a story: the prompt is the story up to this position, and the greedy
continuation of the model must be the text of the fact. A fact that the same story mentions earlier is not tested.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from barber.storyteller import tales
from barber.storyteller.check import shape
from barber.storyteller.stories import Slot, Story, parts
from barber.storyteller.world import KNOWLEDGE

BATCH = 64  # questions in one batch


@dataclass(frozen=True)
class Question:
    """The test of one fact.

    Attributes:
        kind: kind of fact, like "person.town".
        owner: name of the entity that the fact belongs to.
        prompt: text of the story before the fact.
        answer: text of the fact.
    """

    kind: str
    owner: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Score:
    """The number of right answers and of questions."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else float("nan")


def questions(count: int, seed: int = 0, per_kind: int | None = None) -> list[Question]:
    """Return one question for each fact of the world that the first `count` evaluation stories mention.

    per_kind: maximum number of questions of each kind, if given.
    """
    found: dict[tuple[str, str], Question] = {}
    counts: dict[str, int] = {}
    for story in tales("evaluation", count, seed):
        for question in _asked_by(story):
            key = (question.kind, question.owner)
            if key not in found and (per_kind is None or counts.get(question.kind, 0) < per_kind):
                found[key] = question
                counts[question.kind] = counts.get(question.kind, 0) + 1
    return list(found.values())


def _asked_by(story: Story) -> Iterator[Question]:
    given: set[tuple[str, str]] = set()
    before = ""
    for sentence in story.sentences:
        slots = [part for part in parts(sentence.template) if isinstance(part, Slot)]
        match = shape(sentence.template).fullmatch(sentence.text)
        for group, slot in enumerate(slots, start=1):
            entity = story.facts[slot.name]
            if slot.attribute not in KNOWLEDGE.get(entity.kind, ()) or (entity.name, slot.attribute) in given:
                continue
            given.add((entity.name, slot.attribute))
            prompt = before + sentence.text[: match.start(group)]
            yield Question(f"{entity.kind}.{slot.attribute}", entity.name, prompt.rstrip(), match.group(group))
        before += sentence.text + " "


@torch.no_grad()
def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: list[Question]) -> dict[str, Score]:
    """Return the score of a model for each kind of fact, sorted by kind.

    An answer is right if each of its tokens is the most likely one, which is the same as greedy decoding.
    """
    right: dict[str, list[bool]] = {question.kind: [] for question in sorted(asked, key=lambda question: question.kind)}
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        prompts = tokenizer([question.prompt for question in batch])["input_ids"]
        whole = tokenizer([f"{question.prompt} {question.answer}" for question in batch])["input_ids"]
        longest = max(map(len, whole))
        padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in whole]
        likeliest = model(input_ids=torch.tensor(padded, device=model.device)).logits.argmax(-1).tolist()
        for question, prompt, ids, best in zip(batch, prompts, whole, likeliest, strict=True):
            right[question.kind].append(best[len(prompt) - 1 : len(ids) - 1] == ids[len(prompt) :])
    return {kind: Score(sum(answers), len(answers)) for kind, answers in right.items()}


def overall(scores: dict[str, Score]) -> Score:
    """Return the total score of all kinds."""
    return Score(sum(score.right for score in scores.values()), sum(score.asked for score in scores.values()))
