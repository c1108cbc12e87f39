"""The form, made from the table of settings. A setting that has no effect with the others is not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from html import escape

import gradio as gr

from barber.config import AUTO
from barber.fields import Group, Setting
from barber.jobs.presets import PRUNINGS
from barber.settings import SETTINGS, SHOWN
from ui import settings, visitors
from ui.catalogue import choices
from ui.views import CALM

Fields = dict[str, gr.components.Component]
SWAPS = "swaps"  # the switch between a threshold that is a number and one that is chosen
SWAPS_HELP = (
    "Share of the gaining pairs that is swapped; a gaining pair is a pruned and a kept weight, the pruned one of "
    "larger saliency. Auto tries several shares in each sub-block and keeps the one with the lowest error on "
    "validation sequences."
)
DECIDING = tuple(dict.fromkeys(name for one in SHOWN.values() for need in one.needs for name in need.on))
# Enter keeps the text typed into a field that accepts any text, instead of the first choice that contains it. The tab
# key only leaves a dropdown: Gradio would open its list once more, and leave it open.
KEYS = """() => {
  let typed = null;
  const open = event => event.target.closest?.(".bb-open") && event.target.matches("input");
  document.addEventListener("input", event => { if (open(event)) typed = event.target; }, true);
  document.addEventListener("keydown", event => {
    if (event.key === "Tab" && event.target.matches?.("[role=combobox]")) event.stopImmediatePropagation();
    if (event.key !== "Enter") { if (event.key.startsWith("Arrow")) typed = null; return; }
    if (!open(event) || typed !== event.target) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    typed = null;
    event.target.blur();
  }, true);
}"""


@dataclass(frozen=True)
class Form:
    """The components of the form.

    Attributes:
        fields: by name, in the order of settings.FORM.
        notes: the places for sentences on values that are not allowed, each with the names of the fields above it.
        sections: the accordions, by group.
    """

    fields: dict[str, gr.components.Component]
    notes: dict[tuple[str, ...], gr.HTML]
    sections: dict[Group, gr.Accordion]


def build() -> Form:
    """The fields of settings.FORM by name, in the sections of the form."""
    form = Form({}, {}, {})
    fields: Fields = {}
    starts = _presets()
    for group in Group:
        with _section(form, group) if group else nullcontext():
            for row in rows(group):
                with gr.Row() if len(row) > 1 else nullcontext():
                    for one in row:
                        fields |= _fields(one, alone=len(row) == 1)
                if len(row) > 1:
                    gr.HTML(_help(row))
                form.notes[tuple(one.public for one in row)] = gr.HTML(visible=False)
    _show_what_matters(fields)
    form.fields.update({name: fields[name] for name in settings.FORM})
    for title, button in starts.items():
        button.click(partial(_start, title), fields["model"], [*form.fields.values()], **CALM)
    return form


def _presets() -> dict[str, gr.Button]:
    """The buttons that fill the form, by title."""
    with gr.Row(elem_classes="bb-presets"):
        gr.HTML("<p>Settings to start from:</p>")
        return {title: gr.Button(title, size="sm", min_width=40) for title in PRUNINGS}


def _start(title: str, model: str | None) -> list[object]:
    return list(settings.values_of(title, model or "").values())


def _help(row: Sequence[Setting]) -> str:
    """The help of fields side by side, below them."""
    local = visitors.may_name_paths()
    sentences = (f"<b>{escape(one.title)}</b>: {escape(one.sentence(local))}" for one in row)
    return f'<p class="bb-help">{" ".join(sentences)}</p>'


def _section(form: Form, group: Group) -> gr.Accordion:
    form.sections[group] = gr.Accordion(group.value, open=False)
    return form.sections[group]


def marks(form: Form, wrong: Mapping[str, str], marked: Mapping[str, str]) -> list[dict]:
    """Updates of the fields and the notes: `wrong` as settings.problems has it, `marked` what is marked already."""
    fields = [
        gr.update(elem_classes=_classes(name, name in wrong)) if (name in wrong) != (name in marked) else gr.skip()
        for name in form.fields
    ]
    notes = []
    for names in form.notes:
        now, before = ([found[name] for name in names if name in found] for found in (wrong, marked))
        text = "".join(f'<p class="bb-note">{escape(sentence)}</p>' for sentence in now)
        notes.append(gr.update(value=text, visible=bool(now)) if now != before else gr.skip())
    return fields + notes


def openings(form: Form, wrong: Mapping[str, str]) -> list[dict]:
    """Updates of the sections: those with a wrong value are opened."""
    groups = {SHOWN[name].group for name in wrong if name}
    return [gr.update(open=True) if group in groups else gr.skip() for group in form.sections]


def rows(group: Group) -> list[list[Setting]]:
    """The settings of a section of the form, those side by side together."""
    own = [one for one in SHOWN.values() if one.group is group]
    return [[one, *(other for other in own if other.beside == one.name)] for one in own if not one.beside]


def visible(values: Mapping[str, object]) -> dict[str, bool]:
    """Which fields are shown, for the values of DECIDING; a fixed threshold is any that is not AUTO."""
    shown = {name: one.unmet(values) is None for name, one in SHOWN.items() if one.needs}
    return shown | {SWAPS: shown["threshold"], "threshold": shown["threshold"] and values["threshold"] != AUTO}


def _show_what_matters(form: Fields) -> None:
    fields = [form[_field(name)] for name in DECIDING]
    dependent = list(visible(_at_first()))

    def suit(*values: object) -> list[dict]:
        shown = visible(dict(zip(DECIDING, values, strict=True)))
        return [gr.update(visible=shown[name]) for name in dependent]

    gr.on(
        [field.change for field in fields],
        suit,
        fields,
        [form[name] for name in dependent],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _fields(one: Setting, alone: bool) -> Fields:
    """The field of a setting, with its help where it has a row of its own; for a threshold, its switch, too."""
    name, local = one.public, visitors.may_name_paths()
    at_first = visible(_at_first())
    look = {
        "value": settings.FORM[name],
        "label": one.title,
        "info": one.sentence(local) if alone else None,
        "visible": at_first.get(name, True),
        "scale": one.width if not alone else None,
        "min_width": 90,
        "elem_id": name,
        "elem_classes": _classes(name, wrong=False),
    }
    if one.kind is bool:
        del look["scale"]
        return {name: gr.Checkbox(**look)}
    if one.words:
        switch = gr.Radio(
            [*((title, word) for word, title in one.words.items()), ("fixed threshold", settings.FIXED)],
            value=settings.FORM[SWAPS],
            label="Swaps",
            info=SWAPS_HELP,
            visible=at_first[SWAPS],
            elem_id=SWAPS,
        )
        return {SWAPS: switch, name: _text(one, look)}
    if one.open:
        options = choices() if name == "model" else [(title, value) for value, title in one.choices.items()]
        return {name: gr.Dropdown(options, allow_custom_value=True, **look)}
    if one.closed:
        return {name: gr.Dropdown([(title, value) for value, title in one.choices.items()], **look)}
    return {name: _text(one, look)}


def _text(one: Setting, look: dict) -> gr.Textbox:
    """A field of text, also for a number: gr.Number turns an empty field into 0 and other text into an empty field."""
    return gr.Textbox(placeholder=one.placeholder or None, max_lines=1, **look)


def _classes(name: str, wrong: bool) -> list[str]:
    """The style classes of a field. wrong: whether its value is not allowed."""
    is_open = name in SHOWN and SHOWN[name].open
    return ["bb-open"] * is_open + ["bb-invalid"] * wrong


def _field(name: str) -> str:
    """The field of the form that a setting of DECIDING depends on."""
    return SWAPS if name == "threshold" else SETTINGS[name].public


def _at_first() -> dict[str, object]:
    """The values of DECIDING that the form begins with."""
    return {name: settings.FORM[_field(name)] for name in DECIDING}
