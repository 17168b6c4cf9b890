"""Credentials are proved before they are used, replaced while in use, and said to run out before they do."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.identity import Identity, load_credentials, peer_of, spiffe_id, trust_domain_of, url_of
from penstock.mesh.policies.settings import PolicySet, Tls, TlsMode
from penstock.mesh.protection import identity_of, tls_labels
from penstock.mesh.registry import Endpoint
from tests.mesh.authorities import LONG, authority, identity

SHOP = "spiffe://demo.local/ns/default/sa/shop"


def test_credentials_that_fit_together_are_taken(tmp_path: Path) -> None:
    credentials = load_credentials(identity(authority(tmp_path / "ca"), tmp_path / "id"))

    assert credentials.identity == "spiffe://demo.local/ns/default/sa/shop"
    assert credentials.ends_s - credentials.begins_s == LONG.total_seconds() + 300


def test_an_expired_certificate_is_said(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id", expired=True)

    with pytest.raises(ConfigurationError, match=r"PEN0873 .*/tls.crt, .* certificate has expired\. Issue another"):
        load_credentials(folder)


def test_a_certificate_of_another_trust_domain_is_said(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")

    with pytest.raises(ConfigurationError, match=r"PEN0872 .*/sa/shop is not of the trust domain other.local"):
        load_credentials(folder, "other.local")


def test_a_certificate_of_another_authority_is_said(tmp_path: Path) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")
    shutil.copy(authority(tmp_path / "other") / "ca.crt", folder / "ca.crt")

    with pytest.raises(ConfigurationError, match=r"PEN0872 .* can't be used"):
        load_credentials(folder)


def test_a_key_of_another_certificate_is_said(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")
    folder, other = identity(issuer, tmp_path / "id"), identity(issuer, tmp_path / "other")
    shutil.copy(other / "tls.key", folder / "tls.key")

    with pytest.raises(ConfigurationError, match=r"PEN0872 .* key values mismatch"):
        load_credentials(folder)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_file_that_is_missing_is_said(tmp_path: Path, name: str) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")
    (folder / name).unlink()

    with pytest.raises(ConfigurationError, match=r"PEN0872 .* No such file or directory"):
        load_credentials(folder)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_file_of_something_else_is_said(tmp_path: Path, name: str) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")
    (folder / name).write_text("something else")

    with pytest.raises(ConfigurationError, match="PEN0872"):
        load_credentials(folder)


def test_a_certificate_of_the_authority_itself_is_nobody(tmp_path: Path) -> None:
    """It says a trust domain and no workload in it."""
    folder = authority(tmp_path / "ca")
    shutil.copy(folder / "ca.crt", folder / "tls.crt")
    shutil.copy(folder / "ca.key", folder / "tls.key")

    with pytest.raises(ConfigurationError, match="PEN0872"):
        load_credentials(folder)


def test_new_files_are_taken_and_old_contexts_stay_as_they_were(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")

    async def check() -> None:
        held = Identity(identity(issuer, tmp_path / "id"))
        before = (held.server, held.client, held.ends_s)
        await held.refresh()
        assert (held.server, held.client, held.ends_s) == before
        identity(issuer, tmp_path / "id")
        await held.refresh()
        assert held.server is not before[0]
        assert held.client is not before[1]

    asyncio.run(check())


def test_files_that_do_not_fit_change_nothing_and_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = authority(tmp_path / "ca")
    identity(issuer, tmp_path / "next")

    async def check() -> None:
        held = Identity(identity(issuer, tmp_path / "id"))
        before = held.server
        shutil.copy(tmp_path / "next" / "tls.key", tmp_path / "id" / "tls.key")
        await held.refresh()
        await held.refresh()
        assert held.server is before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        shutil.copy(tmp_path / "next" / "tls.crt", tmp_path / "id" / "tls.crt")
        await held.refresh()
        assert held.server is not before

    asyncio.run(check())
    assert "PEN0872" in caplog.text
    assert "goes on with the certificate it has" in caplog.text


def test_another_trust_domain_is_not_taken_while_running(tmp_path: Path) -> None:
    """Its peers would refuse it, and it them."""

    async def check() -> None:
        held = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"))
        identity(authority(tmp_path / "other", "other.local"), tmp_path / "id")
        await held.refresh()
        assert trust_domain_of(held.id) == "demo.local"

    asyncio.run(check())


def test_the_end_of_a_certificate_is_said_before_and_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = identity(authority(tmp_path / "ca"), tmp_path / "id")
    now_s = 0.0

    async def check() -> None:
        nonlocal now_s
        held = Identity(folder, wall=lambda: now_s)
        for left_s in (20_000, 17_000, 16_000, 0, -1):
            now_s = held.ends_s - left_s
            await held.refresh()

    asyncio.run(check())
    assert [(record.levelno, record.getMessage().split(". Put")[0]) for record in caplog.records] == [
        (
            logging.WARNING,
            f"PEN0873 The certificate of {SHOP} expires in 283 minutes",
        ),
        (
            logging.ERROR,
            f"PEN0873 The certificate of {SHOP} has expired: nobody takes a new connection from it",
        ),
    ]


def test_files_are_looked_at_by_itself(tmp_path: Path) -> None:
    issuer = authority(tmp_path / "ca")

    async def check() -> None:
        held = Identity(identity(issuer, tmp_path / "id"), poll_s=0.01)
        before = held.server
        await held.start()
        identity(issuer, tmp_path / "id")
        async with asyncio.timeout(5):
            while held.server is before:  # noqa: ASYNC110 - nobody but a rotation has reason to be told of one.
                await asyncio.sleep(0.01)
        await held.close()

    asyncio.run(check())


def test_a_connection_without_tls_is_nobodys() -> None:
    assert peer_of(None) == ""
    assert peer_of(asyncio.Transport()) == ""


def test_an_error_of_something_else_has_nothing_to_do_with_certificates(tmp_path: Path) -> None:
    held = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"))

    assert held.explain(ConnectionRefusedError(), "h1") is None


def test_any_error_is_explained_by_a_certificate_of_ones_own_that_has_expired(tmp_path: Path) -> None:
    held = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"), wall=lambda: 9e9)

    said = held.explain(ConnectionResetError(), "https://h1")

    assert said is not None
    assert str(said).startswith(
        "PEN0873 The certificate of spiffe://demo.local/ns/default/sa/shop has expired, so https://h1 takes no "
    )


def test_what_a_certificate_keeps_from_us_is_said_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 9e9
    held = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"), wall=lambda: now_s)
    for place, after_s in (("h1", 0), ("h1", 30), ("h2", 0), ("h1", 40)):
        now_s += after_s
        held.warn(ConnectionResetError(), place)

    assert [re.findall(r"so (\w+) takes", record.getMessage()) for record in caplog.records] == [["h1"], ["h2"], ["h1"]]


def test_who_has_no_certificate_asks_a_permissive_host_without(tmp_path: Path) -> None:
    own = Identity(identity(authority(tmp_path / "ca"), tmp_path / "id"))
    strict, permissive = (
        Endpoint("h1", "https://h1:8080", labels=tls_labels(own, mode)) for mode in (TlsMode.STRICT, TlsMode.PERMISSIVE)
    )

    assert url_of(permissive, None) == "http://h1:8080"
    assert url_of(permissive, own) == url_of(strict, own) == url_of(strict, None) == "https://h1:8080"


def test_strict_wants_certificates_of_everybody() -> None:
    async def check() -> None:
        with pytest.raises(ConfigurationError, match="PEN0808"):
            async with identity_of(None, PolicySet(tls=Tls(TlsMode.STRICT))):
                pass
        async with identity_of(None, PolicySet()) as nobody:
            assert nobody is None

    asyncio.run(check())


def test_ids_are_written_as_spiffe_has_them() -> None:
    assert spiffe_id("demo.local", "eu", "shop") == "spiffe://demo.local/ns/eu/sa/shop"
