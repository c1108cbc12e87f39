"""The run panel: Run and Stop below the form, and the live progress beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from html import escape

import gradio as gr

from barber.errors import UserError
from ui import settings
from ui.gpu import SHARED, on_gpu
from ui.hub import Hub
from ui.live import STARTING, Live, message
from ui.views import warn
from ui.worker import Worker

SECONDS_BETWEEN_UPDATES = 0.25
DEFECT = "The run failed ({}): this is a defect of Barber, and the log of the server has the details."

# When a run starts, the address becomes a link to its settings, and a page that does not show the status scrolls to it.
ON_RUN = """(...values) => {
  const names = %s, query = new URLSearchParams(window.location.search);
  const form = Object.fromEntries(names.map((name, i) => [name, values[i] ?? ""]));
  if (form.swaps === "auto") form.threshold = "auto";
  delete form.swaps;
  for (const [name, value] of Object.entries(form)) query.set(name, value);
  window.history.replaceState(window.history.state, "", "?" + query.toString());
  const status = document.getElementById("status"), place = status.getBoundingClientRect();
  if (place.top < 0 || place.top > window.innerHeight - 120) status.scrollIntoView({behavior: "smooth"});
}"""


def build_buttons() -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        # Disabled until the form has the settings of the link.
        run = gr.Button("Run", variant="primary", interactive=False, elem_id="run", min_width=120)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
    return run, stop


def wire(
    hub: Hub,
    form: dict[str, gr.components.Component],
    run: gr.Button,
    stop: gr.Button,
    status: gr.HTML,
    blocks: gr.HTML,
    shown_id: gr.State,
) -> gr.events.Dependency:
    """Connect form, buttons and status. Returns the event after which the views are drawn: the end of a run.

    A run that was stopped ends, too. shown_id: has the id of the run from then on; until then, of the run before it.
    """
    run_id = gr.State(None)
    fields = list(form.values())
    on, off, same = gr.update(interactive=True), gr.update(interactive=False), gr.skip()

    def check(previous: str | None, *values: object):
        if sentence := settings.problem(*values):
            raise gr.Error(escape(sentence), visible=False, print_exception=False)
        hub.leave(previous)
        return STARTING, "", off, on, hub.new_run()

    def explain(*values: object) -> str:
        return message(settings.problem(*values) or "", "failed")

    def work(name: str, *values: object) -> Iterator[tuple]:
        if hub.stopped(name):  # while it waited in the queue
            give_way(name)
            yield same, same, same, same
            return
        worker = Worker(hub.run(name, settings.from_form(*values)))
        live, shown = Live(), 0
        try:
            for batch in worker.batches(SECONDS_BETWEEN_UPDATES):
                if hub.stopped(name):
                    give_way(name)
                    yield stopped_card(name), same, on, off
                    return
                for event in batch:
                    live.update(event)
                blocks_html = live.blocks() if len(live.seen) != shown else same
                shown = len(live.seen)
                yield live.status(), blocks_html, same, same
            yield live.done(), live.blocks(), on, off
        except UserError as error:
            warn(error)
            yield message(str(error), "failed"), same, on, off
        except gr.Error:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("A run failed")
            yield message(DEFECT.format(type(error).__name__), "failed"), same, on, off
        finally:
            worker.stop()

    def give_way(name: str) -> None:
        """Fail without a message, so that no listener follows, if the page shows another run by now."""
        if hub.left(name):
            raise gr.Error(visible=False, print_exception=False)

    def stopped_card(name: str | None) -> str:
        kept = " Its results so far are shown below." if hub.events(name) else ""
        return message(f"The run was stopped, and the model has its dense weights again.{kept}", "stopped")

    def halt(name: str | None):
        hub.stop(name)
        return stopped_card(name), on, off

    def suit(model: str, calibration: str) -> list:
        """Data settings that suit the model: the bundled stories are for the bundled model alone."""
        data = settings.data_for((model or "").strip())
        fits = "storyteller" not in (calibration, data["calibration"]) or calibration == data["calibration"]
        return [gr.skip()] * len(data) if fits else list(data.values())

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    run.click(fn=None, inputs=fields, js=ON_RUN % list(settings.FORM), api_visibility="private")
    checked = run.click(check, [run_id, *fields], [status, blocks, run, stop, run_id], **quiet)
    checked.failure(explain, fields, status, queue=False, **quiet)
    outputs = [status, blocks, run, stop]
    # "multiple": a run that was just stopped may not have ended yet, and would keep the next from beginning.
    started = checked.success(on_gpu(work), [run_id, *fields], outputs, trigger_mode="multiple", **quiet, **SHARED)
    stop.click(halt, run_id, [status, run, stop], queue=False, **quiet)
    data = [form[name] for name in settings.data_for("")]
    form["model"].input(suit, [form["model"], form["calibration"]], data, queue=False, **quiet)
    return started.success(lambda name: name, run_id, shown_id, queue=False, **quiet)


def fill_from_link(request: gr.Request) -> list:
    """The values of the form, those in the address of the page first, and Run, enabled."""
    given = settings.FORM | settings.to_form(settings.from_query(dict(request.query_params)))
    return [*given.values(), gr.update(interactive=True)]
