"""The reference against the code, and the pages against one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import penstock
from penstock.engine.http_admin import admin_routes
from tests.docs.pages import DOCS, ROOT, all_pages
from tests.docs.reference import MODULES, REFERENCE, pages

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_NAME = re.compile(r"`((?:checkpoint|engine|functions|mesh|router|state|src/penstock)/[\w/]+\.py)(?:::([\w.]+))?`")


@pytest.mark.parametrize("page", ["api.md", "cli.md", "configuration.md", "faults.md", "metrics.md"])
def test_a_page_that_is_made_from_the_code_agrees_with_it(page: str, tmp_path: Path) -> None:
    made = pages(tmp_path / "data")[REFERENCE / page]()

    assert (REFERENCE / page).read_text(encoding="utf-8") == made, "run: python -m tests.docs.reference"


def test_every_public_name_has_its_place_in_the_reference() -> None:
    documented = {name for _, module, names in MODULES for name in names if module == "penstock"}

    assert documented == set(penstock.__all__)


def test_relative_links_lead_to_a_file_and_a_heading() -> None:
    broken = [f"{page.relative_to(ROOT)}: {link}" for page in linking_pages() for link in broken_links(page)]

    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached = {DOCS / "index.md"}
    waiting = list(reached)
    while waiting:
        for target in linked_files(waiting.pop()) - reached:
            reached.add(target)
            if target.suffix == ".md":
                waiting.append(target)

    assert [str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page.resolve() not in reached] == []


def test_the_map_in_the_facade_names_the_folders_there_are() -> None:
    assert penstock.__doc__ is not None
    named = re.findall(r"^    (\w+)/ ", penstock.__doc__, re.MULTILINE)

    assert sorted(named) == sorted(link.name for link in (ROOT / "src" / "penstock").iterdir() if link.is_symlink())


def test_what_pages_name_in_the_source_is_there() -> None:
    """`engine/task.py::TaskCore.run`: a step that was renamed is renamed in the explanation, too."""
    missing = []
    for page in all_pages():
        for path, symbol in CODE_NAME.findall(page.read_text(encoding="utf-8")):
            source = ROOT / path
            last = symbol.rpartition(".")[2]
            defined = source.is_file() and re.search(
                rf"\b(class|def) {last}\b" if last else "", source.read_text("utf-8")
            )
            if not defined:
                missing.append(f"{page.name}: {path}::{symbol}")

    assert missing == []


def test_the_targets_that_pages_name_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for page in linking_pages() for name in re.findall(r"\bmake ([\w-]+)", code_of(page))}

    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_page_of_the_http_interface_names_every_path() -> None:
    page = (REFERENCE / "http.md").read_text(encoding="utf-8")
    source = (ROOT / "engine" / "http.py").read_text("utf-8") + (ROOT / "engine" / "http_admin.py").read_text("utf-8")
    paths = re.findall(r'web\.(?:get|post)\("(/[^"]*)"', source)

    assert len(paths) > 5
    assert admin_routes is not None
    assert [path for path in paths if path.partition("{")[0] not in page] == []


# Reading pages.


def linking_pages() -> list[Path]:
    return [*all_pages(), *(ROOT / name for name in ("CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"))]


def links_of(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in LINK.findall(text) if not link.startswith(("http://", "https://"))]


def linked_files(page: Path) -> set[Path]:
    targets = {(page.parent / link.partition("#")[0]).resolve() for link in links_of(page) if link.partition("#")[0]}
    return {target for target in targets if target.is_file()}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def code_of(page: Path) -> str:
    """What stands in code, in a block or in a line."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text))
