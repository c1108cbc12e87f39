"""A running job as pieces of HTML, made from its events: the status, the finished sub-blocks, and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape

from analysis import frames
from analysis.style import format_perplexity
from barber.config import PruneConfig
from barber.events import (
    Estimated,
    Event,
    JobPlanned,
    Notice,
    PerplexityMeasured,
    Progress,
    RunFinished,
    RunStarted,
    Stage,
    SubBlockRebuilt,
)
from barber.jobs.report import format_estimate
from barber.progress import Eta
from barber.registry import INITIAL_MASKS

IDLE = """
<div class="bb-card bb-idle">
  <p class="bb-headline">Choose a model and a pattern, then press Run.</p>
  <ol class="bb-steps-intro">
    <li><b>Initial mask.</b> A one-shot method, such as magnitude or Wanda, selects the weights of each matrix that are
    set to zero.</li>
    <li><b>Rebuild.</b> A sub-block is the attention or the MLP of one decoder layer. In each sub-block, pruned weights
    of high saliency grow back, and as many kept weights of low saliency are cut. Saliency is |weight| times
    |gradient of the sub-block's output error|.</li>
    <li><b>Results.</b> The mask bits that changed, the saliency of the weights, and the perplexity and the text of the
    dense, the initial and the rebuilt model.</li>
  </ol>
</div>
"""

STARTING = """
<div class="bb-card bb-running"><p class="bb-where"><span>Waiting for the model</span></p></div>
"""


LABELS = {Stage.DENSE: "dense", Stage.INITIAL: "initial mask", Stage.REBUILT: "rebuilt"}
DOING = {  # by the first word of a phase
    "waiting": "Waiting for the model",
    "load": "Loading the model",
    "data": "Reading the data",
    "perplexity": "Measuring perplexity",
    "text": "Generating text",
    "allocation": "Computing the ratio of each layer",
    "initial": "Computing the initial mask",
    "rebuild": "Rebuilding",
}
STEPS = {Stage.DENSE: "Dense model", Stage.INITIAL: "Initial mask", Stage.REBUILT: "Rebuild"}
IN_ONE_PASS = ("Dense model", "Initial mask and rebuild of each sub-block", "Evaluation of both masks")


class Live:
    """What the page shows of a job: `update` takes each event, the other methods give HTML.

    title: of the result. seconds: how long the job took, where it has ended already.
    """

    def __init__(self, title: str = "", seconds: float | None = None) -> None:
        self.title = title
        self.seconds = seconds
        self.eta = Eta()
        self.started = time.monotonic()
        self.phases: list[str] = []
        self.now = Progress("waiting", 0, 1)
        self.expected = ""
        self.notices: list[str] = []
        self.seen: list[Event] = []
        self.finished = False

    def update(self, event: Event) -> None:
        if isinstance(event, JobPlanned):
            self.phases = list(event.phases)
        if isinstance(event, Progress):
            self.now = event
        if isinstance(event, (JobPlanned, Progress)):
            self.eta.update(event)
        if isinstance(event, Estimated):
            self.expected = format_estimate(event)
        if isinstance(event, Notice) and event.message not in self.notices:
            self.notices.append(event.message)
        if isinstance(event, (RunStarted, SubBlockRebuilt, PerplexityMeasured, RunFinished)):
            self.seen.append(event.bare())
        self.finished = self.finished or isinstance(event, RunFinished)

    def status(self) -> str:
        """The card of a running job: its steps, the progress bar, the layer at work and the time left."""
        percent = 100 * self.eta.fraction
        steps = "".join(f'<li class="{state}">{title}</li>' for title, state in progress(self.phases, self.now.phase))
        return (
            '<div class="bb-card bb-running">'
            f'<ol class="bb-phases">{steps}</ol>'
            f'<div class="bb-bar" role="progressbar" aria-label="Progress of the run" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{percent:.0f}"><span style="width:{percent:.1f}%"></span></div>'
            f'<p class="bb-where"><span>{self._doing()}</span><span class="bb-eta">{self._share()}</span></p>'
            f"{self._figures()}{self._expected()}{self._notices()}</div>"
        )

    def brief(self) -> str:
        """What the job does now, in one line."""
        return f'<p class="bb-brief"><span>{self._doing()}</span><span class="bb-eta">{self._share()}</span></p>'

    def announcement(self) -> str:
        """What a screen reader says of the job; it changes with each step and each tenth of the work."""
        step = DOING.get(self.now.phase.split()[0], self.now.phase.capitalize())
        return f"{step}, {10 * int(10 * self.eta.fraction)} percent"

    def _doing(self) -> str:
        doing = DOING.get(self.now.phase.split()[0], self.now.phase.capitalize())
        return escape(" · ".join(part for part in (doing, self.now.where) if part))

    def _share(self) -> str:
        remaining = duration(self.eta.seconds_left)
        return f"{100 * self.eta.fraction:.0f} %{f' · about {remaining} left' if remaining else ''}"

    def _expected(self) -> str:
        return f'<p class="bb-expected">{escape(self.expected)}</p>' if self.expected else ""

    def _notices(self) -> str:
        return "".join(f'<p class="bb-notice">{escape(message)}</p>' for message in self.notices)

    def result(self) -> str:
        """The card of a run that ended or was stopped: its title, perplexities, zeros, swaps, time and sub-blocks."""
        return (
            f'<section class="bb-card bb-{"done" if self.finished else "partial"}" aria-label="Result">'
            f'<h2 class="bb-title">{escape(self.title)}</h2>{self._figures()}'
            f'<p class="bb-where"><span>{self._facts()}</span>'
            f'<span class="bb-eta">{duration(self._took())}</span></p>'
            f"{self._notices()}{self._table()}</section>"
        )

    def _took(self) -> float:
        return time.monotonic() - self.started if self.seconds is None else self.seconds

    def _facts(self) -> str:
        facts = frames.summary(self.seen)
        if not self.finished:
            return f"Stopped after {len(frames.sub_blocks(self.seen))} sub-blocks"
        config = PruneConfig.from_dict(facts["config"])
        text = f"{facts['zeros']:,} of {facts['weights']:,} weights pruned ({share(facts['zeros'], facts['weights'])}"
        text += f"{rounding(facts['zeros'], facts['weights'], config)})"
        if not config.barber:
            return text
        grown = frames.flips(self.seen)["grown"].sum()
        if config.most_rounds == 1:
            return f"{text}, {facts['swaps']:,} pairs swapped"
        return (
            f"{text}, {facts['swaps']:,} swaps in all rounds; in the end {grown:,} weights are grown, and as many cut"
        )

    def _figures(self) -> str:
        """The perplexities known so far on the first data set, and the share of the gap recovered."""
        measured = frames.perplexities(self.seen)
        if measured.empty:
            return ""
        first = measured[measured["dataset"] == measured["dataset"].iloc[0]]
        rows = list(first.itertuples())
        cells = [(format_perplexity(row.perplexity), f"perplexity, {LABELS[row.stage]}", row.stage) for row in rows]
        cells += [(f"{100 * share:.0f} %", "of the gap recovered", "gap") for share in first["recovered"].dropna()]
        body = "".join(f'<div class="bb-{kind}"><dd>{value}</dd><dt>{label}</dt></div>' for value, label, kind in cells)
        return f'<dl class="bb-figures">{body}</dl>'

    def blocks(self) -> str:
        """The finished sub-blocks of a running job; empty before the first."""
        table = self._table()
        return f'<div class="bb-card">{table}</div>' if table else ""

    def _table(self) -> str:
        """Finished sub-blocks, the newest first: error before and after, swaps."""
        rows = frames.sub_blocks(self.seen)
        if rows.empty:
            return ""
        body = "".join(
            f"<tr><th scope='row'>{row.layer} · {escape(row.kind)}</th>"
            f"<td>{row.before:.3g}</td><td>{row.after:.3g}</td>"
            f"<td class='bb-change'><span style='--share:{left(row):.3f}'></span>{signed(row.change)}</td>"
            f"<td>{row.swaps:,}</td><td>{row.seconds:.1f} s</td></tr>"
            for row in rows[::-1].itertuples()
        )
        titles = ("layer", "error before", "after", "change", "swaps", "time")
        head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
        return (
            f'<details class="bb-blocks" {"" if self.finished else "open"}>'
            f"<summary>{len(rows)} sub-block{'' if len(rows) == 1 else 's'} rebuilt</summary>"
            '<div tabindex="0" role="region" aria-label="Rebuilt sub-blocks">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
        )


def progress(phases: Sequence[str], now: str) -> list[tuple[str, str]]:
    """The steps of a job with these phases, in order: their titles, and whether each is "done", "now" or "todo"."""
    steps: dict[str, list[int]] = {}
    for index, phase in enumerate(phases):
        steps.setdefault(step_of(phase, phases), []).append(index)
    at = phases.index(now) if now in phases else -1
    return [
        (title, "now" if at in places else "done" if places[-1] < at else "todo") for title, places in steps.items()
    ]


def step_of(phase: str, phases: Sequence[str]) -> str:
    """The title of the step that a phase of a job belongs to; `phases` has the order of the job."""
    one_pass = "rebuild" in phases and "initial mask" not in phases
    if phase == "allocation":
        return IN_ONE_PASS[1] if one_pass else STEPS[Stage.INITIAL]
    stage = next(stage for stage in Stage if stage in phase or stage.removesuffix("t") in phase)
    if not one_pass or stage is Stage.DENSE:
        return STEPS[stage]
    return IN_ONE_PASS[1 if phase == "rebuild" else 2]


def message(text: str, kind: str) -> str:
    """A card with one sentence; kind is "stopped" or "failed"."""
    role = "alert" if kind == "failed" else "status"
    return f'<div class="bb-card bb-{kind}" role="{role}"><p class="bb-headline">{escape(text)}</p></div>'


def recovery(recovered: float) -> str:
    """The share of the gap recovered, in words."""
    if recovered >= 0:
        return f"recovered {100 * recovered:.0f} % of the gap"
    return f"widened the gap by {-100 * recovered:.0f} %"


def left(row) -> float:
    """The share of a sub-block's error that is left, from 0 to 1."""
    return min(row.after / row.before, 1.0) if row.before else 1.0


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}\N{NO-BREAK SPACE}%" if whole else "none"


def rounding(zeros: int, weights: int, config: PruneConfig) -> str:
    """Why the share of pruned weights is not the one asked for; empty where it is, or where only the method knows."""
    method = INITIAL_MASKS.get(config.method)
    ratio = config.sparsity.ratio
    if not method or config.sparsity.m or share(zeros, weights) == share(ratio, 1):
        return ""
    within = "block of columns" if method.within == "columns" else method.within
    return f": of {config.sparsity}, counts are rounded down in each {within}"


def signed(change: float) -> str:
    """A relative change like "-43 %", with a true minus sign."""
    return "" if math.isnan(change) else f"{100 * change:+.0f} %".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit: "8 s", "3 min", "1 h 20 min"; empty where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
