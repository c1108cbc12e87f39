"""The report of a run as a text: complete, below its size, without paths, and with every given text escaped."""

from __future__ import annotations

import shlex
import shutil
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from analysis.report import MOST_ROWS, report
from analysis.tables import tables
from barber.cli import main
from barber.errors import UserError
from barber.jobs.options import job_from
from barber.parsing import Parser
from barber.runs.directory import RunDirectory
from barber.settings import FLAGS
from tests.support.interrupted import interrupted, whole_run
from tests.support.reports import HOSTILE, auto_run, hostile_run, long_run

pytestmark = pytest.mark.slow
MOST_BYTES = 6_000_000


class Page(HTMLParser):
    """The elements of a page, its headings in order, its text outside scripts, its ids, and what it loads."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: dict[str, int] = {}
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text, self._inside = "", ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self._inside = tag if tag in ("script", "style") else ""
        self.headings += [tag] if tag in ("h1", "h2", "h3", "h4") else []
        self.ids += [value for name, value in attributes if name == "id"]
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside else data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report(auto_run()))


def figures(page: Page) -> list[str]:
    return [name.removeprefix("figure-") for name in page.ids if name.startswith("figure-")]


def test_a_report_has_every_figure_and_table(page):
    assert figures(page) == [
        "perplexity", "flips", "flips-by-layer", "flips-by-module", "errors", "saliency", "mask", "rounds", "choices",
    ]  # fmt: skip
    assert page.elements["figure"] == page.elements["figcaption"] == 9
    assert page.elements["script"] == 9 + 2, "the data of each figure, plotly, and what draws"
    filled = [name for name, frame in tables(auto_run()).items() if not frame.empty]
    assert page.elements["table"] >= len([name for name in filled if name not in ("texts", "notices")])
    for words in ("the cat", "Dense", "Initial mask", "Rebuilt", "calibration.samples", "transformers", "model hash"):
        assert words.replace(" ", "_") in page.text or words in page.text


def test_headings_are_in_order_and_ids_are_unique(page):
    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1
    levels = [int(heading[1]) for heading in page.headings]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.ids) == len(set(page.ids))


def test_a_report_loads_nothing(page):
    assert all(link.startswith(("#", "data:,")) for link in page.loads)


def test_the_command_in_a_report_is_the_job(page):
    (line,) = [line for line in page.text.splitlines() if line.startswith("python main.py")]
    parser = Parser()
    for flag in FLAGS:
        parser.add_flag(flag)
    job = job_from(vars(parser.parse_args(shlex.split(unescape(line))[2:])))
    assert str(job.prune) == "wanda 50%, rebuilt by WD, threshold auto, up to 4 rounds, kept weights refitted"
    assert (job.nsamples, job.seqlen, job.prompts, job.run_dir) == (8, 24, ("the cat",), None)


def test_a_report_does_not_say_where_the_run_is(page):
    assert str(auto_run().path) not in report(auto_run()).decode()


def test_all_given_text_is_escaped(tmp_path, page):
    hostile = Page(report(hostile_run(tmp_path / "run")))
    assert hostile.text.count(HOSTILE) >= 8
    assert "img" not in hostile.elements
    assert hostile.elements["script"] == page.elements["script"]
    assert all(link.startswith(("#", "data:,")) for link in hostile.loads)


def test_a_report_of_a_large_model_is_below_its_size(tmp_path):
    text = report(long_run(tmp_path / "run", 80))
    assert len(text) < MOST_BYTES
    page = Page(text)
    assert f"The first {MOST_ROWS} of 560 rows" in page.text
    assert len(figures(page)) >= 8


@pytest.mark.parametrize(
    ("order", "count", "words", "names"),
    [
        ("no rebuild", None, "This run has no rebuild, so no mask changed.", ["perplexity"]),
        ("paper", 1, "The run has not ended", []),
        ("paper", 8, "The run was stopped before the rebuild of its first sub-block ended.", ["perplexity"]),
        ("paper", 14, "The run has not ended", ["perplexity", "flips"]),
        ("one-pass", None, "This run chose no swaps by validation error.", ["perplexity", "flips", "mask"]),
    ],
)
def test_a_run_without_results_of_a_kind_says_so(order, count, words, names, tmp_path):
    if count == 1:  # the events before the first measurement of the dense model
        shutil.copytree(whole_run(order), tmp_path / "run")
        lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "run" / "events.jsonl").write_text(next(line for line in lines if '"RunStarted"' in line))
        for name in ("checksums.jsonl", "job.json"):
            (tmp_path / "run" / name).unlink()
        path = tmp_path / "run"
    else:
        path = whole_run(order) if count is None else interrupted(order, tmp_path / "run", count)
    page = Page(report(RunDirectory(path)))
    assert words in page.text
    assert set(names) <= set(figures(page))
    assert ("perplexity" in figures(page)) == ("perplexity" in names)
    assert "This run did not record its environment." in page.text


def test_a_damaged_run_has_no_report(tmp_path):
    shutil.copytree(whole_run("paper"), tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_bytes()
    (tmp_path / "run" / "events.jsonl").write_bytes(events.replace(b"0.1", b"0.2", 1))
    with pytest.raises(UserError, match="is damaged"):
        report(RunDirectory(tmp_path / "run"))


def test_the_command_writes_a_new_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = str(auto_run().path)
    assert main(["report", run]) == 0
    assert Path("run-report.html").read_text("utf-8").startswith("<!doctype html>")
    for words, sentence in (
        ([run, "--output", "report.pdf"], "does not end in .html"),
        ([run], "there already"),
        ([run, "--output", "missing/report.html"], "cannot be written"),
        (["missing"], "does not exist"),
    ):
        assert main(["report", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run-report.html"]
