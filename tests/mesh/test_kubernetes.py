"""Endpoint slices as an API server answers them, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock.errors import ConfigurationError, Unavailable
from penstock.mesh.kubernetes import Cluster, EndpointSlices, Service, cluster_of_this_pod
from penstock.mesh.registry import Endpoint


def pod(name: str, address: str, *, ready: bool | None = True, **more: Any) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "namespace": "eu", "name": name, "uid": f"uid-{name}"},
        "zone": "eu-west-1a",
        **more,
    }


def slice_of(*endpoints: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As `kubectl get endpointslices -o json` shows one, without the parts that nobody reads."""
    return {
        "metadata": {
            "name": "shop-abc12",
            "namespace": "eu",
            "resourceVersion": "41",
            "labels": {"kubernetes.io/service-name": "shop", "app.kubernetes.io/version": "v2"},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "metrics", "protocol": "TCP", "port": 9}],
    } | changes


def listed(*slices: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "EndpointSliceList",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": "42"},
        "items": list(slices),
    }


@asynccontextmanager
async def api_server(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    async def asked(request: web.Request) -> web.Response:
        return answer(request)

    application = web.Application()
    application.router.add_get("/apis/discovery.k8s.io/v1/namespaces/eu/endpointslices", asked)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def looked(
    answer: Callable[[web.Request], web.Response] | dict[str, Any],
    *,
    port: str = "",
    token: Path | None = None,
    scheme: str = "http",
) -> list[Endpoint]:
    """What one look sees."""
    say = answer if callable(answer) else lambda _: web.json_response(answer)

    async def look() -> list[Endpoint]:
        async with api_server(say) as url:
            source = EndpointSlices(Cluster(url, token, None, "eu"), Service("eu", "shop", port), scheme=scheme)
            try:
                return [sighting.endpoint for sighting in (await source.look()).sightings]
            finally:
                await source.close()

    return asyncio.run(look())


def test_pods_are_endpoints_with_what_their_slice_says() -> None:
    found = looked(listed(slice_of(pod("shop-0", "10.0.0.1"), pod("shop-1", "10.0.0.2", ready=False))))

    assert [one._replace(labels={}) for one in found] == [
        Endpoint("uid-shop-0", "http://10.0.0.1:8080", "v2", {}, ready=True, zone="eu-west-1a"),
        Endpoint("uid-shop-1", "http://10.0.0.2:8080", "v2", {}, ready=False, zone="eu-west-1a"),
    ]


def test_the_list_of_one_service_is_asked_for_with_the_token_of_the_moment(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    asked: list[tuple[str, str, str | None]] = []

    def answer(request: web.Request) -> web.Response:
        query = request.query
        asked.append((query["labelSelector"], query["resourceVersion"], request.headers.get("Authorization")))
        return web.json_response(listed())

    assert looked(answer, token=token) == []
    token.write_text("second")
    looked(answer, token=token)

    selector = "kubernetes.io/service-name=shop"
    assert asked == [(selector, "0", "Bearer first"), (selector, "0", "Bearer second")]


def test_a_pod_in_two_slices_is_one_endpoint_and_ready_if_it_is_in_one() -> None:
    for first, second in ((True, False), (False, True)):
        found = looked(
            listed(slice_of(pod("shop-0", "10.0.0.1", ready=first)), slice_of(pod("shop-0", "10.0.0.1", ready=second)))
        )
        assert [one.ready for one in found] == [True]


def test_readiness_that_is_not_said_is_readiness() -> None:
    assert looked(listed(slice_of(pod("shop-0", "10.0.0.1", ready=None))))[0].ready


def test_a_port_is_found_by_name_or_number() -> None:
    slices = listed(slice_of(pod("shop-0", "10.0.0.1")))

    assert looked(slices, port="metrics")[0].url == "http://10.0.0.1:9"
    assert looked(slices, port="8080")[0].url == "http://10.0.0.1:8080"
    assert looked(slices, port="grpc") == []


def test_pods_with_certificates_are_asked_with_one() -> None:
    assert looked(listed(slice_of(pod("shop-0", "10.0.0.1"))), scheme="https")[0].url == "https://10.0.0.1:8080"


def test_slices_of_the_sixth_version_have_brackets() -> None:
    found = looked(listed(slice_of(pod("shop-0", "fd00::7"), addressType="IPv6")))

    assert [one.url for one in found] == ["http://[fd00::7]:8080"]


def test_slices_without_endpoints_ports_or_targets_are_read() -> None:
    bare = {"addresses": ["10.0.0.1"]}

    assert looked(listed(slice_of(endpoints=None), slice_of(bare, ports=None))) == []
    assert [one.name for one in looked(listed(slice_of(bare)))] == ["10.0.0.1:8080"]


@pytest.mark.parametrize("status", [401, 403])
def test_an_account_that_may_not_list_is_said_with_what_to_allow(status: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"PEN0871 .* of eu \({status}\)\. Allow the service account"):
        looked(lambda _: web.json_response({"kind": "Status", "code": status}, status=status))


def test_a_server_that_is_busy_or_says_something_else_is_an_outage() -> None:
    with pytest.raises(Unavailable, match=r"PEN0870 .* answers 503 when asked"):
        looked(lambda _: web.Response(status=503))
    with pytest.raises(Unavailable, match=r"PEN0870 .* answers with something else"):
        looked(lambda _: web.Response(text="<html>"))


def test_a_server_that_is_not_there_is_an_outage() -> None:
    async def look() -> None:
        source = EndpointSlices(Cluster("http://127.0.0.1:1", None, None, "eu"), Service("eu", "shop", ""))
        with pytest.raises(Unavailable, match=r"PEN0870 .* can't be asked"):
            await source.look()
        await source.close()

    asyncio.run(look())


def test_a_pod_knows_its_cluster(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    (tmp_path / "namespace").write_text("eu\n")
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}

    cluster = cluster_of_this_pod(environment, tmp_path)

    assert cluster == Cluster("https://10.96.0.1:443", tmp_path / "token", tmp_path / "ca.crt", "eu")


def test_outside_of_a_pod_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="PEN0871 This is no pod of Kubernetes"):
        cluster_of_this_pod({}, tmp_path)
