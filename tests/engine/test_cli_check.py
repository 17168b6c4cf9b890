"""What `penstock check` finds in declarations, without starting anything."""

from __future__ import annotations

import pytest

from penstock.engine.cli_check import check_edges
from penstock.errors import ConfigurationError
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.formats import Raw
from penstock.functions.io import MemoryIngress
from penstock.functions.kafka import KafkaIngress


def shop() -> App:
    app = App("shop")

    @app.function("shop/order")
    def order(ctx: Context[None], message: bytes) -> None: ...

    return app


def test_records_of_kafka_need_no_key_besides_their_own() -> None:
    app = shop()
    app.ingress(KafkaIngress("orders", format=Raw()), to="shop/order")

    check_edges(app)


def test_routes_that_make_no_sense_are_refused() -> None:
    for spec in (KafkaIngress("orders", format=Raw()), MemoryIngress(type=bytes)):
        app = shop()
        app.ingress(spec, to="shop/order", router=list)
        with pytest.raises(ConfigurationError) as caught:
            check_edges(app)
        assert caught.value.code == "PEN0144"
