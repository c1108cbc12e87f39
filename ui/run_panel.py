"""The run panel: start, stop, resume or open a run, follow it, and show its result."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import gradio as gr

from barber.errors import UserError
from barber.job_spec import JobSpec
from ui import review, settings
from ui.board import Bar, Board, Shown
from ui.form import Form, openings
from ui.gpu import SHARED, ZERO_GPU, on_gpu
from ui.history import Card, State
from ui.hub import Hub
from ui.live import IDLE, STARTING, Live, message
from ui.plots import NO_FIGURE
from ui.runs_tab import Wanted
from ui.views import CALM, TELLING, new

SECONDS_BETWEEN_UPDATES = 0.25
SECONDS_BETWEEN_FIGURES = 4.0  # the figures of a run that goes on are drawn again at most this often
STOPPED = "The run was stopped, and the model has its dense weights again."
INTERRUPTED = "The run was interrupted: the app ended before it did."
GONE = "The run of this link does not exist here: it was deleted, or the link is of another server."

# When a run starts or is opened, the address becomes a link to it and its settings, and a page that does not show the
# status scrolls to it.
ON_RUN = """(run, ...values) => {
  const names = %s, query = new URLSearchParams(window.location.search);
  const form = Object.fromEntries(names.map((name, i) => [name, values[i] ?? ""]));
  if (form.swaps === "auto") form.threshold = "auto";
  delete form.swaps;
  for (const [name, value] of Object.entries(form)) query.set(name, value);
  query.set("run", run);
  window.history.replaceState(window.history.state, "", "?" + query.toString());
  const status = document.getElementById("status"), place = status.getBoundingClientRect();
  if (place.top < 0 || place.top > window.innerHeight - 120) status.scrollIntoView({behavior: "smooth"});
}"""
# Run is disabled while a run goes, and Stop after it, and a disabled button loses the focus: the other one gets it.
KEEP_FOCUS = """() => { setTimeout(() => {
  const lost = [document.body, document.getElementById("run"), document.getElementById("stop")];
  if (lost.includes(document.activeElement))
    document.querySelector(":is(#stop, #run):not([disabled])")?.focus({preventScroll: true});
}, 300); }"""
# After a refused Run, the first field that is marked has the focus.
ON_REFUSED = """() => { setTimeout(() => {
  document.querySelector(".bb-invalid :is(input, textarea)")?.focus();
}, 300); }"""


def wire(
    hub: Hub, form: Form, bar: Bar, board: Board, shown: Shown, visitor: gr.BrowserState, wanted: gr.State
) -> None:
    """Connect form, bar and board. visitor: the token of the visitor. wanted: see runs_tab."""
    fields = list(form.fields.values())
    on, off, same = gr.update(interactive=True), gr.update(interactive=False), gr.skip()
    there, hidden = gr.update(visible=True), gr.update(visible=False)
    going_on = (STARTING, hidden, "", same, "", off, on)  # of board and bar

    def check(previous: str | None, visitor: str, request: gr.Request, *values: object):
        if settings.problems(*values):
            raise gr.Error(visible=False, print_exception=False)
        hub.leave(previous, request.session_hash)
        return *going_on, hub.start(settings.from_form(*values), visitor), list(values), new()

    def go_on(run: str, visitor: str):
        try:
            hub.resume(run, visitor)
        except UserError as error:
            return message(str(error), "failed"), *[same] * (len(going_on) + 2)
        return *going_on, same, same, new()

    def open_run(wanted: Wanted | None, previous: str | None, request: gr.Request):
        run = wanted.run if wanted else None
        card = hub.history.read(run) if run else None
        if card is None:
            told = message(GONE, "failed") if run else same
            return told, *[same] * (len(going_on) + 2 + len(fields))
        if previous != run:
            hub.leave(previous, request.session_hash)
        hub.come_back(run, request.session_hash)
        state = (STARTING, hidden, "", "", "", off, on) if card.state.goes_on else ended_card(card)
        if card.example:  # the form stays: the model of an example need not be there
            return IDLE, *state[1:], run, None, new(), *[same] * len(fields)
        values = list(settings.form_of(JobSpec.from_dict(card.job)).values())
        return *state, run, values, new(), *values

    def ended_card(card: Card) -> tuple:
        """What the panel shows of a run that has ended."""
        live = Live(card.title, card.seconds)
        for event in hub.events(card.run):
            live.update(event)
        result = live.result() if hub.has_results(card.run) else ""
        told = {State.STOPPED: (STOPPED, "stopped"), State.INTERRUPTED: (INTERRUPTED, "stopped")}
        told |= {State.FAILED: (card.failure, "failed")}
        status = message(*told[card.state]) if card.state in told else ""
        return status, there if status else hidden, "", result, "", on, off

    def work(run: str, values: list, request: gr.Request) -> Iterator[tuple]:
        running = hub.follow(run)
        unviewed = (same, same, same)
        yield *[same] * len(outputs), *unviewed, same
        blocks, viewed, announced, due = "", "", "", 0.0
        try:
            while running and not running.over(SECONDS_BETWEEN_UPDATES):
                if hub.left(run, request.session_hash):  # no listener follows
                    raise gr.Error(visible=False, print_exception=False)
                if running.stopped():
                    break
                status, now, brief, said = running.show()
                growing = now != viewed and time.monotonic() > due
                # The buttons too: the last words of a run stopped before may have come after this one began.
                yield (
                    *(status, hidden, same if now == blocks else now, "" if growing else same, brief, off, on),
                    *((run, values, new()) if growing else unviewed),
                    same if said == announced else said,
                )
                blocks, announced = now, said
                if growing:
                    viewed, due = now, time.monotonic() + SECONDS_BETWEEN_FIGURES
            if running and running.stopped():
                yield *halted(run, running.result()), *unviewed, "The run was stopped."
            elif running and running.failure:
                result = running.result() if hub.has_results(run) else same
                yield (
                    message(running.failure, "failed"),
                    there,
                    "",
                    result,
                    "",
                    on,
                    off,
                    *unviewed,
                    "",
                )  # an alert says why
            elif running:
                yield "", hidden, "", running.result(), "", on, off, *unviewed, "The run has ended."
        finally:
            if ZERO_GPU:  # the run is in the process of this listener, which ends with it
                hub.stop(run)

    def halted(run: str | None, result: str | None = None) -> tuple:
        kept = hub.has_results(run)
        status = message(STOPPED + " Its results so far are shown below." * kept, "stopped")
        return status, there, "", result if kept and result else same, "", on, off

    def halt(run: str | None) -> tuple:
        hub.stop(run)
        return halted(run)

    def view(run: str, values: list):
        """The run that the views show from now on, where it has something to show."""
        return (run, values, new()) if hub.has_results(run) else (same, same, same)

    def suit(model: str, calibration: str) -> list:
        """Data settings that suit the model: the bundled stories are for the bundled model alone."""
        data = settings.data_for((model or "").strip())
        fits = "storyteller" not in (calibration, data["calibration"]) or calibration == data["calibration"]
        return [gr.skip()] * len(data) if fits else list(data.values())

    outputs = [board.status, board.resume, board.blocks, board.result, bar.doing, bar.run, bar.stop]
    begun = [*outputs, shown.run, shown.form, shown.begun]
    checked = bar.run.click(check, [shown.run, visitor, *fields], begun, **TELLING)
    wrong = checked.failure(
        lambda *values: openings(form, settings.problems(*values)), fields, [*form.sections.values()], **CALM
    )
    wrong.then(fn=None, js=ON_REFUSED, api_visibility="private")
    board.resume.click(go_on, [shown.run, visitor], begun, **TELLING)
    wanted.change(open_run, [wanted, shown.run], [*begun, *fields], **TELLING)
    for change in (checked.success, bar.stop.click):
        change(fn=None, js=KEEP_FOCUS, api_visibility="private")
    # "multiple": a run that was just stopped may not have ended yet, and would keep the next from beginning.
    view_outputs = [shown.viewed, shown.viewed_form, shown.redraw]
    followed = shown.begun.change(
        on_gpu(work),
        [shown.run, shown.form],
        [*outputs, *view_outputs, bar.said],
        trigger_mode="multiple",
        **TELLING,
        **SHARED,
    )
    address = gr.Textbox(visible="hidden")  # has the id of the run: a State is not known to the browser
    addressed = shown.begun.change(lambda run: run, shown.run, address, **CALM)
    addressed.then(fn=None, inputs=[address, *fields], js=ON_RUN % list(settings.FORM), api_visibility="private")
    shown.begun.change(lambda: NO_FIGURE, None, board.library, **CALM)
    bar.stop.click(halt, shown.run, outputs, queue=False, **TELLING)
    data = [form.fields[name] for name in settings.data_for("")]
    form.fields["model"].input(suit, [form.fields["model"], form.fields["calibration"]], data, queue=False, **TELLING)
    followed.success(view, [shown.run, shown.form], view_outputs, **TELLING)
    followed.then(fn=None, js=KEEP_FOCUS, api_visibility="private")
    review.wire(form, bar, board, shown)


def read_link(visitor: str, request: gr.Request) -> list:
    """What the address of the page says: the values of the form, and Run, enabled.

    The first is the token of the visitor, a new one where the browser has none.
    """
    query = dict(request.query_params)
    given = settings.FORM | settings.to_form(settings.from_query(query))
    return [visitor or secrets.token_urlsafe(16), *given.values(), gr.update(interactive=True)]


def linked_run(hub: Hub, request: gr.Request) -> Wanted | None:
    """The run that the address of the page names; where it says nothing at all, the first example."""
    run = request.query_params.get("run")
    if not request.query_params:
        run = next((card.run for card in hub.history.cards(None) if card.example), None)
    return Wanted(run, new()) if run else None
