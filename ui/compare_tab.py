"""Compare: two to four runs beside each other, what differs in their settings, results and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr

from analysis import compare, frames
from analysis.figures import STAGE_LABEL
from barber.errors import UserError
from barber.events import Event, Stage
from barber.job_spec import JobSpec
from barber.runs.directory import RunDirectory
from barber.settings import SHOWN
from ui import settings
from ui.history import Card
from ui.hub import Hub
from ui.plots import chart, drawn
from ui.tables import cell
from ui.text_tab import marked
from ui.views import CALM, empty, intro, nothing_yet, results_there

EMPTY = empty("Tick two to four runs in the view <b>Runs</b>, then press <b>Compare</b>.")
NO_MASKS = "These two runs have no matrix of the same shape in common, so their masks cannot be compared."
AGREEMENT = (
    "Of the weights that at least one of the two final masks prunes, the share that both prune (Jaccard index): on "
    "average {:.3f}. Two masks of these ratios that know nothing of each other would have {:.3f}."
)
FLIPS = "Share of mask bits that the rebuild changed in each weight matrix, on one scale."


def build(hub: Hub, compared: gr.State) -> None:
    """The view. compared: the ids of the runs; its `change` is the event to draw the view at."""
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        which = gr.HTML(elem_id="compared-runs")
        differing = gr.HTML(elem_id="compared-settings")
        perplexity = chart("compared-perplexities")
        with gr.Column() as with_errors:
            errors = chart("compared-errors")
        with gr.Column() as with_flips:
            flips = chart("compared-flips")
        intro("Agreement of the final masks of two runs, in each weight matrix.")
        pair = gr.Dropdown([], label="Runs", elem_id="compared-pair", min_width=120)
        said = gr.HTML(elem_id="compared-agreement")
        with gr.Column() as with_masks:
            masks = chart("compared-masks")
        with gr.Column() as with_texts:
            with gr.Row():
                prompt = gr.Dropdown([], label="Prompt", elem_id="compared-prompt", scale=3)
                stage = gr.Dropdown([], label="Model", elem_id="compared-stage", scale=1, min_width=120)
            texts = gr.HTML(elem_id="compared-texts")

    def show(ids: Sequence[str]):
        cards = {label: card for label, run in zip(compare.LABELS, ids, strict=False) if (card := _card(hub, run))}
        if len(cards) < 2:
            return nothing_yet(EMPTY, 18)
        runs = {label: hub.events(card.run) for label, card in cards.items()}
        measured, blocks, moved = compare.perplexities(runs), compare.sub_blocks(runs), compare.flips(runs)
        pairs = [(f"{first} and {second}", f"{first}{second}") for first, second in compare.pairs(list(cards))]
        written = compare.texts(runs)
        prompts, stages = (list(dict.fromkeys(written[column])) for column in ("prompt", "stage"))
        stages = [(STAGE_LABEL[Stage(one)], one) for one in stages]
        first_text = (prompts[0], stages[-1][1]) if prompts else (None, None)
        return (
            *results_there(),
            _titles(cards),
            _differences(cards),
            *(
                drawn(compare.perplexity_figure(measured), "perplexities", "Perplexity of each run", measured)
                if len(measured)
                else (gr.skip(), {"name": "None of these runs measured a perplexity.", "numbers": ""})
            ),
            gr.update(visible=bool(len(blocks))),
            *_figure(compare.error_figure, blocks, "errors", "Output error of each sub-block with its final weights"),
            gr.update(visible=bool(len(moved))),
            *_figure(compare.flip_figure, moved, "flips", FLIPS),
            gr.update(choices=pairs, value=pairs[0][1], visible=len(pairs) > 1),
            *agree(ids, pairs[0][1]),
            gr.update(visible=bool(prompts)),
            gr.update(choices=prompts, value=first_text[0]),
            gr.update(choices=stages, value=first_text[1]),
            _texts(runs, *first_text),
        )

    def agree(ids: Sequence[str], pair: str) -> tuple:
        """The agreement of the masks of two runs, by their labels."""
        chosen = [ids[compare.LABELS.index(label)] for label in pair]
        names = [(row.layer, row.name) for row in frames.modules(hub.events(chosen[0])).itertuples(index=False)]
        try:
            found = compare.jaccard(*(RunDirectory(hub.path(run)) for run in chosen), names)
        except UserError as error:
            return f'<p class="bb-note">{escape(str(error))}</p>', gr.update(visible=False), gr.skip(), gr.skip()
        if found.empty:
            return f'<p class="bb-intro">{NO_MASKS}</p>', gr.update(visible=False), gr.skip(), gr.skip()
        words = AGREEMENT.format(found["jaccard"].mean(), found["expected"].mean())
        name = f"Jaccard index of the final masks of {pair[0]} and {pair[1]}"
        figure = compare.jaccard_figure(found)
        return f'<p class="bb-intro">{words}</p>', gr.update(visible=True), *drawn(figure, "masks", name, found)

    def tell(ids: Sequence[str], prompt: str, stage: str) -> str:
        return _texts({label: hub.events(run) for label, run in zip(compare.LABELS, ids, strict=False)}, prompt, stage)

    outputs = [nothing, results, which, differing, *perplexity, with_errors, *errors, with_flips, *flips]
    agreement = [said, with_masks, *masks]
    compared.change(show, compared, [*outputs, pair, *agreement, with_texts, prompt, stage, texts], **CALM)
    pair.input(agree, [compared, pair], agreement, **CALM)
    gr.on([prompt.input, stage.input], tell, [compared, prompt, stage], texts, **CALM)


def _card(hub: Hub, run: str) -> Card | None:
    """The card of a run that has something to compare."""
    return hub.history.read(run) if hub.events(run) else None


def _figure(figure, frame, file: str, name: str) -> tuple:
    return drawn(figure(frame), file, name, frame) if len(frame) else (gr.skip(), gr.skip())


def _titles(cards: Mapping[str, Card]) -> str:
    """Which run each label stands for."""
    items = "".join(
        f'<li><b style="color:{compare.COLOUR[label]}">{label}</b> <a href="?run={escape(card.run)}">'
        f"{escape(card.title)}</a> <small>{card.state}</small></li>"
        for label, card in cards.items()
    )
    return f'<ul class="bb-compared" aria-label="Compared runs">{items}</ul>'


def _differences(cards: Mapping[str, Card]) -> str:
    """The settings that are not the same in all runs, as a table."""
    forms = {label: settings.form_of(JobSpec.from_dict(dict(card.job))) for label, card in cards.items()}
    names = [name for name in settings.FORM if len({str(form[name]) for form in forms.values()}) > 1]
    if not names:
        return '<p class="bb-intro">These runs have the same settings.</p>'
    head = "".join(f'<th scope="col">{label}</th>' for label in forms)
    body = "".join(
        f'<tr><th scope="row">{escape(SHOWN[name].title if name in SHOWN else "Swaps")}</th>'
        + "".join(f"<td>{cell('' if form[name] is None else form[name])}</td>" for form in forms.values())
        + "</tr>"
        for name in names
    )
    return (
        '<table class="bb-table"><caption>Settings that differ</caption>'
        f'<thead><tr><th scope="col">setting</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _texts(runs: Mapping[str, Sequence[Event]], prompt: str | None, stage: str | None) -> str:
    """The continuation of a prompt by each run at a stage; the start that equals that of the first run is marked."""
    written = compare.texts(runs)
    rows = written[(written["prompt"] == prompt) & (written["stage"] == stage)]
    if rows.empty:
        return ""
    first = rows["text"].iloc[0]
    columns = "".join(
        f'<article class="bb-text"><h3 style="color:{compare.COLOUR[row.run]}">{row.run}</h3>'
        f"<p>{marked(row.text, 0 if row.Index == rows.index[0] else frames.agreement(row.text, first))}</p></article>"
        for row in rows.itertuples()
    )
    legend = f"<mark>Marked</mark>: the start that equals the text of {rows['run'].iloc[0]}, word for word."
    return f'<p class="bb-intro">{legend}</p><div class="bb-compared-texts">{columns}</div>'
