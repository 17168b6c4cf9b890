"""Records of Kafka topics in a test: given by hand, and read back from what was emitted.

What always holds: a record is routed by the router that the worker has, so the same ones are refused; nothing asks a
schema registry or a broker. Where the bytes in a topic need a schema, values travel in the form they have inside
Penstock: the schema is of no concern to a handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from penstock.engine.build import missing_client
from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.app import App, Ingress
from penstock.functions.formats import Avro, CloudEvents, Format, Json, JsonSchema, Msgpack, Protobuf, Raw
from penstock.functions.kafka import KafkaIngress
from penstock.functions.outlets import resolve_function
from penstock.router.routing import Routed, RoutedChunk


class FedRecord(NamedTuple):
    """As a topic has it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def raw(self) -> bytes:
        """What a dead letter keeps of it."""
        return self.value or b""


def fed_record(spec: KafkaIngress, given: Any) -> FedRecord:
    """The record that a test has given: `(key, value)`, `(key, value, headers)`, or the value alone.

    Bytes are the value as it stands in the topic; None is a tombstone.
    """
    key, value = None, given
    headers: Any = {}
    if isinstance(given, tuple):
        if len(given) not in (2, 3) or not isinstance(given[0], str | bytes | None):
            raise ConfigurationError(
                "PEN0141",
                f"{given!r} is no record of a topic. Feed (key, value), (key, value, headers), or a value alone.",
            )
        key, value, headers = given if len(given) == 3 else (*given, {})
    if value is not None and not isinstance(value, bytes):
        value = _bare(spec.format).encode(value)
    return FedRecord(_bytes(key), value, tuple((name, _bytes(text) or b"") for name, text in _pairs(headers)))


class FedTopic:
    """Routes such records as a worker does: what an `IngressFeed` wants of a router."""

    def __init__(self, app: App, ingress: Ingress, spec: KafkaIngress, message_bytes_max: int) -> None:
        """Raises ConfigurationError for a route that makes no sense."""
        try:
            from penstock.engine.kafka_ports import compile_kafka_router
            from penstock.router.schema_registry import Registries
        except ImportError as error:
            raise missing_client(error) from error
        bare = KafkaIngress(
            spec.topics,
            pattern=spec.pattern,
            type=spec.type,
            format=_bare(spec.format),
            tombstones=spec.tombstones,
        )
        self._router = compile_kafka_router(
            ingress, bare, lambda target: resolve_function(app, target), Registries(), message_bytes_max
        )

    def column(self, records: Sequence[FedRecord]) -> None:
        """The fast form, which a test does without."""

    def route_chunk(self, records: Sequence[FedRecord], first: int, locate: Callable[[int], str]) -> RoutedChunk:
        """The messages of consecutive records, of which the first has number `first`."""
        messages: list[Routed] = []
        owners: list[int] = []
        errors: list[tuple[int, InvalidInput]] = []
        for index, record in enumerate(records):
            try:
                routed = self._router.route(record.key, record.value, record.headers, locate(first + index))
            except InvalidInput as error:
                errors.append((index, error))
            else:
                messages += routed
                owners += [index] * len(routed)
        return RoutedChunk(messages, owners, errors)


def emitted_value(format: Format, data: bytes) -> Any:
    """What was emitted, of the bytes that travel to the sink: in builtin types, or a message of protobuf."""
    match _bare(format):
        case Msgpack():
            return msgspec.msgpack.decode(data)
        case Protobuf() as protobuf:
            return protobuf.message.FromString(data)
        case Raw():
            return data
        case _:
            return msgspec.json.decode(data)


def _bare(format: Format) -> Format:
    """The format that its values have on the way between a handler and what knows the schema."""
    match format:
        case Avro():
            return Msgpack()
        case JsonSchema():
            return Json()
        case Protobuf():
            return Protobuf(format.message)
        case CloudEvents():
            return _bare(format.data)
        case _:
            return format


def _bytes(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def _pairs(headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    """A header may come more than once: then they are pairs."""
    return list(headers.items() if isinstance(headers, Mapping) else headers)
