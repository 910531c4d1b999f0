"""The report: complete, self-contained, and proof against whatever a model or a data set wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
import sample_runs

from wcse.data.record import NodeRecord, SolveRecord
from wcse.data.summary import Summary
from wcse.progress import Progress, ProgressLine, format_progress, format_seconds
from wcse.report import overview
from wcse.report.page import Report
from wcse.report.plots import Line, Point, plot, spread
from wcse.report.terminal import summary_table
from wcse.types import Problem

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{csp}}\"'&<!--\ud800"


class Page(HTMLParser):
    """What a browser sees: elements with their attributes, and the text of each script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.blocks.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:  # inside a script or style
            tag, attrs, text = self.blocks[-1]
            self.blocks[-1] = (tag, attrs, text + data)
        else:
            self.text.append(data)

    def data(self, name: str) -> str:
        (found,) = [text for _, attrs, text in self.blocks if attrs.get("id") == name]
        return found

    def index(self) -> Any:
        return json.loads(self.data("index"))

    def piece(self, number: int) -> Any:
        return json.loads(zlib.decompress(base64.b64decode(self.data(f"piece-{number}"))))


def summary_of(records: list[SolveRecord], **options: object) -> dict[str, Any]:
    summary = Summary(sample_runs.header(**options), "0123456789ab")
    for record in records:
        summary.add(record)
    return summary.to_json()


def page_of(
    records: list[SolveRecord], *, report: Report | None = None, **options: object
) -> tuple[Page, str]:
    report = report or Report()
    for record in records:
        report.add(record)
    file = BytesIO()
    report.write(file, summary_of(records, **options))
    html = file.getvalue().decode()
    return Page(html), html


@pytest.fixture(scope="module")
def page() -> tuple[Page, str]:
    return page_of(sample_runs.run(problems=4))


def evil_record() -> SolveRecord:
    base = sample_runs.record()
    nodes = tuple(replace(node, text=EVIL) for node in base.nodes)
    solutions = tuple(replace(solution, answer=EVIL) for solution in base.solutions)
    problem = Problem(EVIL, EVIL, EVIL, {EVIL: EVIL})
    return replace(base, problem=problem, nodes=nodes, solutions=solutions, answer=EVIL, verdict=EVIL)


def test_table_and_plots_need_no_script(page: tuple[Page, str]) -> None:
    text = " ".join(page[0].text)
    for name in sample_runs.ALL:
        assert name in text
    assert "weighted vote" in text and "any right (pass@N)" in text and "95 % interval" in text
    assert (
        sum(tag == "polyline" for tag, _ in page[0].elements) == 8
    )  # four curves against N, four against tokens


def test_every_tree_is_in_the_page(page: tuple[Page, str]) -> None:
    index = page[0].index()
    records = {record.key: record for record in sample_runs.run(problems=4)}
    assert index["strategies"] == list(sample_runs.ALL)
    assert index["leftOut"] == 0
    for problem in index["problems"]:
        for strategy, (correct, number) in problem["runs"].items():
            record = records[problem["id"], strategy]
            run = page[0].piece(number)
            tree = page[0].piece(run["tree"])
            assert correct == record.correct == run["correct"]
            assert [row[6] for row in tree] == [n.text for n in sorted(record.nodes, key=lambda n: n.path)]
            assert all(row[0] < place for place, row in enumerate(tree))  # parents first
            chosen = run["solutions"][run["chosen"]]
            assert chosen[1] == record.answer and chosen[4] == record.correct


def test_strategies_with_the_same_samples_share_one_tree(page: tuple[Page, str]) -> None:
    runs = page[0].index()["problems"][0]["runs"]
    trees = {name: page[0].piece(number)["tree"] for name, (_, number) in runs.items()}
    assert trees["best_of_n"] == trees["weighted_best_of_n"]
    assert len({trees["greedy"], trees["majority"], trees["best_of_n"], trees["beam_search"]}) == 4


def test_page_asks_for_nothing_from_outside(page: tuple[Page, str]) -> None:
    for tag, attrs in page[0].elements:
        assert not {"src", "href", "srcset", "action", "data", "background"} & attrs.keys(), tag
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
    assert set(re.findall(r"\w+://[\w./]+", page[1])) <= {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address
    assert "url(" not in page[1] and "@import" not in page[1] and "import(" not in page[1]


def test_policy_allows_exactly_our_script_and_style(page: tuple[Page, str]) -> None:
    (policy,) = [
        a["content"] for t, a in page[0].elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag, attrs, text in page[0].blocks:
        if tag == "style" or "type" not in attrs:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
    inline = [
        name for _, attrs in page[0].elements for name in attrs if name == "style" or name.startswith("on")
    ]
    assert inline == []


def test_model_text_cannot_become_markup() -> None:
    named = EVIL.replace("\ud800", "")
    page, html = page_of([evil_record()], policy=named, problems=named, system_prompt=named)
    clean, _ = page_of([sample_runs.record()])
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    executable = [text for tag, attrs, text in page.blocks if tag == "script" and "type" not in attrs]
    assert len(executable) == 1 and "alert" not in executable[0]
    assert "<img" not in html and "alert(1)</script>" not in html
    index = page.index()
    assert index["problems"][0]["id"] == EVIL.replace("\ud800", "\ufffd")
    run = page.piece(index["problems"][0]["runs"]["best_of_n"][1])
    assert run["prompt"] == run["answer"] == EVIL.replace("\ud800", "\ufffd")


def test_script_shows_text_only_as_text(page: tuple[Page, str]) -> None:
    (script,) = [text for tag, attrs, text in page[0].blocks if tag == "script" and "type" not in attrs]
    for danger in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
    ):
        assert danger not in script


def test_a_full_page_says_which_trees_it_lacks() -> None:
    page, _ = page_of(sample_runs.run(problems=2), report=Report(most_tree_bytes=1500))
    index = page.index()
    numbers = [number for problem in index["problems"] for _, number in problem["runs"].values()]
    assert index["leftOut"] == numbers.count(None) > 0
    assert numbers[0] is not None


def test_unscored_unfinished_and_empty_runs() -> None:
    base = sample_runs.record()
    cut = NodeRecord((0,), None, (1, 2), "half", "path_cap", None, None)
    solution = replace(base.solutions[0], path=(0,), answer=None, answer_class=None, agg=None, correct=False)
    record = replace(base, nodes=(cut,), solutions=(solution,), selectors={}, answer=None, correct=None)
    page, _ = page_of([record])
    run = page.piece(page.index()["problems"][0]["runs"]["best_of_n"][1])
    assert run["chosen"] is None and run["solutions"] == [[0, None, None, None, False, False]]
    page_of([])
    page_of([replace(base, nodes=(), solutions=(), selectors={})])


def test_every_class_of_the_plots_has_a_style(page: tuple[Page, str]) -> None:
    (style,) = [text for tag, _, text in page[0].blocks if tag == "style"]
    used = {name for _, attrs in page[0].elements for name in (attrs.get("class") or "").split()}
    known = set(re.findall(r"\.([a-z][\w-]*)", style))
    assert {name for name in used if name.startswith(("hue-", "line-"))} <= known
    opened = re.findall(r'at\("([\w-]+)"\)', page[1])
    ids = {attrs["id"] for _, attrs in page[0].elements if "id" in attrs}
    assert set(opened) <= ids


# plots


def test_plot_is_well_formed_and_escaped() -> None:
    lines = [
        Line("a < b & c", "line-pass", [1, 2, 4], [0.2, 0.5, 0.7]),
        Line("flat", "line-majority", [1], [0.5]),
    ]
    points = [Point("p", "hue-0", 4, 0.7, 0.5, 0.8), Point("q", "hue-1", 4, 0.7, 0.6, 0.9)]
    svg = plot(lines, points, x_title="N", y_title="<y>", x_format=str, ticks=[1, 2, 4])
    root = ElementTree.fromstring(svg)
    marks = [
        float(path.attrib["d"][1:].split()[0]) for path in root.iter("path") if path.attrib["d"].endswith("Z")
    ]
    assert len(set(marks)) == 2  # beside, not over each other
    assert "a &lt; b &amp; c" in svg


def test_plot_keeps_to_its_frame_whatever_the_values() -> None:
    for share in (0.0, 0.5, 1.0):
        for x in (1.0, 1e6):
            svg = plot(
                [], [Point("p", "hue-0", x, share, share, share)], x_title="", y_title="", x_format=str
            )
            for element in ElementTree.fromstring(svg).iter("circle"):
                assert 0 <= float(element.attrib["cy"]) <= 360


def test_labels_do_not_overlap() -> None:
    places = spread([10.0, 11.0, 12.0, 300.0], 16, 0, 310)
    assert all(b - a >= 16 - 1e-3 for a, b in pairwise(places)) and places[3] <= 310
    assert spread([50.0, 100.0], 16, 0, 310) == [50.0, 100.0]
    assert spread([], 16, 0, 310) == []


def test_short_numbers() -> None:
    numbers = (0, 7, 999, 1000, 1234, 99_949, 123_456, 1e6, 2.5e9)
    assert [overview.short(n) for n in numbers] == [
        "0",
        "7",
        "999",
        "1k",
        "1.2k",
        "99.9k",
        "123k",
        "1M",
        "2.5G",
    ]


# terminal


def test_summary_table_lines_up() -> None:
    lines = summary_table(summary_of(sample_runs.run(problems=2))).splitlines()
    assert len(lines) == 3 + len(sample_runs.ALL)
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:2] == ["strategy", "accuracy"]
    assert lines[2].startswith("one sample (pass@1)") and "%" in lines[2]
    assert lines[3].startswith("greedy") and "%" in lines[3]


PROGRESS = Progress(5, 10, 8000, 2000, 30, 100, 4.0, problems_skipped=3)


class Stream:
    def __init__(self, terminal: bool) -> None:
        self.terminal, self.written = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_numbers() -> None:
    assert PROGRESS.tokens_per_second == 2000 and PROGRESS.reuse == 0.2
    assert PROGRESS.eta == 4.0 / 2 * 5  # what the journal already held says nothing of the pace
    assert format_progress(PROGRESS) == "5/10 · 2,000 tok/s · reuse 20% · pages 30/100 · ETA 10.0s"
    assert replace(PROGRESS, problems_done=3).eta is None
    assert Progress(0, 1, 0, 0, 0, 0, 0.0).reuse == 0.0
    assert [format_seconds(s) for s in (None, 3.21, 245, 7620)] == ["--", "3.2s", "4m05s", "2h07m"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_line_writes_seldom_and_ends_with_the_last_state(terminal: bool) -> None:
    now = [0.0]
    stream = Stream(terminal)
    line = ProgressLine(stream, clock=lambda: now[0])  # type: ignore[arg-type]
    for step in range(100):
        now[0] = step * 0.25
        line(replace(PROGRESS, problems_done=step))
    line.close()
    if terminal:
        assert stream.written.count("\r") == 100 and stream.written.endswith("\n")
    else:
        assert stream.written.count("\n") == 3 and "\r" not in stream.written  # at 10 s, at 20 s, at the end
    assert "99/10" in stream.written.splitlines()[-1]


def test_quiet_writes_nothing() -> None:
    stream = Stream(True)
    line = ProgressLine(stream, quiet=True)  # type: ignore[arg-type]
    line(PROGRESS)
    line.close()
    assert stream.written == ""
