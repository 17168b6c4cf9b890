"""An authority issues identities that fit together, and nothing is overwritten that people rely on."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError, Refused
from penstock.mesh.certificates import describe, issue, make_authority
from tests.mesh.authorities import LONG, authority, identity

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_an_authority_says_its_trust_domain_and_its_time(tmp_path: Path) -> None:
    described = describe(make_authority(tmp_path / "ca", "demo.local", timedelta(days=365), NOW))

    assert described.identity == "spiffe://demo.local"
    assert described.authority
    assert described.ends == NOW + timedelta(days=365)


def test_an_identity_says_who_it_is_and_its_time(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca", "demo.local", timedelta(days=365), NOW)

    described = issue(tmp_path / "ca", tmp_path / "id", namespace="eu", name="shop", lifetime=LONG, now=NOW)

    assert described == describe(tmp_path / "id" / "tls.crt")
    assert described.identity == "spiffe://demo.local/ns/eu/sa/shop"
    assert not described.authority
    assert described.begins < NOW < described.ends == NOW + LONG


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")

    for key in (tmp_path / "ca" / "ca.key", folder / "tls.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(file.name for file in folder.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    authority(tmp_path / "ca")
    before = (tmp_path / "ca" / "ca.key").read_bytes()

    with pytest.raises(Refused, match=r"PEN0876 .* has an authority already"):
        authority(tmp_path / "ca")
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before


def test_nothing_is_issued_for_longer_than_the_authority_lives(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca", "demo.local", timedelta(days=1), NOW)

    with pytest.raises(ConfigurationError, match=r"PEN0876 .* is valid until 2030-01-03 03:04 UTC"):
        issue(tmp_path / "ca", tmp_path / "id", namespace="eu", name="shop", lifetime=timedelta(days=2), now=NOW)
    assert not (tmp_path / "id").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "ö", "a b"])
def test_a_name_that_can_not_be_in_an_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0872 .* can't be part of a SPIFFE id"):
        identity(authority(tmp_path / "ca"), tmp_path / "id", name)


@pytest.mark.parametrize("trust_domain", ["", "Demo", "demo/local", "ä.local"])
def test_a_trust_domain_that_can_not_be_one_is_refused(tmp_path: Path, trust_domain: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0872 .* can't be a trust domain"):
        authority(tmp_path / "ca", trust_domain)


def test_a_folder_without_an_authority_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0876 .*/ca.crt can't be read: No such file or directory"):
        identity(tmp_path / "ca", tmp_path / "id")


def test_a_key_of_another_authority_is_said(tmp_path: Path) -> None:
    mine, other = authority(tmp_path / "ca"), authority(tmp_path / "other")
    (mine / "ca.key").write_bytes((other / "ca.key").read_bytes())

    with pytest.raises(ConfigurationError, match=r"PEN0876 .*/ca.key is not the key of"):
        identity(mine, tmp_path / "id")


def test_what_is_no_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(ConfigurationError, match=r"PEN0876 .*/notes.txt can't be read: it is not PEM"):
        describe(tmp_path / "notes.txt")
