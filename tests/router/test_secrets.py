"""Settings that name a secret: what stands in its place, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.router.secrets import resolved


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${A}", "one"),
        ("http://${A}.${B}:8081", "http://one.two:8081"),
        ("$A {A} ${", "$A {A} ${"),
        ("${C}", "${A}"),  # What stands in a secret is not looked up in turn.
    ],
)
def test_variables_are_replaced(text: str, becomes: str) -> None:
    assert resolved(text, {"A": "one", "B": "two", "C": "${A}"}, what="It") == becomes


def test_a_file_loses_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a b \n", encoding="utf-8")

    assert resolved(f"file:{tmp_path / 'token'}", {}, what="It") == "a b "


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="The token is in the variable NOWHERE, which is not set") as variable:
        resolved("${NOWHERE}", {}, what="The token")
    with pytest.raises(ConfigurationError, match=r"The token is in .*nowhere, which can't be read") as file:
        resolved(f"file:{tmp_path / 'nowhere'}", {}, what="The token")

    assert variable.value.code == file.value.code == "PEN0160"
