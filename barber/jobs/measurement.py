"""Evaluate a job's model at a stage (perplexities, texts, zero-shot tasks), and save it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from barber.data.token_sets import EvaluationSet
from barber.evaluation import zero_shot
from barber.evaluation.generation import generate
from barber.evaluation.perplexity import perplexity, perplexity_by_layer
from barber.events import (
    Event,
    PerplexityMeasured,
    Progress,
    Saved,
    Stage,
    TextGenerated,
    ZeroShotMeasured,
    ZeroShotSkipped,
)
from barber.job_spec import JobSpec
from barber.jobs.card import History, model_card
from barber.jobs.setup import JobSetup
from barber.models.saving import save_model
from barber.runs.saved_model import note_model, withdraw_model

TEXT_TOKENS = 120

DensePerplexities = dict[str, PerplexityMeasured]  # of one dense model, by EvaluationSet.fingerprint


@dataclass(frozen=True)
class Measurement:
    """Evaluates and saves the model of a job.

    Attributes:
        spec: the job.
        setup: the set-up of the job, with its model.
        evaluations: the data sets that perplexity is measured on.
        done: earlier events of the same job; measurements among them are not repeated.
        dense: perplexities of the dense model, which are not measured again; new ones are added.
    """

    spec: JobSpec
    setup: JobSetup
    evaluations: Sequence[EvaluationSet]
    done: Sequence[Event] = ()
    dense: DensePerplexities = field(default_factory=dict)

    def measure(self, stage: Stage) -> Iterator[Event]:
        """Measure perplexities, texts and zero-shot tasks of the model at a stage, except those in `done`."""
        known = [event for event in self.done if getattr(event, "stage", None) == stage]
        yield from self._perplexities(stage, {e.dataset for e in known if isinstance(e, PerplexityMeasured)})
        yield from self._texts(stage, {e.prompt for e in known if isinstance(e, TextGenerated)})
        measured = {e.task for e in known if isinstance(e, ZeroShotMeasured)}
        skipped = {e.task for e in self.done if isinstance(e, ZeroShotSkipped)}
        yield from self._tasks(stage, measured | skipped)

    def _perplexities(self, stage: Stage, known: set[str]) -> Iterator[Event]:
        """Measure perplexity on each data set; for a model in memory, Progress counts the windows of all data sets."""
        total, before = sum(len(data.tokens) for data in self.evaluations), 0
        for data in self.evaluations:
            if data.dataset in known:
                continue
            if stage == Stage.DENSE and data.fingerprint in self.dense:
                yield self.dense[data.fingerprint]
                continue
            for event in self._perplexity(stage, data):
                if isinstance(event, Progress) and not self.setup.layerwise:
                    event = replace(event, done=event.done + before, total=total)
                if isinstance(event, PerplexityMeasured) and stage == Stage.DENSE:
                    self.dense[data.fingerprint] = event
                yield event
            before += len(data.tokens)

    def _perplexity(self, stage: Stage, data: EvaluationSet) -> Iterator[Event]:
        """Measure perplexity on one data set."""
        context = self.setup.context
        if not self.setup.layerwise:
            return perplexity(self.setup.loaded.model, data, stage)
        state = None if stage == Stage.DENSE else lambda layer: context.states.load(layer, stage)
        return perplexity_by_layer(context, data, stage, state)

    def _texts(self, stage: Stage, known: set[str]) -> Iterator[Event]:
        loaded, prompts = self.setup.loaded, self.spec.prompts
        for index, prompt in enumerate(prompts):
            if prompt not in known:
                yield from generate(
                    loaded.model, loaded.tokenizer, prompt, stage, max_new_tokens=TEXT_TOKENS, seed=self.spec.seed
                )
            yield Progress(f"text {stage}", index + 1, len(prompts))

    def _tasks(self, stage: Stage, known: set[str]) -> Iterator[Event]:
        loaded = self.setup.loaded
        if tasks := tuple(task for task in self.spec.zeroshot_tasks if task not in known):
            yield from zero_shot.zero_shot(loaded.model, loaded.tokenizer, stage, tasks, limit=self.spec.zeroshot_limit)

    def save(self, stage: Stage, history: History) -> Iterator[Event]:
        """Save the model at its final stage, if the job has a `save_model` path and `done` has no such event.

        history: of the job so far, for the model card.
        """
        path = self.spec.save_model
        if path and Saved("model", str(path)) not in self.done:
            placing, card = None, model_card(self.spec, history)
            if self.spec.run_dir and self.spec.prune:
                withdraw_model(self.spec.run_dir, path)
                placing = partial(note_model, self.spec.run_dir, path)
            if self.setup.layerwise:
                self.setup.layerwise.save(path, lambda layer: self.setup.final_weights(layer, stage), placing, card)
            else:
                save_model(self.setup.loaded, path, placing, card)
            yield Saved("model", str(path))
