"""Declarations of Kafka ingresses: what is taken, and what is refused with a remedy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.errors import ConfigurationError
from penstock.functions.formats import Json, Raw
from penstock.functions.kafka import KafkaIngress


def test_one_topic_several_or_a_pattern_can_be_named() -> None:
    assert KafkaIngress("orders").topics == ("orders",)
    assert KafkaIngress(["orders", "returns"], format=Raw()).name == "orders, returns"
    assert KafkaIngress(pattern=r"orders-.*").name == r"orders-.*"
    assert KafkaIngress("orders").format == Json()
    assert KafkaIngress("orders", start={0: 17}).start == {0: 17}
    assert KafkaIngress("orders", start=datetime(2026, 1, 1, tzinfo=UTC)) != KafkaIngress("returns")


def test_secrets_are_not_shown() -> None:
    spec = KafkaIngress("orders", brokers="other:9092", properties={"sasl.password": "secret"})

    assert "secret" not in repr(spec)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "neither of topics and pattern"),
        ({"topics": "a", "pattern": "b"}, "both of topics and pattern"),
        ({"topics": "a b"}, "the topic 'a b'"),
        ({"topics": ["a", "a"]}, "twice"),
        ({"topics": [""]}, "the topic ''"),
        ({"pattern": "("}, "no regular expression"),
        ({"topics": "a", "format": "json"}, "format='json'"),
        ({"topics": "a", "start": "now"}, "'now'"),
        ({"topics": "a", "start": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001  # That is the mistake.
        ({"topics": ["a", "b"], "start": {0: 1}}, "a single topic"),
        ({"topics": "a", "start": {0: -1}}, "partition 0 at -1"),
        ({"topics": "a", "isolation": "none"}, "'none'"),
        ({"topics": "a", "tombstones": "skip"}, "'skip'"),
        ({"topics": "a", "group": ""}, "empty group"),
        ({"topics": "a", "properties": {"client.id": "a"}}, "without brokers"),
    ],
)
def test_what_can_not_be_meant_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KafkaIngress(**arguments)
    assert told in caught.value.message
