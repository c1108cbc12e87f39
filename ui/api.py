"""The run as an API endpoint: the same job as the Run button, with plain values in and out."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from analysis import frames
from barber.errors import UserError
from barber.events import JobPlanned, Progress
from barber.progress import Eta
from ui.gpu import SHARED, on_gpu
from ui.hub import Hub
from ui.settings import DEFAULTS, to_spec
from ui.worker import Worker

DESCRIPTION = (
    "Prune a model, rebuild its masks and measure what came of it. Streams progress as {phase, where, share_done, "
    "seconds_left}; the last value is the summary {run, model, config, weights, zeros, swaps, perplexity, flips}."
)


def build(hub: Hub) -> None:
    """Add the endpoint /run to the surrounding Blocks."""

    def run(
        model: str = DEFAULTS["model"],
        method: str = DEFAULTS["method"],
        sparsity: str = DEFAULTS["sparsity"],
        rebuild: bool = DEFAULTS["rebuild"],
        metric: str = DEFAULTS["metric"],
        granularity: str = DEFAULTS["granularity"],
        threshold: float | str = DEFAULTS["threshold"],
        retain_reconstruction: bool = DEFAULTS["retain_reconstruction"],
        calibration: str = DEFAULTS["calibration"],
        nsamples: int = DEFAULTS["nsamples"],
        seqlen: int | None = DEFAULTS["seqlen"],
        evaluation: str = DEFAULTS["evaluation"],
        eval_windows: int | None = DEFAULTS["eval_windows"],
        seed: int = DEFAULTS["seed"],
        refiner: str = DEFAULTS["refiner"],
        rounds: int | None = DEFAULTS["rounds"],
        target: str = DEFAULTS["target"],
        allocation: str = DEFAULTS["allocation"],
        reconstruct: bool = DEFAULTS["reconstruct"],
        order: str = DEFAULTS["order"],
        stream: bool = DEFAULTS["stream"],
        max_memory: str | None = DEFAULTS["max_memory"],
    ) -> Iterator[dict]:
        values = {name: value for name, value in locals().items() if name in DEFAULTS}
        worker = None
        try:
            spec = to_spec(values)
            name, eta, now = hub.new_run(), Eta(), None
            worker = Worker(hub.run(name, spec))
            for batch in worker.batches(0.5):
                for event in batch:
                    if isinstance(event, (JobPlanned, Progress)):
                        eta.update(event)
                    now = event if isinstance(event, Progress) else now
                if now:
                    yield {
                        "phase": now.phase,
                        "where": now.where,
                        "share_done": eta.fraction,
                        "seconds_left": eta.seconds_left,
                    }
            yield {"run": name} | frames.summary(hub.events(name))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            if worker:
                worker.stop()

    gr.api(on_gpu(run), api_name="run", api_description=DESCRIPTION, **SHARED)
