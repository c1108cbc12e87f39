"""The page: the form on the left, the run and its views on the right, Run and Stop always in sight below."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gradio as gr

from ui import (
    api,
    board,
    choices_tab,
    compare_tab,
    export_tab,
    flips_tab,
    form,
    matrix_tab,
    perplexity_tab,
    review,
    run_panel,
    runs_tab,
    saliency_tab,
    selection,
    text_tab,
)
from ui.hub import Hub
from ui.views import CALM, TELLING

HEADER = """
<header class="bb-header">
  <span class="bb-pole" aria-hidden="true"></span>
  <div>
    <h1>Barber</h1>
    <p>Prune a language model in one shot, then rebuild the mask of each sub-block by the error of its output.
    <a href="https://arxiv.org/abs/2408.10631" target="_blank" rel="noopener">LLM-Barber (arXiv 2408.10631)</a></p>
  </div>
</header>
"""
# Plotly does not notice that the window is resized while its tab is closed.
FIT = "() => { setTimeout(() => window.dispatchEvent(new Event('resize')), 100); }"


def build(runs: Path | None = None, turn: float | None = None, shared: bool = False) -> gr.Blocks:
    """The app. runs: where run directories are kept, a new temporary folder unless given; turn, shared: see Hub."""
    hub = Hub(runs, turn, shared)
    with gr.Blocks(title="Barber", analytics_enabled=False, fill_width=True) as page:
        shown = board.build_shown()
        wanted = gr.State(None)
        visitor = gr.BrowserState("", storage_key="barber-visitor", secret="barber")
        gr.HTML(HEADER)
        with gr.Row(elem_classes="bb-page"):
            with gr.Column(scale=0, min_width=340, elem_classes="bb-panel"):
                the_form = form.build()
                command = board.build_command()
            bar = board.build_bar(command)
            with gr.Column(scale=1, min_width=320, elem_classes="bb-main"):
                the_board = board.build_board()
                run_panel.wire(hub, the_form, bar, the_board, shown, visitor, wanted)
                run = (hub, shown.viewed, shown.redraw)
                matrix = selection.build(*run)
                compared = gr.State([])
                with gr.Tabs(elem_id="views", overflow_behavior="wrap") as tabs:
                    for title, build_view in (
                        ("Mask flips", partial(flips_tab.build, *run, matrix)),
                        ("Matrix", partial(matrix_tab.build, hub, matrix)),
                        ("Saliency", partial(saliency_tab.build, hub, matrix)),
                        ("Choices", partial(choices_tab.build, hub, matrix)),
                        ("Perplexity", partial(perplexity_tab.build, *run)),
                        ("Text", partial(text_tab.build, *run)),
                        ("Export", partial(export_tab.build, *run)),
                    ):
                        with gr.Tab(title, elem_id=f"view-{title.split()[-1].lower()}") as opened:
                            build_view()
                        opened.select(fn=None, js=FIT, api_visibility="private")
                    with gr.Tab("Runs", elem_id="view-runs") as opened:
                        changes = [shown.begun.change, shown.redraw.change, opened.select]
                        runs_tab.build(hub, visitor, wanted, changes, compared, tabs)
                    with gr.Tab("Compare", id="compare", elem_id="view-compare") as opened:
                        compare_tab.build(hub, compared)
                    opened.select(fn=None, js=FIT, api_visibility="private")
        api.build(hub)

        def linked_run(request: gr.Request):
            return run_panel.linked_run(hub, request)

        page.load(fn=None, js=form.KEYS, api_visibility="private")
        fields = [*the_form.fields.values()]
        filled = page.load(
            run_panel.read_link,
            visitor,
            [visitor, *fields, bar.run],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        filled.then(review.expect, fields, [bar.expected, bar.command], **CALM)
        filled.then(linked_run, None, wanted, **TELLING)
    return page
