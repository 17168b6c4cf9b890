"""The catalogue of error codes against the source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from penstock.engine.explain import catalogue, entry_of, page_of, reference
from penstock.errors import InvalidInput

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = (
    "checkpoint",
    "compare",
    "compare/checkout",
    "engine",
    "engine/cluster",
    "functions",
    "mesh",
    "mesh/dapr",
    "mesh/loaders",
    "mesh/policies",
    "router",
    "src/penstock",
    "src/penstock/testing",
    "state",
)
CODE = re.compile(r"(PEN\d{4})(?: |$)")


def codes_in(module: Path) -> set[str]:
    """The codes a module gives to errors: texts that are a code or begin with one. Docstrings and look-ups by code
    (keys of a dictionary) use none."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            skipped.update(id(key) for key in node.keys)
        elif isinstance(node, ast.Expr):
            skipped.add(id(node.value))
    return {
        match[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
        if (match := CODE.match(node.value))
    }


def used() -> dict[str, set[str]]:
    """Code -> the modules that use it."""
    found: dict[str, set[str]] = defaultdict(set)
    for folder in FOLDERS:
        for module in (ROOT / folder).glob("*.py"):
            for code in codes_in(module):
                found[code].add(module.relative_to(ROOT).as_posix())
    return found


def test_every_code_of_the_source_has_an_entry() -> None:
    assert sorted(used().keys() - catalogue().keys()) == []


def test_every_entry_is_a_code_of_the_source() -> None:
    assert sorted(catalogue().keys() - used().keys()) == []


def test_an_entry_names_the_modules_that_use_its_code() -> None:
    """A second module with the same code is where two meanings begin: whoever adds one reads the entry first."""
    found = used()

    for code, entry in catalogue().items():
        assert sorted(entry.modules) == sorted(found[code]), code


@pytest.mark.parametrize("code", catalogue())
def test_an_entry_says_everything_in_sentences(code: str) -> None:
    entry = catalogue()[code]

    assert re.fullmatch(r"PEN0[1-9]\d\d", code)
    assert entry.title
    assert entry.title[-1] != "."
    for text in (entry.meaning, entry.cause, entry.remedy):
        assert text[-1] in ".)" or "penstock " in text or "pip " in text or text.endswith("..."), text
    assert entry.example


def test_the_reference_is_what_the_catalogue_says() -> None:
    page = ROOT / "docs" / "reference" / "errors.md"

    assert page.read_text(encoding="utf-8") == reference(), (
        "write it anew: python -c 'from penstock.engine.explain import reference; print(reference(), end=\"\")'"
    )


def test_a_page_for_the_terminal() -> None:
    assert page_of(entry_of("PEN0111")) == (
        "PEN0111  An empty token can't be cancelled\n\n"
        "A delayed message is called back by the token it was sent with.\n\n"
        "Cause:\n  ctx.cancel got an empty text.\n\n"
        "What to do:\n  Give the delayed message a token, and cancel that.\n\n"
        'Example:\n  ctx.send_after("1h", f, id, m, token="close")   ...   ctx.cancel("close")'
    )


@pytest.mark.parametrize("written", ["PEN0111", "pen0111", "0111", "111"])
def test_a_code_may_be_written_in_several_ways(written: str) -> None:
    assert entry_of(written).code == "PEN0111"


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        entry_of("PEN9999")

    assert str(raised.value) == (
        "PEN0627 There is no error code 'PEN9999'. A code is the word in front of an error: PEN0201."
    )
