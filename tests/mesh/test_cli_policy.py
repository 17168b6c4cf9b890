"""`penstock mesh check-policy`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.errors import ConfigurationError
from penstock.mesh.cli_policy import check_policy

TEXT = """
functions:
  shop/payment:
    outlier_detection: {consecutive_5xx: 3}
routes:
- match: {function: shop/payment}
  timeout: 2s
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(TEXT)
    return path


def test_a_file_is_counted_and_its_warnings_are_told(path: Path) -> None:
    said = CliRunner().invoke(check_policy, [str(path), "--replicas", "3"]).output.splitlines()

    assert said[0].startswith(f"{path} can be used: 1 function, 1 route, 0 access rules (")
    assert said[1].startswith("Warning: line 4, functions.shop/payment.outlier_detection: one of 3 endpoints is 33.3 %")


def test_with_json_programs_can_read_it(path: Path) -> None:
    found = json.loads(CliRunner().invoke(check_policy, [str(path), "--json"]).output)

    assert (found["functions"], found["routes"], found["access_rules"]) == (["shop/payment"], 1, 0)
    assert len(found["warnings"]) == 1


@pytest.mark.parametrize(("text", "told"), [("routes: 5", "routes: expected a list"), (None, "can't be read")])
def test_a_file_that_can_not_be_used_ends_the_command(path: Path, text: str | None, told: str) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)

    result = CliRunner().invoke(check_policy, [str(path)])

    assert isinstance(result.exception, ConfigurationError)
    assert told in result.exception.message
