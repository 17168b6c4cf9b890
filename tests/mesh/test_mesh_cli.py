"""What `penstock mesh` refuses, and how it is found."""

from __future__ import annotations

import socket
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
        (("app:app", "--keep-answers", "59s"), "Give at least 1m"),
        (("app:app", "--keep-promises", "5s"), "Give at least 1m"),
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


def test_a_port_in_use_is_said_with_what_there_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text('from penstock import App\n\napp = App("shop")\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = mesh("app:app", "--port", str(taken.getsockname()[1]))

    assert result.exit_code == 2
    assert "PEN0612" in result.output
    assert "a free one with --port 0, or none with --no-gateway." in result.output
