"""The run as an API endpoint: the same job as the Run button, with plain values in and out."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter, Signature

import gradio as gr

from analysis import frames
from barber.errors import UserError
from barber.settings import SHOWN
from ui.gpu import SHARED, on_gpu
from ui.hub import Hub
from ui.settings import DEFAULTS, FIELDS, to_spec

SECONDS_BETWEEN_UPDATES = 0.5
DESCRIPTION = (
    "Prune a model, rebuild its masks and measure the result. Streams progress as {phase, where, share_done, "
    "seconds_left}; the last value is the summary {run, model, config, weights, zeros, swaps, perplexity, flips}. "
    "A setting that has no effect with the others is ignored."
)


def parameter(name: str) -> Parameter:
    """A setting as a parameter of the endpoint: numbers and switches as they are, everything else as text."""
    one = SHOWN[name]
    plain = one.hint if one.kind in (bool, int, float) else str | None if one.optional else str
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=DEFAULTS[name], annotation=plain)


def signature() -> Signature:
    """The signature of the endpoint, made from the settings."""
    return Signature([parameter(name) for name in FIELDS], return_annotation="Iterator[dict]")


def build(hub: Hub) -> None:
    """Add the endpoint /run to the surrounding Blocks."""

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
