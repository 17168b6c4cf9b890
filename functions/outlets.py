"""What an application declares, as its handlers and ingresses reach it: outlets by egress, functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.errors import ConfigurationError
from penstock.functions.app import App, Egress
from penstock.functions.context import Outlet
from penstock.functions.kafka_egress import KafkaEgress
from penstock.functions.types import Codec


def resolve_function(app: App, target: Any) -> tuple[str, Codec[Any]]:
    """The name of a function that is given as itself or by its name, and how its messages are written."""
    name = target if isinstance(target, str) else getattr(target, "typename", str(target))
    function = app.functions.get(name)
    if function is None:
        known = ", ".join(sorted(app.functions)) or "none"
        raise ConfigurationError("PEN0105", f"{name} is no function of this application. Known: {known}.")
    return name, function.message_codec


def encoder_of(egress: Egress) -> Callable[[Any], bytes]:
    """What makes the values of rows, with nothing in the way that has nothing to add."""
    spec = egress.spec
    return spec.format.encode if isinstance(spec, KafkaEgress) and not spec.tombstones else spec.encode


def outlets_of(
    app: App, bytes_max: int, encoder_of: Callable[[Egress], Callable[[Any], bytes]] = encoder_of
) -> dict[Any, Outlet]:
    """How values become rows, by egress and by its name."""
    outlets: dict[Any, Outlet] = {}
    for egress in app.egresses.values():
        spec = egress.spec
        complete = spec.complete if isinstance(spec, KafkaEgress) and spec.completes else None
        outlets[egress.name] = outlets[egress] = Outlet(egress.name, encoder_of(egress), bytes_max, complete)
    return outlets
