"""What `penstock sidecar` refuses to start with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.errors import ConfigurationError, PenstockError
from penstock.mesh.cli_sidecar import sidecar
from tests.mesh.authorities import authority, identity


def started(folder: Path, *options: str) -> None:
    """Raises what it ends with."""
    required = ["--app-id=shop", "--app-port=8000", f"--data={folder / 'data'}"]
    # Commands keep what their help is called, which the group says otherwise.
    result = CliRunner().invoke(sidecar, [*required, *options], help_option_names=["-h", "--help"])
    assert isinstance(result.exception, PenstockError), result.output
    raise result.exception


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match=r"PEN0884 The sidecar can't listen at 127.0.0.1:"),
    ):
        started(tmp_path, f"--port={taken.getsockname()[1]}")


def test_a_policy_file_that_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("functions:\n  app/stock: {limits: {max_requests: many}}\n")

    with pytest.raises(ConfigurationError, match=r"mesh.yaml"):
        started(tmp_path, "--policies", str(tmp_path / "mesh.yaml"))


def test_strict_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("tls: {mode: STRICT}\n")

    with pytest.raises(ConfigurationError, match="PEN0808"):
        started(tmp_path, "--policies", str(tmp_path / "mesh.yaml"))


def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id", expired=True)

    with pytest.raises(ConfigurationError, match="PEN0873"):
        started(tmp_path, "--identity", str(folder))


def test_a_registry_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="PEN0871"):
        started(tmp_path, "--registry", "consul://shop")
