"""Text: one prompt, continued by the dense, the initial and the rebuilt model, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

import gradio as gr

from analysis import frames, stories, wording
from barber.bundled import STORYTELLER
from barber.config import PruneConfig
from barber.errors import UserError
from barber.events import LayerInitialised, Progress, RunStarted, Stage, SubBlockRebuilt, TextGenerated
from barber.settings import SETTINGS
from ui.gpu import SHARED, on_gpu
from ui.hub import Hub, reached
from ui.settings import sample_prompts
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled
from ui.visitors import MOST_IN_PROMPT, check_prompt
from ui.worker import Worker

EMPTY = unfilled("how the dense, the initial and the rebuilt model continue a prompt.")
TITLES = {Stage.DENSE: "Dense", Stage.INITIAL: "Initial mask", Stage.REBUILT: "Rebuilt"}
SECONDS_BETWEEN_UPDATES = 0.15
LEGEND = "<mark>Marked</mark>: the start that equals the text of the dense model, word for word. "
LEGEND_BUNDLED = (
    "<span class='bb-wrong'>Underlined</span>: the first sentence that breaks the rules of the bundled stories."
)


def build(hub: Hub, run_id: gr.State, redraw: gr.State) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        legend = intro(LEGEND)
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(
                label="Prompt",
                lines=3,
                max_lines=6,
                max_length=MOST_IN_PROMPT,
                scale=3,
                min_width=260,
                elem_id="prompt",
            )
            sample = gr.Dropdown([], label="Example prompts", scale=2, min_width=220, elem_id="samples")
        with gr.Row(equal_height=True):
            tokens = gr.Slider(10, 400, value=200, step=10, label="New tokens", min_width=260, elem_id="tokens")
            temperature = gr.Slider(
                0, 1.5, value=0, step=0.1, label="Temperature", min_width=260, elem_id="temperature"
            )
            seed = gr.Textbox("0", label="Seed", max_lines=1, min_width=90, elem_id="text-seed")
        problem = gr.HTML(elem_id="text-problem")
        with gr.Row():
            write = gr.Button("Generate", variant="primary", scale=0, elem_id="write", min_width=140)
            stop = gr.Button("Stop", interactive=False, scale=0, elem_id="stop-writing", min_width=140)
        with gr.Row(equal_height=True, elem_classes="bb-columns"):
            columns = [gr.HTML(elem_id=f"text-{stage}", min_width=220) for stage in Stage]

    def show(name: str | None):
        events = hub.events(name)
        written = _texts(events)
        if not written:
            return nothing_yet(why_empty(events), 3 + len(columns))
        run = _run(events)
        prompts = list(dict.fromkeys([*written, *sample_prompts(run.model)]))
        first = prompts[0]
        return (
            *results_there(),
            f'<p class="bb-intro">{LEGEND}{LEGEND_BUNDLED if run.model == STORYTELLER else ""}</p>',
            first,
            gr.update(choices=prompts, value=first),
            *_columns(run, first, written[first]),
        )

    def recall(name: str | None, sample: str):
        """The example as the prompt, with its texts where the run has continued it already."""
        events = hub.events(name)
        return sample, *_columns(_run(events), sample, _texts(events).get(sample, {}))

    def write_texts(
        name: str | None, token: str, prompt: str, tokens: float, temperature: float, seed: str | None
    ) -> Iterator[list]:
        texts: dict[str, str] = {}
        worker, waiting, same = None, "", [gr.skip()] * (len(columns) + 1)
        try:
            check_prompt(prompt)
            number = SETTINGS["seed"].read(seed)
            run = _run(hub.events(name))
            worker = Worker(hub.texts(name, prompt, int(tokens), float(temperature), number))
            for batch in worker.batches(SECONDS_BETWEEN_UPDATES):
                if hub.writing(name) != token:
                    yield same
                    return
                for event in batch:
                    if isinstance(event, TextGenerated):
                        texts[str(event.stage)] = event.text
                    if isinstance(event, Progress):
                        waiting = f"Waiting: {event.where}." if event.phase == "waiting" else ""
                if texts or waiting:  # before that, the prompt may still be refused
                    yield [*_columns(run, prompt if texts else "", texts, waiting), ""]
        except UserError as error:
            yield [*same[:-1], f'<p class="bb-note" role="alert">{escape(str(error))}</p>']
        finally:
            hub.end_writing(name, token)
            if worker:
                worker.stop()

    redraw.change(show, run_id, [nothing, results, legend, prompt, sample, *columns], **CALM)
    sample.input(recall, [run_id, sample], [prompt, *columns], **CALM)
    idle, busy = ([gr.update(interactive=on) for on in state] for state in ((True, False), (False, True)))
    buttons = [write, stop]

    def begin(name: str | None):
        return *busy, hub.begin_writing(name), ""

    def halt(name: str | None):
        hub.end_writing(name)
        return idle

    writing = gr.State("")
    writing_done = gr.on([write.click, prompt.submit], begin, run_id, [*buttons, writing, problem], **CALM).then(
        on_gpu(write_texts),
        [run_id, writing, prompt, tokens, temperature, seed],
        [*columns, problem],
        trigger_mode="multiple",  # a generation that was just stopped may not have ended yet
        show_progress="hidden",
        api_visibility="private",
        **SHARED,
    )
    writing_done.then(lambda name: busy if hub.writing(name) else idle, run_id, buttons, **CALM)
    stop.click(halt, run_id, buttons, **CALM)


def why_empty(events: list) -> str:
    """Why a run has no texts to show."""
    if not events:
        return EMPTY
    if any(
        isinstance(event, (LayerInitialised, SubBlockRebuilt)) for event in events
    ):  # the texts of the dense model come before these
        return empty("This run generated no text: its model was read layer by layer, or has no tokenizer.")
    return empty("The run was stopped before the dense model had generated any text.")


def _texts(events: list) -> dict[str, dict[str, str]]:
    """Prompt -> stage -> continuation, of the run's own prompts."""
    written: dict[str, dict[str, str]] = {}
    for row in frames.texts(events).itertuples():
        written.setdefault(row.prompt, {})[row.stage] = row.text
    return written


class _Run(NamedTuple):
    """What the columns show of a run: its model, whether it has a rebuild, and the stages that it reached."""

    model: str
    rebuilds: bool
    stages: list[Stage]


def _run(events: list) -> _Run:
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    if not started:
        return _Run("", True, reached(events))
    return _Run(started.model, PruneConfig.from_dict(started.config).refined, reached(events))


def _columns(run: _Run, prompt: str, texts: Mapping[str, str], waiting: str = "") -> list[str]:
    """The three columns; the bundled model's stories with a verdict. waiting: what the job waits for, if anything."""
    return [_column(run, stage, prompt, texts.get(stage, ""), texts.get(Stage.DENSE, ""), waiting) for stage in Stage]


def _column(run: _Run, stage: Stage, prompt: str, text: str, dense: str, waiting: str) -> str:
    absent = (
        "This run has no rebuild."
        if stage == Stage.REBUILT and not run.rebuilds
        else "The run did not reach this stage."
    )
    reading = stories.Reading(text, "", "", waiting if stage in run.stages else absent)
    if text and run.model == STORYTELLER:
        reading = stories.read(prompt, text)
    same = 0 if stage is Stage.DENSE else frames.agreement(text, dense)
    body = marked(reading.good, same)
    wrong = f'<span class="bb-wrong">{marked(reading.wrong, same - len(reading.good))}</span>' if reading.wrong else ""
    shown = reading.remark and (stage is Stage.DENSE or reading.remark != stories.UNKNOWN_PROMPT)  # that one only once
    remarks = [reading.remark if shown else "", wording.describe(text, dense if stage is not Stage.DENSE else "")]
    remark = "".join(f'<p class="bb-remark">{escape(sentence)}</p>' for sentence in remarks if sentence)
    return (
        f'<article class="bb-text bb-{stage}"><h3>{TITLES[stage]}</h3>'
        f'<p><span class="bb-prompt">{escape(prompt)}</span>{body}{wrong}{escape(reading.rest)}</p>{remark}</article>'
    )


def marked(text: str, count: int) -> str:
    """`text` with its first `count` characters marked, but for a blank before them."""
    blank = text[: len(text) - len(text.lstrip())]
    same = text[len(blank) : max(count, 0)]
    rest = escape(text[len(blank) + len(same) :])
    return f"{blank}<mark>{escape(same)}</mark>{rest}" if same else escape(text)
