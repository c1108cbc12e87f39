"""Zero-shot tasks through the real lm-eval, on task files of the tests."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from barber.errors import UserError
from barber.evaluation import zero_shot as zeroshot
from barber.evaluation.zero_shot import PUBLISHED_TASKS, check_tasks, zero_shot
from barber.events import Progress, ZeroShotMeasured, ZeroShotSkipped
from tests.support.tiny import llama, story, tokenizer

# Warnings of lm-eval and its metrics.

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def items():
    return [
        {"start": story(seed, 8), "endings": [story(seed * 7 + n, 3) for n in range(3)], "answer": seed % 3}
        for seed in range(1, 13)
    ]


@pytest.fixture(scope="module")
def task(tmp_path_factory, items):
    """A task file with local data."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "endings.jsonl").write_text("\n".join(map(json.dumps, items)))
    path = folder / "endings.yaml"
    path.write_text(TASK.format(name="endings", data=folder / "endings.jsonl"))
    return str(path)


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """A task file whose data is on the hub, which is not reachable."""
    path = tmp_path_factory.mktemp("task") / "lost.yaml"
    path.write_text(TASK.format(name="lost", data="x.jsonl").replace("path: json", "path: nobody/nothing"))
    return str(path)


def share_right(model, tok, items) -> float:
    """The task's accuracy by its definition: the ending with the highest log-probability."""
    right = 0
    for item in items:
        scores = []
        for ending in item["endings"]:
            context = tok(item["start"]).input_ids
            whole = tok(item["start"] + " " + ending).input_ids
            with torch.no_grad():
                chances = torch.log_softmax(model(torch.tensor([whole])).logits[0], dim=-1)
            places = range(len(context), len(whole))
            scores.append(sum(float(chances[place - 1, whole[place]]) for place in places))
        right += scores.index(max(scores)) == item["answer"]
    return right / len(items)


def test_the_harness_scores_the_model_in_memory(task, items, capsys):
    model, tok = llama().train(), tokenizer()
    weights, config, special = copy.deepcopy(model.state_dict()), model.config.to_dict(), tok.special_tokens_map
    first, measured, last = zero_shot(model, tok, "rebuilt", [task])
    assert first == Progress("zero-shot rebuilt", 0, 1, task)
    assert last == Progress("zero-shot rebuilt", 1, 1)
    share = share_right(model.eval(), tok, items)
    assert 0 < share < 1
    assert measured.metrics == {"acc": pytest.approx(share)}
    n = len(items)
    assert measured.stderr == {"acc": pytest.approx((share * (1 - share) / (n - 1)) ** 0.5)}
    assert (measured.stage, measured.task, measured.samples) == ("rebuilt", "endings", n)
    assert json.loads(json.dumps(measured.to_dict()))["task"] == "endings"
    assert capsys.readouterr() == ("", "")  # no output and no progress bars of lm-eval
    # Nothing of the model or the tokenizer is changed: HFLM would add a padding token.
    assert (model.config.to_dict(), tok.special_tokens_map) == (config, special)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_the_bundled_task_runs():
    _, measured, _ = zero_shot(llama(max_position_embeddings=1024), tokenizer(), "dense", ["story_ending"], limit=3)
    assert isinstance(measured, ZeroShotMeasured)
    assert (measured.task, measured.samples) == ("story_ending", 3)
    assert set(measured.metrics) == set(measured.stderr) >= {"acc"}


def test_training_flags_are_kept(task):
    model = llama().train()
    list(zero_shot(model, tokenizer(), "dense", [task], limit=2))
    assert all(module.training for module in model.modules())


def test_a_group_gives_its_tasks_and_itself(tmp_path, task, monkeypatch):
    """A group of a task and of a group of two tasks, with their common accuracy."""
    from lm_eval.tasks import TaskManager

    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(Path(task).read_text().replace("task: endings", f"task: {name}"))
    for name, members in {"pair": "[two, three]", "all": "[one, pair]"}.items():
        mean = "[{metric: acc, weight_by_size: true}]"
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask: {members}\naggregate_metric_list: {mean}\n")
    manager = TaskManager(include_defaults=False, include_path=tmp_path)
    monkeypatch.setattr(zeroshot, "_task_manager", lambda with_all: manager)
    measured = list(zero_shot(llama(), tokenizer(), "dense", ["all"]))[1:-1]
    assert {event.task: event.samples for event in measured} == {
        "one": 12,
        "two": 12,
        "three": 12,
        "pair": 24,
        "all": 36,
    }
    assert len(measured) == 5
    assert len({event.metrics["acc"] for event in measured}) == 1


def test_a_task_without_data_is_skipped_and_the_others_run(lost, task):
    events = list(zero_shot(llama(), tokenizer(), "dense", [lost, task], limit=4))
    assert [type(event) for event in events] == [Progress, ZeroShotSkipped, Progress, ZeroShotMeasured, Progress]
    skipped = events[1]
    assert skipped.task == lost
    assert skipped.reason.endswith("cannot be loaded because the hub cannot be reached: connect to the network.")
    assert "\n" not in skipped.reason
    assert events[3].samples == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [endings\n  b: c", "it is not YAML in line 2"),
        ("task: endings\0", "it is not YAML"),
        ("", "lm-eval refuses it"),
        ("task: endings\ninclude: gone.yaml\n", r"a file that it names is missing \(.*gone.yaml\)"),
        (TASK.format(name="endings", data="gone.jsonl"), r"missing \(.*gone.jsonl"),
        ("task: endings\noutput_type: nothing\n", "invalid output_type"),
    ],
)
def test_a_broken_task_file_is_refused_before_any_work(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        check_tasks([str(path)])
    assert "\n" not in str(caught.value)


def test_unsafe_tasks_are_not_run(tmp_path, task):
    path = tmp_path / "unsafe.yaml"
    path.write_text(Path(task).read_text().replace("task: endings", "task: unsafe") + "unsafe_code: true\n")
    with pytest.raises(UserError, match="runs code that the model writes"):
        next(zero_shot(llama(), tokenizer(), "dense", [str(path)]))


def test_results_become_events():
    """Groups, filters and missing standard errors, in the form in which lm-eval gives them."""
    results = {
        "results": {
            "both": {"alias": "both", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 30},
            "strict": {
                "exact_match,strict": 1,
                "exact_match_stderr,strict": "N/A",
                "exact_match,loose": 0.25,
                "exact_match_stderr,loose": 0.02,
                "name": "strict",
                "sample_len": 10,
            },
        }
    }
    both, strict = zeroshot._measured(results, "dense")
    assert both == ZeroShotMeasured("dense", "both", {"acc": 0.5}, {"acc": 0.1}, 30)
    assert strict.metrics == {"exact_match,strict": 1.0, "exact_match,loose": 0.25}
    assert strict.stderr == {"exact_match,strict": None, "exact_match,loose": 0.02}


def test_lm_eval_has_every_published_task_and_unknown_names_are_refused(task):
    """The one test that builds lm-eval's index of all tasks, which takes seconds."""
    index = zeroshot._task_manager(with_all=True).task_index
    assert set(PUBLISHED_TASKS) <= set(index)
    check_tasks([*PUBLISHED_TASKS, "wikitext", "mmlu", task, "story_ending"])
    with pytest.raises(UserError, match=r"'arc_hard', '/no/such.yaml' is unknown"):
        check_tasks(["boolq", "arc_hard", "/no/such.yaml"])
    events = list(zero_shot(llama(), tokenizer(), "dense", limit=2))  # the seven, offline
    assert [event.task for event in events if isinstance(event, ZeroShotSkipped)] == list(PUBLISHED_TASKS)


def test_known_names_need_no_index(monkeypatch):
    monkeypatch.setattr(zeroshot, "_task_manager", None)
    check_tasks([*PUBLISHED_TASKS, "story_ending"])


def test_bad_requests(task):
    with pytest.raises(UserError, match="no tokenizer"):
        next(zero_shot(llama(), None, "dense", [task]))
    with pytest.raises(UserError, match="Limit 0"):
        next(zero_shot(llama(), tokenizer(), "dense", [task], limit=0))


@pytest.mark.process
def test_importing_the_module_does_not_import_lm_eval():
    code = "import sys, barber.evaluation.zero_shot; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_answers_beyond_the_positions_of_the_model_are_reported():
    (event,) = [e for e in zero_shot(llama(max_position_embeddings=8), tokenizer(), "dense", ["story_ending"], limit=2)
                if not isinstance(e, Progress)]  # fmt: skip
    assert isinstance(event, ZeroShotSkipped)
    assert event.reason.startswith("Task story_ending cannot be run on this model")
    assert "longer than the positions" in event.reason
