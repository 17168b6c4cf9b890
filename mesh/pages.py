"""What a host serves beside requests: how it is, what it is, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

import penstock
from penstock.exposition import CONTENT_TYPE
from penstock.mesh.actuator import Actuator, Health, Status
from penstock.mesh.doing import CALLS_PATH, STATUS_PATH, calls_of_host, status_of_host
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.policy_watch import PolicyWatch
from penstock.mesh.server import Page
from penstock.saga_figures import sagas_of

if TYPE_CHECKING:
    from penstock.mesh.node import Node  # A sidecar has none, and should not hold what comes with one.


def pages_of(node: Node, watch: PolicyWatch | None) -> dict[str, Page]:
    """By path."""
    actuator = Actuator(
        liveness={"host": lambda: Health(Status.UP)},
        readiness={"host": node.health, "registry": node.registry_health, "policies": lambda: policy_health(watch)},
        info=lambda: info_of(node.app.name) | {"host": {"name": node.name, "session": node.session}},
    )
    sagas = sagas_of(node.app.functions)
    metrics = MeshMetrics(node.app.name, node.edges, node.policies, node.host, node.background, sagas)
    return (
        actuator_pages(actuator)
        | metrics_page(metrics)
        | {
            STATUS_PATH: _page(lambda: _json(200, status_of_host(node))),
            CALLS_PATH: _page(lambda: _json(200, calls_of_host(node))),
        }
    )


def actuator_pages(actuator: Actuator) -> dict[str, Page]:
    """The paths of `penstock.mesh.actuator`."""
    return {
        "/actuator/health/liveness": _page(lambda: _json(*actuator.health("liveness"))),
        "/actuator/health/readiness": _page(lambda: _json(*actuator.health("readiness"))),
        "/actuator/info": _page(lambda: _json(*actuator.info())),
    }


def policy_health(watch: PolicyWatch | None) -> Health:
    """A file that is refused leaves the last good one in force: no reason to send requests elsewhere."""
    if watch is None:
        return Health(Status.UP, {"file": None})
    status = watch.status
    details: dict[str, Any] = {"version": status.version, "digest": status.digest}
    return Health(Status.UP, details | ({"refused": status.refused} if status.refused else {}))


def info_of(app: str) -> dict[str, Any]:
    return {"app": {"name": app, "version": penstock.__version__}}


def metrics_page(metrics: MeshMetrics) -> dict[str, Page]:
    def answer() -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    return {"/metrics": _page(answer)}


def _json(status: int, body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _page(answer: Callable[[], web.Response]) -> Page:
    async def page(request: web.BaseRequest) -> web.Response:
        return answer()

    return page
