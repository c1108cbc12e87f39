"""The form: what to prune and how. Simple things first, the rest folded away; what has no effect is not shown."""

from __future__ import annotations

import gradio as gr

from barber.config import AUTO, AUTO_ROUNDS, Refiner
from ui import settings, titles, visitors
from ui.catalogue import choices

TARGET_INFO = "Itself: on the input that the pruned layers before it send. The model: as if nothing were pruned."
ORDER_INFO = (
    "Before its rebuild: each block gets its initial mask when its turn comes, on what the finished blocks before it "
    "send. As published, the whole model gets it first."
)
STREAM_INFO = "One layer at a time in memory, for models that do not fit. Slower, and no texts are written."
MEMORY_INFO = "Like 12GiB. A model that does not fit is read layer by layer."
Form = dict[str, gr.components.Component]


def build() -> Form:
    """The fields of settings.FORM, by name."""
    form: Form = {}
    form["model"] = gr.Dropdown(
        choices(),
        value=settings.FORM["model"],
        label="Model",
        info=f"Pick one, or type a hub id{' or a local folder' if visitors.may_name_paths() else ''}.",
        allow_custom_value=True,
        elem_id="model",
    )
    with gr.Row():
        form["method"] = _choice("method", "Initial mask", titles.METHOD_TITLES, scale=2, min_width=150)
        form["sparsity"] = gr.Dropdown(
            list(titles.PATTERNS),
            value=settings.FORM["sparsity"],
            label="Pattern",
            allow_custom_value=True,
            scale=1,
            min_width=90,
            elem_id="sparsity",
        )
    form["rebuild"] = _tick("rebuild", "Rebuild the mask block by block")
    form["swaps"] = gr.Radio(
        [(title, name) for name, title in titles.SWAPS_TITLES.items()],
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
    with gr.Accordion("Memory", open=False):
        _build_memory(form)
    _show_what_matters(form)
    return {name: form[name] for name in settings.FORM}


def _build_details(form: Form) -> None:
    form["allocation"] = _choice(
        "allocation", "Share pruned", titles.ALLOCATION_TITLES, "Unless it is the same, sensitive layers keep more."
    )
    form["refiner"] = _choice("refiner", "Rebuild by", titles.REFINER_TITLES)
    form["granularity"] = _choice("granularity", "Swaps happen within", titles.GRANULARITY_TITLES, visible=False)
    form["metric"] = _choice("metric", "Saliency", titles.METRIC_TITLES, "How much a weight matters.")
    form["rounds"] = _number(
        "rounds", "Rounds at most", "default", f"Empty: {AUTO_ROUNDS}, or 1 with a fixed threshold."
    )
    form["target"] = _choice("target", "Compare each block with", titles.TARGET_TITLES, TARGET_INFO)
    form["order"] = _choice("order", "Initialise", titles.ORDER_TITLES, ORDER_INFO)
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


def _build_memory(form: Form) -> None:
    form["stream"] = _tick("stream", "Read the model layer by layer", STREAM_INFO)
    form["max_memory"] = gr.Textbox(
        settings.FORM["max_memory"],
        label=titles.LABELS["max_memory"],
        info=MEMORY_INFO,
        placeholder="most of what is free",
        elem_id="max_memory",
    )


def _show_what_matters(form: Form) -> None:
    """Settings without effect are hidden: those of the rebuild without one, and those that its kind does not have."""
    dependent = ("refiner", "swaps", "threshold", "granularity", "metric", "rounds", "retain_reconstruction", "order")

    def suit(rebuild: bool, refiner: str, swaps: str, reconstruct: bool) -> list[dict]:
        by_barber = rebuild and refiner == Refiner.BARBER
        fixed = by_barber and swaps != AUTO
        shown = {"refiner": rebuild, "threshold": fixed, "granularity": fixed, "retain_reconstruction": rebuild}
        shown["order"] = rebuild or reconstruct
        return [gr.update(visible=shown.get(name, by_barber)) for name in dependent]

    deciding = [form[name] for name in ("rebuild", "refiner", "swaps", "reconstruct")]
    gr.on(
        [field.change for field in deciding],
        suit,
        deciding,
        [form[name] for name in dependent],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _choice(name: str, label: str, options: dict[str, str], info: str | None = None, **look: object) -> gr.Dropdown:
    return gr.Dropdown(
        [(title, value) for value, title in options.items()],
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
        list(titles.DATASETS),
        value=settings.FORM[name],
        label=label,
        info="A data set, or a local .txt, .jsonl or .npy file." if visitors.may_name_paths() else None,
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
