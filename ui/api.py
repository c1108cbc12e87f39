"""API endpoints: a run, the same job as the Run button, with plain values in and out, and the files of a run."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter, Signature
from typing import Literal

import gradio as gr
from gradio.data_classes import FileData, FileDataDict

from analysis import frames
from barber.errors import UserError
from barber.settings import SHOWN
from ui.exports import KINDS, export
from ui.gpu import SHARED, on_gpu
from ui.hub import Hub
from ui.settings import DEFAULTS, FIELDS, to_spec

SECONDS_BETWEEN_UPDATES = 0.5
DESCRIPTION = (
    "Prune a model, rebuild its masks and measure the result. Streams progress as {phase, where, share_done, "
    "seconds_left}; the last value is the summary {run, model, config, weights, zeros, swaps, perplexity, flips}. "
    "A setting that has no effect with the others is ignored."
)

OF_A_RUN = "of a run, by the id that /run returned as `run`, as a file, which gradio_client saves, returning its path:"
REPORT = f"The report {OF_A_RUN} one HTML page, which needs no network."
TABLES = f"Every table {OF_A_RUN} a zip archive of CSV files, or one JSON file with `form` json."
MASKS = f"The final masks {OF_A_RUN} safetensors, for `python main.py apply`."


def parameter(name: str) -> Parameter:
    """A setting as a parameter of the endpoint: numbers and switches as they are, everything else as text."""
    one = SHOWN[name]
    plain = one.hint if one.kind in (bool, int, float) else str | None if one.optional else str
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=DEFAULTS[name], annotation=plain)


def signature() -> Signature:
    """The signature of the endpoint, made from the settings."""
    return Signature([parameter(name) for name in FIELDS], return_annotation="Iterator[dict]")


def build(hub: Hub) -> None:
    """Add the endpoints to the surrounding Blocks."""

    def run(*given: object) -> Iterator[dict]:
        values = dict(zip(FIELDS, given, strict=True))
        name = None
        try:
            name = hub.start(to_spec(values))
            running = hub.follow(name)
            while not running.over(SECONDS_BETWEEN_UPDATES):
                yield running.progress()
            if running.failure:
                raise UserError(running.failure)
            yield {"run": name} | frames.summary(hub.events(name))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            hub.stop(name)

    run.__signature__, run.__annotations__ = signature(), {name: parameter(name).annotation for name in FIELDS}
    gr.api(on_gpu(run), api_name="run", api_description=DESCRIPTION, **SHARED)
    _build_files(hub)


def _build_files(hub: Hub) -> None:
    """Add the endpoints of the files of a run."""

    def file(run: str, kind: str) -> FileDataDict:
        try:
            return FileData(path=str(export(hub, run, kind)), orig_name=KINDS[kind].file).model_dump()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def report(run: str) -> FileDataDict:
        return file(run, "report")

    def tables(run: str, form: Literal["csv", "json"] = "csv") -> FileDataDict:
        return file(run, "json" if form == "json" else "csv")

    def masks(run: str) -> FileDataDict:
        return file(run, "masks")

    for endpoint, text in ((report, REPORT), (tables, TABLES), (masks, MASKS)):
        endpoint.__signature__ = Signature.from_callable(endpoint, eval_str=True)
        gr.api(
            endpoint,
            api_name=endpoint.__name__,
            api_description=text,
            concurrency_id="export",
            concurrency_limit=2,
        )
