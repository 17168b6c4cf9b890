"""The facade: what it promises is there, is sorted, is typed, and is all a user needs to name."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import penstock
from penstock import errors
from penstock.errors import PenstockError


def declared_homes() -> dict[str, str]:
    """Name -> module, as the import statements say that the type checkers read."""
    assert penstock.__file__ is not None
    tree = ast.parse(Path(penstock.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        alias.name: node.module
        for node in imports
        for alias in node.names
        if node.module is not None and node.module.startswith("penstock.")
    }


def test_the_names_are_sorted_and_there() -> None:
    assert penstock.__all__ == sorted(penstock.__all__)
    assert len(set(penstock.__all__)) == len(penstock.__all__)
    assert all(hasattr(penstock, name) for name in penstock.__all__)


def test_the_type_checkers_read_what_the_program_gets() -> None:
    homes = declared_homes()

    assert set(homes) == set(penstock.__all__)
    for name, module in homes.items():
        assert getattr(penstock, name) is getattr(import_module(module), name)


def test_a_name_that_is_not_there_is_missing() -> None:
    assert not hasattr(penstock, "Nonsense")


def test_every_error_can_be_caught_by_a_user() -> None:
    declared = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PenstockError)}

    assert {cls.__name__ for cls in declared} <= set(penstock.__all__)


def test_everything_promised_is_documented() -> None:
    assert [name for name in penstock.__all__ if not getattr(penstock, name).__doc__] == []


def test_importing_starts_nothing_and_loads_no_runtime() -> None:
    script = "import penstock, sys; print(sorted(m for m in sys.modules if m.startswith(('penstock.', 'asyncio'))))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(result.stdout)

    assert [name for name in loaded if name.split(".")[:2] not in ALLOWED] == []


ALLOWED = [["penstock", name] for name in ("durations", "errors", "functions", "ids", "records")]


def test_the_type_checkers_know_it_is_typed() -> None:
    assert penstock.__file__ is not None
    assert Path(penstock.__file__).with_name("py.typed").exists()
