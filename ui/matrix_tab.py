"""Matrix: the masks of one weight matrix, in blocks, single weights, rows, columns, heads and n:m patterns."""

from __future__ import annotations

from html import escape

import gradio as gr

from analysis import frames, matrix, matrix_figures
from barber.config import PruneConfig
from barber.errors import UserError
from barber.events import Event
from barber.models.stored_weights import read_weight
from barber.runs.directory import RunDirectory
from ui import mask_window
from ui.hub import Hub
from ui.plots import chart, drawn
from ui.selection import Matrix, Selection
from ui.views import CALM, empty, intro, nothing_yet, results_there, unfilled

EMPTY = unfilled("the mask of one weight matrix: where it keeps weights, and which of them the rebuild changed.")
NO_MASKS = empty(
    "There is no mask of this matrix: the run was stopped before it was made, or the masks of this layer did not come "
    "with the example."
)
# In the queue, where one visitor at a time reads weights.
ONE_BY_ONE = CALM | {"queue": True}
MOST_PATTERNS = 1000  # in the answer of the endpoint
SIZES = (32, 64, 128, 256)
AXES = {"rows": ("row", "outputs"), "columns": ("column", "inputs")}
API_DESCRIPTION = (
    "The masks of one weight matrix of a run: counts by fate; the shares that each row, column and head keeps; the "
    "shares kept and changed in blocks; the n:m patterns before and after the rebuild; the fates of a window's weights."
)


def build(hub: Hub, selection: Selection) -> None:
    nothing = gr.HTML(EMPTY)
    with gr.Column(visible=False) as results:
        facts = intro("")
        share = gr.Radio(
            [("changed by the rebuild", "changed"), ("kept by the rebuilt mask", "kept")],
            value="changed",
            label="The whole matrix: share of the weights",
            elem_id="matrix-share",
        )
        density = chart("matrix-density")
        intro(
            "The window, which is outlined in the figure above: one square for each weight. With n:m sparsity, lines "
            "separate the groups of m inputs. A run records which weights it keeps, but not the saliency of each: the "
            "view Saliency has its distribution."
        )
        with gr.Row():
            first = {"value": 0, "precision": 0, "step": 16, "min_width": 120}  # no bounds: the window stays inside
            row = gr.Number(label="First row of the window", elem_id="window-row", **first)
            column = gr.Number(label="First column", elem_id="window-column", **first)
            size = gr.Dropdown(list(SIZES), value=64, label="Rows and columns", elem_id="window-size", min_width=120)
        values = gr.Checkbox(
            False,
            label="Read the dense weights",
            info="The window then says the value of each weight, from the model's files. Large models take longer.",
            elem_id="window-values",
        )
        unread = gr.HTML(visible=False, elem_id="window-unread")
        window = mask_window.build()
        axes = {axis: chart(f"matrix-{axis}") for axis in AXES}
        with gr.Column(visible=False) as with_heads:
            heads = chart("matrix-heads")
        with gr.Column(visible=False) as with_patterns:
            intro(
                "Patterns of the groups of m consecutive inputs, 1 for a kept weight and 0 for a pruned one: how many "
                "groups with the pattern of the row, in the initial mask, have the pattern of the column in the "
                "rebuilt one. Groups on the diagonal did not change."
            )
            patterns = chart("matrix-patterns")

    def draw_window(shown: Matrix, share: str, row: int | None, column: int | None, size: int, values: bool) -> tuple:
        masks = read(hub, shown)
        if masks is None:
            return tuple(gr.skip() for _ in near)
        part, m = matrix.window(masks, row or 0, column or 0, size), group_of(hub.events(shown.run))
        return draw_near(shown, matrix.overview(masks), share, part, m, values)

    def draw_near(
        shown: Matrix, whole: matrix.Overview, share: str, part: matrix.Window, group: int, values: bool
    ) -> tuple:
        """The density with the outline of the window, the window, and why it has no values."""
        weights, why = dense_weights(hub, shown, part) if values else (None, "")
        height, width = part.fates.shape
        name = f"layer {shown.layer}, {shown.module}"
        return (
            *drawn(
                matrix_figures.density(whole, share, part),
                "density",
                f"Share {share} in blocks of {whole.block[0]} by {whole.block[1]} weights of {name}",
                matrix.coarse(whole, share),
            ),
            mask_window.value(
                part,
                group,
                f"Rows {part.row:,} to {part.row + height - 1:,} and columns {part.column:,} to "
                f"{part.column + width - 1:,} of {name}",
                matrix.changed_weights(part),
                weights,
            ),
            gr.update(value=f'<p class="bb-intro">{escape(why)}</p>', visible=bool(why)),
        )

    def draw_axis(shown: Matrix, whole: matrix.Overview, axis: str) -> tuple:
        one, many = AXES[axis]
        frame = getattr(whole, axis)
        means = matrix.averaged(frame)
        step = -(-len(frame) // len(means))
        return drawn(
            matrix_figures.shares(frame, one),
            axis,
            f"Share kept of each {one} ({many}) of layer {shown.layer}, {shown.module}"
            + (f", means of {step} {axis}" if step > 1 else ""),
            means[["first", "last", "initial", "rebuilt"]],
        )

    def show(shown: Matrix, share: str, size: int, values: bool):
        events = hub.events(shown.run)
        masks = read(hub, shown)
        if masks is None:
            return nothing_yet(NO_MASKS if events else EMPTY, 17)
        whole, m = matrix.overview(masks), group_of(events)
        found = heads_of(hub, shown, events)
        name = f"layer {shown.layer}, {shown.module}"
        on_heads, on_patterns = (gr.skip(), gr.skip()), (gr.skip(), gr.skip())
        if found:
            frame = matrix.by_head(whole, found)
            on_heads = drawn(
                matrix_figures.head_shares(frame, found),
                "heads",
                f"Share kept of each attention head of {name}",
                frame.rename_axis("head").reset_index(),
            )
        if m:
            moved = matrix.transitions(masks, m)
            on_patterns = drawn(
                matrix_figures.pattern_transitions(matrix.folded(moved)),
                "patterns",
                f"Patterns of the groups of {m} inputs of {name} before and after the rebuild",
                moved,
            )
        return (
            *results_there(),
            f'<p class="bb-intro">{describe(masks, whole)}</p>',
            0,
            0,
            *draw_near(shown, whole, share, matrix.window(masks, 0, 0, size), m, values),
            *draw_axis(shown, whole, "rows"),
            *draw_axis(shown, whole, "columns"),
            gr.update(visible=bool(found)),
            *on_heads,
            gr.update(visible=bool(m)),
            *on_patterns,
        )

    near = [*density, window, unread]
    around = [*axes["rows"], *axes["columns"], with_heads, *heads, with_patterns, *patterns]
    everything = [nothing, results, facts, row, column, *near, *around]
    selection.shown.change(show, [selection.shown, share, size, values], everything, **ONE_BY_ONE)
    moved = [selection.shown, share, row, column, size, values]
    gr.on(
        [share.input, row.input, column.input, size.input, values.input],
        draw_window,
        moved,
        near,
        trigger_mode="always_last",
        **ONE_BY_ONE,
    )

    def endpoint(run: str, layer: int, module: str, row: int = 0, column: int = 0, size: int = 64) -> dict:
        try:
            return describe_matrix(hub, Matrix(run, layer, module), row, column, size)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    gr.api(endpoint, api_name="matrix", api_description=API_DESCRIPTION)


def read(hub: Hub, shown: Matrix) -> matrix.MaskPair | None:
    """The masks of the selected matrix, None where there are none."""
    if shown.run is None or shown.module is None:
        return None
    return matrix.read(RunDirectory(hub.path(shown.run)), shown.layer, shown.module)


def dense_weights(hub: Hub, shown: Matrix, part: matrix.Window) -> tuple:
    """The dense weights of a window, a float array, and why there are none: None and a sentence, or an empty one."""
    try:
        weight = read_weight(RunDirectory(hub.path(shown.run)).config["model"], shown.layer, shown.module)
    except UserError as error:
        return None, str(error)
    if weight is None:
        return None, "The weights of this matrix have no tensor of their own in the files of the model."
    height, width = part.fates.shape
    inside = weight[part.row : part.row + height, part.column : part.column + width]
    return inside.float().numpy(), ""


def group_of(events: list[Event]) -> int:
    """The m of n:m; 0 of a run without such a pattern, or with groups too long to count their patterns."""
    config = frames.config(events)
    m = PruneConfig.from_dict(config).sparsity.m if config else 0
    return m if m <= matrix.PATTERN_WIDTH else 0


def heads_of(hub: Hub, shown: Matrix, events: list[Event]) -> matrix.Heads | None:
    """The heads of the selected matrix, None where it has none or the run did not record the model's config."""
    recorded = RunDirectory(hub.path(shown.run)).environment.get("model_config", {})
    return matrix.heads(recorded, frames.modules(events), shown.layer, shown.module)


def describe(masks: matrix.MaskPair, whole: matrix.Overview) -> str:
    """The shape of the matrix and the number of its weights of each fate, as HTML."""
    height, width = masks.shape
    counts = whole.counts
    return (
        f"{height:,} by {width:,} weights (outputs by inputs): {counts['kept']:,} kept, {counts['pruned']:,} pruned, "
        f"<b class='bb-grown'>{counts['grown']:,} grown</b> and <b class='bb-cut'>{counts['cut']:,} cut</b>."
    )


def describe_matrix(hub: Hub, shown: Matrix, row: int, column: int, size: int) -> dict:
    """The answer of the endpoint: plain lists and dicts. UserError for a run or a matrix that does not exist."""
    events = hub.events(shown.run)
    masks = read(hub, shown) if events else None
    if masks is None:
        raise UserError(
            f"Run {shown.run!r} has no mask of module {shown.module!r} in layer {shown.layer}: give a layer and a "
            "module that the run has pruned."
        )
    part, whole = matrix.window(masks, row, column, size), matrix.overview(masks)
    m, found = group_of(events), heads_of(hub, shown, events)
    return {
        "shape": list(masks.shape),
        "counts": whole.counts,
        "block": list(whole.block),
        "kept": whole.kept.round(6).tolist(),
        "changed": whole.changed.round(6).tolist(),
        "rows": whole.rows.round(6).to_dict("list"),
        "columns": whole.columns.round(6).to_dict("list"),
        "heads": matrix.by_head(whole, found).round(6).to_dict("list") if found else None,
        "patterns": matrix.transitions(masks, m).head(MOST_PATTERNS).to_dict("records") if m else None,
        "window": {"row": part.row, "column": part.column, "fates": matrix.fate_names(part)},
    }
