"""The whole way from a directory to a page, and the page in a browser."""

from __future__ import annotations

import asyncio
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from penstock.compare.canvas import DARK, LIGHT, Omission, Plot, render
from penstock.compare.plots import plots_of
from penstock.compare.report import Figures, write_report
from penstock.compare.summary import Summary, summarise
from penstock.errors import ConfigurationError, InvalidInput
from tests.compare.browser import Visit, chromium, running
from tests.compare.synthetic import NOTHING, STREAM, Behaviour, Directory, demonstration, plan_of

VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})
DRAWN = ["P1", "P2", "P4", "P5", "P6", "P7", "P8", "P9", "P10"]
"""What a comparison with one interval of checkpoints, and without reads of the state, can fill."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a comparison that fills every plot it can."""
    directory = tmp_path_factory.mktemp("comparison")
    demonstration(directory)
    return write_report(directory)


@pytest.fixture(scope="module")
def summary(report: Path) -> Summary:
    return summarise(report.parent)


class Tags(HTMLParser):
    """Checks that what is opened is closed, and collects names."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name in ("src", "href", "xlink:href") if (value := given.get(name))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def tags(report: Path) -> Tags:
    found = Tags()
    found.feed(report.read_text(encoding="utf-8"))
    return found


def test_the_page_stands_alone_and_is_small(report: Path, tags: Tags) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) <= 5_000_000
    assert all(link.startswith("#") for link in tags.links)
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_is_well_formed_and_its_names_are_its_own(tags: Tags) -> None:
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    assert {link[1:] for link in tags.links} <= set(tags.ids)


def test_the_conclusion_stands_before_the_differences_and_these_before_the_plots(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    places = [
        text.index(part) for part in ("<h1>", "Choose the stream where", "What differs before", "<svg", "Hypotheses")
    ]
    assert places[:4] == sorted(places[:4])


def test_what_others_wrote_is_escaped(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "made up &lt;for tests&gt; &amp; nothing else" in text
    assert "<for tests>" not in text


def test_every_plot_is_drawn_or_left_out_with_its_reason(report: Path, summary: Summary) -> None:
    plots = plots_of(summary)
    assert [plot.name for plot in plots] == [f"P{number}" for number in range(1, 12)]
    assert [plot.name for plot in plots if isinstance(plot, Plot)] == DRAWN
    text = report.read_text(encoding="utf-8")
    for plot in plots:
        if isinstance(plot, Omission):
            assert plot.reason in text


def test_every_picture_has_a_description_its_numbers_and_a_file(report: Path, summary: Summary) -> None:
    text = report.read_text(encoding="utf-8")
    pictures = [picture for plot in plots_of(summary) if isinstance(plot, Plot) for picture in plot.pictures]
    assert text.count("<svg") == text.count("The numbers behind it") == len(pictures) == 15
    for picture in pictures:
        assert picture.description.endswith(".")
        assert picture.rows
        assert all(len(row) == len(picture.columns) for row in picture.rows)
        file = report.parent / "plots" / f"{picture.name}.png"
        assert file.read_bytes().startswith(b"\x89PNG")


def test_pictures_have_no_colours_but_those_that_the_page_names(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_figures_are_written_in_full(report: Path, summary: Summary) -> None:
    figures = msgspec.json.decode((report.parent / "figures.json").read_bytes(), type=Figures)
    assert figures.summary == summary
    assert len(figures.summary.runs) == 40
    assert figures.omitted_plots.keys() == {"P3", "P11"}


def test_the_page_names_the_records_that_it_was_made_of(report: Path, summary: Summary) -> None:
    assert f"SHA-256 {summary.records_sha256}" in report.read_text(encoding="utf-8")


def test_the_same_records_give_the_same_page(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM], [NOTHING], [0]))
    made.play("S2", NOTHING, 0, Behaviour())
    first = write_report(tmp_path, tmp_path / "first" / "page.html").read_bytes()
    assert write_report(tmp_path, tmp_path / "second" / "page.html").read_bytes() == first


def test_a_comparison_of_one_arm_has_a_page_that_claims_little(tmp_path: Path) -> None:
    made = Directory(tmp_path, plan_of([STREAM], [NOTHING], [0]))
    made.play("S2", NOTHING, 0, Behaviour())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "no arm was measured under a fault" in text
    assert text.count("These runs give no reason that would decide.") == 2
    assert "No control was measured" in text


def test_a_picture_of_the_same_figures_is_the_same(summary: Summary) -> None:
    matrix = next(plot for plot in plots_of(summary) if plot.name == "P6")
    assert isinstance(matrix, Plot)
    assert render(matrix.pictures[0]) == render(matrix.pictures[0])
    assert "0 · 7 · 0 · 0 · 0" in render(matrix.pictures[0]).svg


def test_without_the_library_the_remedy_is_named(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("penstock.compare.page", "penstock.compare.canvas", "matplotlib"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError) as caught:
        write_report(report.parent)
    assert caught.value.code == "PEN0981"
    assert "pip install 'penstock[compare]'" in str(caught.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        write_report(tmp_path)
    assert caught.value.code == "PEN0901"


# ---- in a browser

SEEN = """(() => {
    const figures = [...document.querySelectorAll('figure')];
    const size = svg => (box => Math.min(box.width, box.height))(svg.getBoundingClientRect());
    return {
        plots: [...document.querySelectorAll('[data-plot]')].map(section => section.dataset.plot),
        figures: figures.length,
        smallest: Math.min(...figures.map(figure => size(figure.querySelector('svg')))),
        named: figures.every(figure => document.getElementById(
            figure.querySelector('svg').getAttribute('aria-labelledby')).textContent.length > 20),
        sideways: document.documentElement.scrollWidth > document.documentElement.clientWidth,
        page: getComputedStyle(document.body).backgroundColor,
        text: getComputedStyle(document.querySelector('#P6 svg text')).fill,
    };
})()"""


@pytest.mark.skipif(not chromium(), reason="there is no Chromium: install Debian's package chromium")
def test_the_page_opens_in_chromium_in_light_and_dark(report: Path, tmp_path: Path) -> None:
    async def visit() -> list[Visit]:
        async with running(tmp_path) as browser:
            schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark", "light")
            return [await browser.visit(report, SEEN, scheme=scheme) for scheme in schemes]

    visits = asyncio.run(visit())
    for seen in visits:
        assert seen.errors == []
        assert seen.requests == []
        assert seen.found["plots"] == DRAWN
        assert seen.found["figures"] == 15
        assert seen.found["smallest"] > 100
        assert seen.found["named"]
        assert not seen.found["sideways"]
    # The quickest of them: the first waits for the browser itself, and any for what else the machine does.
    assert min(seen.seconds for seen in visits) < 2
    light, dark, _ = visits
    assert light.found["page"] != dark.found["page"]
    assert light.found["text"] != dark.found["text"]
