"""A broker for the tests of this folder: the one that those of `tests/kafka` share."""

from __future__ import annotations

from tests.kafka.conftest import java, kafka, kafka_app

__all__ = ["java", "kafka", "kafka_app"]
