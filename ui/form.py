"""The form: what to prune and how. Simple things first, the rest folded away; what has no effect is not shown."""

from __future__ import annotations

import gradio as gr

from barber.config import AUTO, AUTO_ROUNDS, Refiner
from ui import settings
from ui.catalogue import choices

TARGET_INFO = "Itself: on the input that the pruned layers before it send. The model: as if nothing were pruned."
Form = dict[str, gr.components.Component]


def build() -> Form:
    """The fields of settings.FORM, by name."""
    form: Form = {}
    form["model"] = gr.Dropdown(
        choices(),
        value=settings.FORM["model"],
        label="Model",
        info=f"Pick one, or type a hub id{'' if settings.on_a_space() else ' or a local folder'}.",
        allow_custom_value=True,
        elem_id="model",
    )
    with gr.Row():
        form["method"] = _choice("method", "Initial mask", settings.METHOD_TITLES, scale=2, min_width=150)
        form["sparsity"] = gr.Dropdown(
            list(settings.PATTERNS),
            value=settings.FORM["sparsity"],
            label="Pattern",
            allow_custom_value=True,
            scale=1,
            min_width=90,
            elem_id="sparsity",
        )
    form["rebuild"] = _tick("rebuild", "Rebuild the mask block by block")
    form["swaps"] = gr.Radio(
        [(title, name) for name, title in settings.SWAPS_TITLES.items()],
        value=settings.FORM["swaps"],
        label="Swaps",
        info="How many pruned and kept weights change places. By held-out error, each block tries several amounts and "
        "keeps what helps most on samples set aside.",
        elem_id="swaps",
    )
    form["threshold"] = gr.Slider(
        0,
        1,
        value=settings.FORM["threshold"],
        step=0.01,
        label="Threshold",
        info="A pruned weight that matters more than a kept one is a pair; this share of the pairs changes places.",
        visible=False,
        elem_id="threshold",
    )
    with gr.Accordion("Method in detail", open=False):
        _build_details(form)
    with gr.Accordion("Data and seed", open=False):
        _build_data(form)
    _show_what_matters(form)
    return {name: form[name] for name in settings.FORM}


def _build_details(form: Form) -> None:
    form["allocation"] = _choice(
        "allocation", "Share pruned", settings.ALLOCATION_TITLES, "Unless it is the same, sensitive layers keep more."
    )
    form["refiner"] = _choice("refiner", "Rebuild by", settings.REFINER_TITLES)
    form["granularity"] = _choice("granularity", "Swaps happen within", settings.GRANULARITY_TITLES, visible=False)
    form["metric"] = _choice("metric", "Saliency", settings.METRIC_TITLES, "How much a weight matters.")
    form["rounds"] = _number(
        "rounds", "Rounds at most", "default", f"Empty: {AUTO_ROUNDS}, or 1 with a fixed threshold."
    )
    form["target"] = _choice("target", "Compare each block with", settings.TARGET_TITLES, TARGET_INFO)
    form["reconstruct"] = _tick(
        "reconstruct", "Re-fit the kept weights", "A short training of each block, once its mask is final."
    )
    form["retain_reconstruction"] = _tick("retain_reconstruction", "Keep the values that SparseGPT updated")


def _build_data(form: Form) -> None:
    form["calibration"] = _dataset("calibration", "Calibration text")
    with gr.Row():
        form["nsamples"] = _number("nsamples", "Samples")
        form["seqlen"] = _number("seqlen", "Tokens each", "auto")
    form["evaluation"] = _dataset("evaluation", "Evaluation text")
    with gr.Row():
        form["eval_windows"] = _number("eval_windows", "Windows at most", "all")
        form["seed"] = _number("seed", "Seed")


def _show_what_matters(form: Form) -> None:
    """Settings without effect are hidden: those of the rebuild without one, and those that its kind does not have."""
    dependent = ("refiner", "swaps", "threshold", "granularity", "metric", "rounds", "retain_reconstruction")

    def suit(rebuild: bool, refiner: str, swaps: str) -> list[dict]:
        by_barber = rebuild and refiner == Refiner.BARBER
        fixed = by_barber and swaps != AUTO
        shown = {"refiner": rebuild, "threshold": fixed, "granularity": fixed, "retain_reconstruction": rebuild}
        return [gr.update(visible=shown.get(name, by_barber)) for name in dependent]

    deciding = [form[name] for name in ("rebuild", "refiner", "swaps")]
    gr.on(
        [field.change for field in deciding],
        suit,
        deciding,
        [form[name] for name in dependent],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _choice(name: str, label: str, titles: dict[str, str], info: str | None = None, **look: object) -> gr.Dropdown:
    return gr.Dropdown(
        [(title, value) for value, title in titles.items()],
        value=settings.FORM[name],
        label=label,
        info=info,
        elem_id=name,
        **look,
    )


def _tick(name: str, label: str, info: str | None = None) -> gr.Checkbox:
    return gr.Checkbox(settings.FORM[name], label=label, info=info, elem_id=name)


def _dataset(name: str, label: str) -> gr.Dropdown:
    return gr.Dropdown(
        list(settings.DATASETS),
        value=settings.FORM[name],
        label=label,
        info=None if settings.on_a_space() else "A data set, or a local .txt, .jsonl or .npy file.",
        allow_custom_value=True,
        elem_id=name,
    )


def _number(name: str, label: str, placeholder: str | None = None, info: str | None = None) -> gr.Number:
    return gr.Number(
        settings.FORM[name],
        label=label,
        info=info,
        precision=0,
        min_width=90,
        elem_id=name,
        placeholder=placeholder,
    )
