"""Where an application writes to Kafka, as a plain value: `KafkaEgress("delays", key="airport")`.

Like the declarations in `penstock.functions.io` it is checked when it is made, never changes and opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.formats import Format, Json
from penstock.functions.io import Delivery
from penstock.ids import is_utf8
from penstock.records import EgressRow

Compression = Literal["gzip", "snappy", "lz4", "zstd"]
Part: TypeAlias = str | Callable[[Any], Any] | None
"""Of a record, taken from the value that is emitted: the name of a field, or a function of the value."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_DELIVERIES = ("exactly-once", "eager", "at-least-once")


@dataclass(frozen=True, slots=True)
class KafkaEgress:
    """Rows written as records to `topic`, in a transaction with the marker that prevents repeats.

    Readers that want only what is decided read with `isolation.level=read_committed`. With another delivery than
    "exactly-once" each record carries a header `penstock-cause`, which is the same when a row is written again.

    `key`, `partition` and `timestamp` are taken from each value, unless `ctx.emit` is given them. A record without a
    partition goes where Kafka's default partitioner puts its key. All exactly-once egresses of an application are
    committed together where they go to the same cluster.
    """

    topic: str
    format: Format = field(default_factory=Json)
    key: Part = field(default=None, hash=False)
    """Text, bytes, a number or None: `key="airport"`, or `key=lambda delay: delay.airport`."""
    partition: Part = field(default=None, hash=False)
    timestamp: Part = field(default=None, hash=False)
    """A datetime with a time zone, or milliseconds since 1970. Left out, it is the time of writing."""
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of every record, below those that `ctx.emit` is given."""
    tombstones: bool = False
    """Write a record without a value when None is emitted, or empty bytes: in a compacted topic it deletes the key."""
    delivery: Delivery = "exactly-once"
    brokers: str | None = None
    """Addresses of another cluster than that of the application."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Of that other cluster, by Kafka's own names. Never shown: they may hold secrets."""

    def __post_init__(self) -> None:
        owner = f"KafkaEgress({self.topic!r})"
        if not _TOPIC.fullmatch(self.topic) or self.topic in {".", ".."}:
            raise _wrong(f"{owner} names no topic. Use 1 to 249 letters, digits, '.', '_' and '-'.")
        if not isinstance(self.format, Format):
            raise _wrong(f"{owner} has format={self.format!r}. Give a format, such as Json(), Msgpack() or Raw().")
        for name in ("key", "partition", "timestamp"):
            part = getattr(self, name)
            if part is not None and not callable(part) and (not isinstance(part, str) or not part):
                raise _wrong(f"{owner} has {name}={part!r}. Give the name of a field, or a function of the value.")
        if not all(is_utf8(text) for header in self.headers.items() for text in header):
            raise _wrong(f"{owner} has headers={self.headers!r}. Headers are text here: both the names and the values.")
        if self.delivery not in _DELIVERIES:
            raise ConfigurationError(
                "PEN0140",
                f"The delivery of {owner} is {self.delivery!r}, not one of {', '.join(_DELIVERIES)}. Leave it out for "
                "exactly-once.",
            )
        if self.properties and self.brokers is None:
            raise _wrong(
                f"{owner} has properties without brokers. Give the addresses of that cluster, or set the properties of "
                "the application's own."
            )

    def encode(self, value: Any) -> bytes:
        """The value in its format; what is not final about it, such as the number of a schema, the sink adds."""
        return b"" if value is None and self.tombstones else self.format.encode(value)

    @property
    def completes(self) -> bool:
        """Whether rows may get more than they were given."""
        return bool(self.key or self.partition or self.timestamp or self.headers)

    def complete(self, value: Any, row: EgressRow) -> EgressRow:
        """`row` with what it was not given: key, partition, timestamp and headers. Raises InvalidInput."""
        key, partition, timestamp_ms, headers = row.key, row.partition, row.timestamp_ms, row.headers
        if key is None and self.key is not None:
            key = self._key(self._take("key", self.key, value))
        if partition is None and self.partition is not None:
            partition = self._number("partition", self._take("partition", self.partition, value))
        if timestamp_ms is None and self.timestamp is not None:
            timestamp_ms = self._number("timestamp", self._take("timestamp", self.timestamp, value))
        if self.headers:
            given = {name for name, _ in headers}
            headers = (*((n, text) for n, text in self.headers.items() if n not in given), *headers)
        return EgressRow(row.value, row.cause, key, row.topic, headers, partition, timestamp_ms)

    def _take(self, name: str, part: Any, value: Any) -> Any:
        if callable(part):
            return part(value)
        try:
            return value[part] if isinstance(value, Mapping) else getattr(value, part)
        except (KeyError, AttributeError):
            raise InvalidInput(
                "PEN0206",
                f"Value of type {type(value).__name__} for topic {self.topic} has no field {part!r} for its "
                f"{name}. Emit a value that has it, or give {name}= to ctx.emit.",
            ) from None

    def _key(self, key: Any) -> bytes | None:
        if key is None or isinstance(key, bytes):
            return key
        if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
            return str(key).encode()
        raise self._unusable("key", key, "text, bytes, a whole number or None")

    def _number(self, name: str, number: Any) -> int | None:
        if isinstance(number, datetime) and name == "timestamp" and number.tzinfo is not None:
            return round(number.timestamp() * 1000)
        if number is None or (isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63):
            return number
        what = "a datetime with a time zone or milliseconds since 1970" if name == "timestamp" else "a number from 0 on"
        raise self._unusable(name, number, what)

    def _unusable(self, name: str, found: Any, wanted: str) -> InvalidInput:
        return InvalidInput(
            "PEN0206",
            f"The {name} of a row for topic {self.topic} is {found!r}. It has to be {wanted}.",
        )


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError("PEN0141", message)
