"""The story-ending task and the knowledge probe's questions."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from barber.bundled import MODEL_DIR
from barber.storyteller import probe
from barber.storyteller.check import check
from barber.storyteller.task import ENDINGS, ITEMS, TASKS_DIR, items
from barber.storyteller.world import KNOWLEDGE, world


def bundled():
    return [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]


def test_the_bundled_items_equal_new_ones():
    rows = bundled()
    assert len(rows) >= 500
    for row, item in zip(rows[:40], items(40), strict=True):
        assert (row["context"], tuple(row["endings"]), row["label"]) == (item.context, item.endings, item.label)


def test_only_the_right_ending_is_consistent_and_the_others_differ_by_one_fact():
    for item in items(40):
        right = item.endings[item.label].split()
        assert len(set(item.endings)) == ENDINGS
        for index, ending in enumerate(item.endings):
            assert check(f"{item.context} {ending}").consistent == (index == item.label)
            if index != item.label:
                words = ending.split()
                start = next(at for at, pair in enumerate(zip(right, words, strict=False)) if pair[0] != pair[1])
                same = next(
                    at for at, pair in enumerate(zip(right[::-1], words[::-1], strict=False)) if pair[0] != pair[1]
                )
                assert max(len(right), len(words)) - start - same <= 4  # one name, or one turn of a few words


def test_labels_are_balanced():
    labels = Counter(row["label"] for row in bundled())
    assert set(labels) == set(range(ENDINGS))
    assert max(labels.values()) < 0.35 * sum(labels.values())


@pytest.mark.process
def test_lm_eval_finds_the_task_from_any_directory(tmp_path):
    code = (
        "import sys; from lm_eval.tasks import TaskManager;"
        "tasks = TaskManager(include_defaults=False, include_path=sys.argv[1]).load(['story_ending'])['tasks'];"
        "task = tasks['story_ending']; doc = next(iter(task.test_docs()));"
        "right = task.doc_to_target(doc) == doc['label'];"
        "print(len(task.test_docs()), task.doc_to_choice(doc) == doc['endings'], right)"
    )
    root = str(TASKS_DIR.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(TASKS_DIR)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root, "PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.stdout.split() == [str(len(bundled())), "True", "True"], done.stderr


def test_each_question_is_about_one_fact_of_an_entity_in_its_prompt():
    asked = probe.questions(40)
    assert {question.kind for question in asked} == {f"{kind}.{a}" for kind, row in KNOWLEDGE.items() for a in row}
    owners = {(kind, entity.name): entity for kind in KNOWLEDGE for entity in world()[kind]}
    for question in asked:
        kind, attribute = question.kind.split(".")
        assert owners[kind, question.owner].text(attribute) == question.answer
        assert question.owner in question.prompt or kind == "animal" or kind == "thing" or attribute == "trade"
    assert len({(question.kind, question.owner) for question in asked}) == len(asked)


def test_the_probe_keeps_the_limit_of_questions_of_each_kind():
    assert set(Counter(question.kind for question in probe.questions(40, per_kind=3)).values()) == {3}


def test_the_harness_scores_the_bundled_model():
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    scorer = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR), batch_size=8)
    tasks = TaskManager(include_defaults=False, include_path=str(TASKS_DIR))
    results = lm_eval.simple_evaluate(scorer, tasks=["story_ending"], task_manager=tasks, limit=40, bootstrap_iters=0)
    scores = results["results"]["story_ending"]
    assert scores["acc,none"] > 0.6  # chance is 0.25
    assert scores["acc_norm,none"] > 0.6
