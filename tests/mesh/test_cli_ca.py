"""`penstock mesh ca` from an empty folder to an identity that is renewed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.errors import ConfigurationError
from penstock.mesh.cli_ca import ca
from penstock.mesh.identity import load_credentials


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(*arguments: str) -> str:
    result = CliRunner().invoke(ca, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_identity_is_issued_and_renewed(folder: Path) -> None:
    assert told("init", "demo.local").startswith("spiffe://demo.local  valid until ")
    assert told("issue", "shop", "id", "--for", "1h").startswith("spiffe://demo.local/ns/default/sa/shop  valid until ")
    first = load_credentials(folder / "id")
    told("issue", "shop", "id", "--for", "2h")

    assert load_credentials(folder / "id").ends_s - first.ends_s >= 3600


def test_what_is_issued_can_be_shown(folder: Path) -> None:
    told("init", "demo.local", "--authority", "keys")
    said = json.loads(told("issue", "shop", "id", "--namespace", "eu", "--authority", "keys", "--json"))

    shown = json.loads(told("show", "id", "--json"))
    assert shown == said | {"path": "id/tls.crt"}
    assert shown["identity"] == "spiffe://demo.local/ns/eu/sa/shop"
    assert told("show", "id/ca.crt").startswith("spiffe://demo.local  valid until ")


def test_without_the_library_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "penstock.mesh.certificates", None)

    with pytest.raises(ConfigurationError, match=r"PEN0877 .* pip install 'penstock\[identity\]'"):
        told("init", "demo.local")
