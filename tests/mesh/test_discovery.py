"""Registries that somebody else keeps."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigurationError
from penstock.mesh.discovery import DnsNames, PlatformRegistry, registry_of
from penstock.mesh.kubernetes import service_of
from penstock.mesh.registry import Registry
from penstock.mesh.sqlite_registry import SqliteRegistry
from tests.mesh.registry_contract import endpoint

POLL_S = 0.01


class Resolver:
    """Stands in for the resolver of the machine, under the name that asyncio asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[str] | OSError = []
        monkeypatch.setattr(socket, "getaddrinfo", self._asked)

    def _asked(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert (host, port) == ("shop.internal", 8080)
        if isinstance(self.answer, OSError):
            raise self.answer
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.answer
        ]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


async def opened() -> Registry:
    registry = PlatformRegistry(DnsNames("shop.internal", 8080), POLL_S)
    await registry.open()
    return registry


def urls(registry: Registry) -> list[str]:
    return [one.url for one in registry.view().serving("shop/cart")]


def test_every_address_of_a_name_is_an_endpoint(resolver: Resolver) -> None:
    resolver.answer = ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"]

    async def check() -> None:
        registry = await opened()
        assert urls(registry) == ["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://[fd00::1]:8080"]
        await registry.close()

    asyncio.run(check())


def test_a_name_that_changes_changes_the_view(resolver: Resolver) -> None:
    resolver.answer = ["10.0.0.1"]

    async def check() -> None:
        registry = await opened()
        resolver.answer = ["10.0.0.2"]
        await asyncio.wait_for(registry.changed(registry.view().number), 5)
        assert urls(registry) == ["http://10.0.0.2:8080"]
        await registry.close()

    asyncio.run(check())


def test_a_name_that_can_not_be_resolved_takes_nothing_away(
    resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    resolver.answer = ["10.0.0.1"]

    async def check() -> None:
        registry = await opened()
        resolver.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await asyncio.sleep(5 * POLL_S)
        assert urls(registry) == ["http://10.0.0.1:8080"]
        await registry.close()

    asyncio.run(check())
    assert "PEN0870 The name shop.internal of the registry can't be resolved: Name or service not known." in caplog.text


def test_a_host_may_register_where_somebody_else_keeps_the_list(resolver: Resolver) -> None:
    resolver.answer = ["10.0.0.1"]

    async def check() -> None:
        registry = await opened()
        lease = await registry.register(endpoint("h1"), 10)
        await lease.set_ready(True)
        await lease.release()
        await registry.forget("10.0.0.1:8080")
        assert urls(registry) == ["http://10.0.0.1:8080"]
        await registry.close()

    asyncio.run(check())


def test_hosts_with_certificates_are_asked_with_one(resolver: Resolver) -> None:
    resolver.answer = ["10.0.0.1"]

    async def check() -> None:
        registry = registry_of("dns://shop.internal:8080?tls", {})
        await registry.open()
        assert urls(registry) == ["https://10.0.0.1:8080"]
        await registry.close()

    asyncio.run(check())


@pytest.mark.parametrize("url", ["registry.db", "sqlite:registry.db", "sqlite:/run/registry.db", "./a:b/registry.db"])
def test_a_file_is_an_embedded_registry(url: str, tmp_path: Path) -> None:
    assert isinstance(registry_of(url, {}), SqliteRegistry)


def test_a_name_in_dns_is_a_registry() -> None:
    assert isinstance(registry_of("dns://shop.internal:8080", {}), PlatformRegistry)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("dns://shop.internal", "a name and a port are needed"),
        ("dns://shop.internal:http", "a name and a port are needed"),
        ("dns:shop", "a name and a port are needed"),
        ("dns://shop.internal:8080?fast", "only .tls can be said there"),
        ("consul://shop", "There is no registry of the kind 'consul'"),
        ("kubernetes://shop", "This is no pod of Kubernetes"),
    ],
)
def test_a_url_that_means_no_registry_is_said(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PEN0871 .*{said}"):
        registry_of(url, {})


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("kubernetes://shop", ("here", "shop", "")),
        ("kubernetes://shop:8080", ("here", "shop", "8080")),
        ("kubernetes://eu/shop:http", ("eu", "shop", "http")),
    ],
)
def test_a_service_of_kubernetes_may_name_namespace_and_port(url: str, service: tuple[str, str, str]) -> None:
    assert service_of(url, "here") == service


@pytest.mark.parametrize("url", ["kubernetes://", "kubernetes://eu/shop/more", "kubernetes://:8080"])
def test_a_url_that_names_no_service_is_said(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PEN0871 .* names no service"):
        service_of(url, "here")
