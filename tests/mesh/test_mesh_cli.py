"""What `penstock mesh` refuses, and how it is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.engine.cli import cli


def mesh(*arguments: str, token: str = "") -> Result:
    return CliRunner().invoke(cli, ["mesh", *arguments], env={"PENSTOCK_TOKEN": token})


def test_its_help_names_what_there_is() -> None:
    shown = mesh("--help").output

    assert "run" in shown
    assert "ca" in shown
    assert "--replicas" in mesh("run", "--help").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("app:app", "--replicas", "2", "--host-port", "7000"), "--host-port is for one host"),
        (("app:app", "--replicas", "0", "--no-gateway"), "leave nothing to start"),
        (("app:app", "--label", "blue"), "is not NAME=VALUE"),
        (("run", "app:app", "--host", "0.0.0.0"), "PEN0602"),
        (("missing:app",), "PEN0154"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mesh(*arguments)

    assert result.exit_code == 2
    assert said in result.output
