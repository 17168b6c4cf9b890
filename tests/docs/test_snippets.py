"""Every snippet of the documentation is run as a reader would run it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, all_pages, blocks_of, commands_of, matches
from tests.docs.running import run_page
from tests.postgres import running_server

POSTGRES = "postgresql://penstock@127.0.0.1:5432/postgres"


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_do_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    if "$ curl " in text and shutil.which("curl") is None:
        pytest.skip("curl is not installed: apt-get install curl")
    if POSTGRES not in text:
        run_page(page, tmp_path)
        return
    with running_server() as server:
        run_page(page, tmp_path, dsn=server.dsn)


def test_few_blocks_are_left_alone_and_each_says_why() -> None:
    left = [(page.name, block.not_run) for page in all_pages() for block in blocks_of(page) if block.not_run]

    assert all(len(reason) > 10 for _, reason in left)
    assert len(left) <= 6, left


def test_a_page_shows_three_dots_for_what_differs_from_run_to_run() -> None:
    assert matches("a ... c\n...\nlast\n", "a b c  \nx\ny\nlast\n\n")
    assert matches("...\nlast", "last\n")
    assert not matches("a ... c\nlast", "a b c\nx\nlast\n")
    assert not matches("a", "a b")


def test_a_command_has_the_output_that_follows_it() -> None:
    commands = commands_of("$ one\nfirst\nsecond\n$ two \\\n> three\n")

    assert [tuple(command) for command in commands] == [("one", "first\nsecond"), ("two \\\nthree", "")]
