"""The run panel: the bar with Run, Stop and the estimate, the live progress, and the result of the last run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

import gradio as gr

from barber.errors import UserError
from barber.jobs.command import command
from barber.jobs.forecast import forecast, settled
from barber.jobs.report import format_estimate
from barber.settings import SHOWN
from ui import settings
from ui.form import Form, marks, openings
from ui.gpu import SHARED, ZERO_GPU, on_gpu
from ui.hub import Hub
from ui.live import IDLE, STARTING, Live, describe, message
from ui.plots import NO_FIGURE, library
from ui.views import CALM
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
TELL_INVALID = """() => { setTimeout(() => {
  for (const field of document.querySelectorAll(".bb-panel :is(input, textarea)"))
    field.setAttribute("aria-invalid", Boolean(field.closest(".bb-invalid")));
}, 100); }"""


class Bar(NamedTuple):
    """The bar that is always visible: the buttons, what a run will need, and what the run does.

    command: the command line that does the same, at the end of the form.
    """

    run: gr.Button
    stop: gr.Button
    expected: gr.HTML
    doing: gr.HTML
    command: gr.Textbox


class Board(NamedTuple):
    """What stands above the views: the status and the sub-blocks of a run that goes on, and the last result.

    changed: which settings of the form have changed since.
    """

    status: gr.HTML
    blocks: gr.HTML
    result: gr.HTML
    changed: gr.HTML


def build_command() -> gr.Textbox:
    with gr.Accordion("Command line", open=False):
        return gr.Textbox(
            label="The same run without the app",
            info="Run it in the folder of the repository. It continues the first of the prompts.",
            lines=3,
            max_lines=10,
            buttons=["copy"],
            interactive=False,
            elem_id="command",
        )


def build_bar(command: gr.Textbox) -> Bar:
    with gr.Row(elem_classes="bb-runbar"):
        # Disabled until the form has the settings of the link.
        run = gr.Button("Run", variant="primary", interactive=False, elem_id="run", scale=0, min_width=120)
        stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=0, min_width=80)
        expected = gr.HTML("", elem_id="expected", min_width=120)
        doing = gr.HTML("", elem_id="doing", min_width=120)
    return Bar(run, stop, expected, doing, command)


def build_board() -> Board:
    status = gr.HTML(IDLE, elem_id="status")
    blocks = gr.HTML("", elem_id="blocks")
    result = gr.HTML("", elem_id="result")
    return Board(status, blocks, result, gr.HTML("", elem_id="changed"))


def wire(hub: Hub, form: Form, bar: Bar, board: Board, shown_id: gr.State) -> gr.events.Dependency:
    """Connect form, bar and board. Returns the event after which the views are drawn: a run ended with results.

    A run that was stopped ends, too. shown_id: has the id of the run from then on; until then, of the run before it.
    """
    run_id = gr.State(None)
    run_form, shown_form = gr.State(None), gr.State(None)  # the values of the form that the run was started with
    fields = list(form.fields.values())
    on, off, same = gr.update(interactive=True), gr.update(interactive=False), gr.skip()

    def check(previous: str | None, *values: object):
        if settings.problems(*values):
            raise gr.Error(visible=False, print_exception=False)
        hub.leave(previous)
        return STARTING, "", off, on, hub.new_run(), list(values)

    def work(name: str, *values: object) -> Iterator[tuple]:
        if hub.stopped(name):  # while it waited in the queue
            give_way(name)
            yield same, same, same, same, same, same
            return
        spec = settings.from_form(*values)
        worker = Worker(hub.run(name, spec))
        live, shown = Live(describe(spec)), 0
        try:
            for batch in worker.batches(SECONDS_BETWEEN_UPDATES):
                if hub.stopped(name):
                    give_way(name)
                    result = live.result() if hub.has_results(name) else same
                    yield stopped_card(name), "", result, "", on, off
                    return
                for event in batch:
                    live.update(event)
                blocks = live.blocks() if len(live.seen) != shown else same
                shown = len(live.seen)
                # The buttons too: the last words of a run stopped before may have come after this one began.
                yield live.status(), blocks, same, live.brief(), off, on
            yield "", "", live.result(), "", on, off
        except UserError as error:
            yield message(str(error), "failed"), "", same, "", on, off
        except gr.Error:
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("A run failed")
            yield message(DEFECT.format(type(error).__name__), "failed"), "", same, "", on, off
        finally:
            worker.stop()

    def give_way(name: str) -> None:
        """Fail without a message, so that no listener follows, if the page shows another run by now."""
        if hub.left(name):
            raise gr.Error(visible=False, print_exception=False)

    def stopped_card(name: str | None) -> str:
        kept = " Its results so far are shown below." if hub.has_results(name) else ""
        return message(f"The run was stopped, and the model has its dense weights again.{kept}", "stopped")

    def halt(name: str | None):
        hub.stop(name)
        return stopped_card(name), "", on, off

    def show(name: str, values: list):
        """The run that the views show from now on; no listener follows where it has nothing to show."""
        if not hub.has_results(name):
            raise gr.Error(visible=False, print_exception=False)
        return name, values

    def suit(model: str, calibration: str) -> list:
        """Data settings that suit the model: the bundled stories are for the bundled model alone."""
        data = settings.data_for((model or "").strip())
        fits = "storyteller" not in (calibration, data["calibration"]) or calibration == data["calibration"]
        return [gr.skip()] * len(data) if fits else list(data.values())

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    started_outputs = [board.status, board.blocks, bar.run, bar.stop, run_id, run_form]
    checked = bar.run.click(check, [run_id, *fields], started_outputs, **quiet)
    wrong = checked.failure(
        lambda *values: openings(form, settings.problems(*values)), fields, [*form.sections.values()], **CALM
    )
    wrong.then(fn=None, js=ON_REFUSED, api_visibility="private")
    checked.success(fn=None, inputs=fields, js=ON_RUN % list(settings.FORM), api_visibility="private")
    for change in (checked.success, bar.stop.click):
        change(fn=None, js=KEEP_FOCUS, api_visibility="private")
    checked.success(lambda: NO_FIGURE, None, library(), **CALM)
    outputs = [board.status, board.blocks, board.result, bar.doing, bar.run, bar.stop]
    # "multiple": a run that was just stopped may not have ended yet, and would keep the next from beginning.
    started = checked.success(on_gpu(work), [run_id, *fields], outputs, trigger_mode="multiple", **quiet, **SHARED)
    bar.stop.click(halt, run_id, [board.status, bar.doing, bar.run, bar.stop], queue=False, **quiet)
    data = [form.fields[name] for name in settings.data_for("")]
    form.fields["model"].input(suit, [form.fields["model"], form.fields["calibration"]], data, queue=False, **quiet)
    ended = started.success(show, [run_id, run_form], [shown_id, shown_form], **quiet)
    started.then(fn=None, js=KEEP_FOCUS, api_visibility="private")
    _review(form, bar, board, shown_form, ended)
    return ended


def _review(form: Form, bar: Bar, board: Board, shown_form: gr.State, ended: gr.events.Dependency) -> None:
    """After each change of the form: mark what is wrong, and say what a run needs and what has changed since the last.

    The events of the page run one after the other; a change that comes meanwhile is reviewed when they are done.
    """
    fields, marked = list(form.fields.values()), gr.State({})

    def review(before: list | None, known: Mapping[str, str], *values: object) -> list:
        wrong = settings.problems(*values)
        return [*marks(form, wrong, known), note(before, *values), wrong]

    def note(before: list | None, *values: object) -> str:
        changes = settings.changes(before, *values) if before else []
        return f'<p class="bb-changed">Changed in the form since this run: {escape(", ".join(changes))}.</p>' * bool(
            changes
        )

    outputs = [*fields, *form.notes.values(), board.changed, marked]
    reviewed = gr.on(
        [field.change for field in fields],
        review,
        [shown_form, marked, *fields],
        outputs,
        trigger_mode="always_last",
        **CALM,
    )
    reviewed.then(expect, fields, [bar.expected, bar.command], **CALM)
    reviewed.then(fn=None, js=TELL_INVALID, api_visibility="private")
    ended.then(note, [shown_form, *fields], board.changed, **CALM)


def expect(*values: object) -> tuple[str, str]:
    """What a run with the values of the form will need, or why it cannot run; and its command line."""
    wrong = settings.problems(*values)
    if names := [SHOWN[name].title for name in wrong if name]:
        return f'<p class="bb-unready">To correct before Run: {escape(", ".join(names))}.</p>', ""
    if wrong:
        return f'<p class="bb-unready">{escape(wrong[""])}</p>', ""
    spec = settings.from_form(*values)
    try:
        line = command(settled(spec))
        needs = None if ZERO_GPU else forecast(spec)  # there, the process of the page has no GPU to measure
    except UserError as error:
        return f'<p class="bb-unready bb-unfit">{escape(str(error))}</p>', ""
    return f"<p>{escape(format_estimate(needs))}</p>" if needs else "", line


def fill_from_link(request: gr.Request) -> list:
    """The values of the form, those in the address of the page first, Run, enabled, and what the run will need."""
    given = settings.FORM | settings.to_form(settings.from_query(dict(request.query_params)))
    return [*given.values(), gr.update(interactive=True)]
