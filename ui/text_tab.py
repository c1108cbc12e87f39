"""Text: one prompt, continued by the dense, the initial and the rebuilt model, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

import gradio as gr

from analysis import frames
from barber.errors import UserError
from barber.events import Stage, TextGenerated
from ui.gpu import ONE_AT_A_TIME, on_gpu
from ui.hub import Hub
from ui.views import CALM, empty, intro, nothing_yet, results_there
from ui.worker import Worker

EMPTY = empty("Press <b>Run</b>. Here the dense, the pruned and the rebuilt model will continue the same prompt.")
TITLES = {Stage.DENSE: "Dense", Stage.INITIAL: "Initial mask", Stage.REBUILT: "Rebuilt"}
SECONDS_BETWEEN_UPDATES = 0.15


def build(hub: Hub, run_id: gr.State, ended: gr.events.Dependency) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        intro("<mark>Marked</mark>: still, word for word, what the dense model writes.")
        prompt = gr.Dropdown(
            [], label="Prompt", info="Pick one or type your own.", allow_custom_value=True, elem_id="prompt"
        )
        with gr.Row(equal_height=True):
            tokens = gr.Slider(10, 400, value=120, step=10, label="Tokens", min_width=180, elem_id="tokens")
            temperature = gr.Slider(
                0, 1.5, value=0, step=0.1, label="Temperature", min_width=180, elem_id="temperature"
            )
            seed = gr.Number(0, label="Seed", precision=0, min_width=90, elem_id="text-seed")
        with gr.Row():
            write = gr.Button("Write", variant="primary", scale=0, elem_id="write", min_width=140)
            stop = gr.Button("Stop", scale=0, elem_id="stop-writing", min_width=140)
        with gr.Row(equal_height=True, elem_classes="bb-columns"):
            columns = [gr.HTML(_column(stage, "", ""), elem_id=f"text-{stage}", min_width=220) for stage in Stage]

    def show(name: str | None):
        written = frames.texts(hub.events(name))
        if written.empty:
            return nothing_yet(EMPTY, 1 + len(columns))
        prompts = list(dict.fromkeys(written["prompt"]))
        first = written[written["prompt"] == prompts[0]].set_index("stage")["text"].to_dict()
        return *results_there(), gr.update(choices=prompts, value=prompts[0]), *_columns(prompts[0], first)

    def recall(name: str | None, prompt: str):
        """The run's own texts for one of its prompts."""
        written = frames.texts(hub.events(name))
        texts = written[written["prompt"] == prompt].set_index("stage")["text"].to_dict()
        return _columns(prompt, texts) if texts else [gr.skip()] * len(columns)

    def tell(name: str | None, prompt: str, tokens: float, temperature: float, seed: float | None) -> Iterator[list]:
        texts: dict[str, str] = {}
        worker = None
        try:
            if not (prompt or "").strip():
                raise UserError("Give a prompt: a few words for the models to continue.")
            worker = Worker(hub.texts(name, prompt, int(tokens), float(temperature), int(seed or 0)))
            for batch in worker.batches(SECONDS_BETWEEN_UPDATES):
                for event in batch:
                    if isinstance(event, TextGenerated):
                        texts[str(event.stage)] = event.text
                yield _columns(prompt, texts)
        except UserError as error:
            gr.Warning(str(error), title="Not possible")
            yield [gr.skip()] * len(columns)
        finally:
            if worker:
                worker.stop()

    ended.then(show, [run_id], [nothing, results, prompt, *columns], **CALM)
    prompt.input(recall, [run_id, prompt], columns, **CALM)
    telling = gr.on(
        [write.click],
        on_gpu(tell),
        [run_id, prompt, tokens, temperature, seed],
        columns,
        show_progress="hidden",
        api_visibility="private",
        **ONE_AT_A_TIME,
    )
    stop.click(fn=None, cancels=[telling], api_visibility="private")


def _columns(prompt: str, texts: dict[str, str]) -> list[str]:
    return [_column(stage, prompt, texts.get(str(stage), ""), texts.get(str(Stage.DENSE), "")) for stage in Stage]


def _column(stage: Stage, prompt: str, text: str, dense: str = "") -> str:
    """The continuation of one model; where it agrees with the dense text it is marked."""
    same, other = split_at_difference(text, dense) if stage is not Stage.DENSE else ("", text)
    mark = f"<mark>{escape(same)}</mark>" if same else ""
    body = f'<span class="bb-prompt">{escape(prompt)}</span>{mark}{escape(other)}'
    return f'<article class="bb-text bb-{stage}"><h3>{TITLES[stage]}</h3><p>{body}</p></article>'


def split_at_difference(text: str, dense: str) -> tuple[str, str]:
    """`text` cut in two where its words stop being those of `dense`."""
    words, reference = re.findall(r"\s*\S+", text), re.findall(r"\s*\S+", dense)
    count = 0
    while count < min(len(words), len(reference)) and words[count] == reference[count]:
        count += 1
    same = "".join(words[:count])
    return same, text[len(same) :]
