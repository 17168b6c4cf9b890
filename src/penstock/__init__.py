"""Penstock: stateful functions over streams, exactly once.

Everything an application needs is importable from here. The folders behind it, in the order a reader may want them:

    functions/   what a user writes against: App, Context, State, ingresses and egresses
    router/      how a message reaches its address: logs, frames, ingress readers, egress sinks
    state/       where values live: overlay, keys, RocksDB
    checkpoint/  snapshots, coordinator, recovery, two-phase sinks
    engine/      the stream runtime: task core, worker, HTTP, CLI
    mesh/        the request runtime of the same functions: hosts, calls, policies, stores
    compare/     both runtimes side by side, under the same load and the same faults

Importing it starts nothing and reads nothing: a name is looked up where it is defined when it is first used, so that
the command line, which needs few of them, answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.errors import (
        CallTimeout,
        CallUnavailable,
        ConfigurationError,
        CorruptSnapshot,
        DecodeError,
        Fenced,
        FunctionError,
        InvalidInput,
        PenstockError,
        ProtocolError,
        Refused,
        StepFailed,
        Unavailable,
    )
    from penstock.functions.app import App, Egress, Ingress
    from penstock.functions.context import Context, MessageInfo
    from penstock.functions.durable import Durable, Retry
    from penstock.functions.fence import FencedState
    from penstock.functions.formats import (
        Avro,
        CloudEvents,
        Format,
        Json,
        JsonSchema,
        Msgpack,
        Protobuf,
        Raw,
        SchemaRegistry,
    )
    from penstock.functions.function import Function
    from penstock.functions.io import (
        FileEgress,
        FileIngress,
        GeneratorIngress,
        HttpEgress,
        MemoryEgress,
        MemoryIngress,
        PostgresEgress,
        StdoutEgress,
    )
    from penstock.functions.kafka import KafkaIngress
    from penstock.functions.kafka_egress import KafkaEgress
    from penstock.functions.participant import Action, Declined, Participant
    from penstock.functions.relay import Branch
    from penstock.functions.saga_course import Saga, Step
    from penstock.functions.saga_record import Compensated, Completed, SagaAlert
    from penstock.functions.schedule import Schedule, Scheduled
    from penstock.functions.state import Expire, Log, Message, State, Table, Value
    from penstock.ids import Address

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Address",
    "App",
    "Avro",
    "Branch",
    "CallTimeout",
    "CallUnavailable",
    "CloudEvents",
    "Compensated",
    "Completed",
    "ConfigurationError",
    "Context",
    "CorruptSnapshot",
    "Declined",
    "DecodeError",
    "Durable",
    "Egress",
    "Expire",
    "Fenced",
    "FencedState",
    "FileEgress",
    "FileIngress",
    "Format",
    "Function",
    "FunctionError",
    "GeneratorIngress",
    "HttpEgress",
    "Ingress",
    "InvalidInput",
    "Json",
    "JsonSchema",
    "KafkaEgress",
    "KafkaIngress",
    "Log",
    "MemoryEgress",
    "MemoryIngress",
    "Message",
    "MessageInfo",
    "Msgpack",
    "Participant",
    "PenstockError",
    "PostgresEgress",
    "Protobuf",
    "ProtocolError",
    "Raw",
    "Refused",
    "Retry",
    "Saga",
    "SagaAlert",
    "Schedule",
    "Scheduled",
    "SchemaRegistry",
    "State",
    "StdoutEgress",
    "Step",
    "StepFailed",
    "Table",
    "Unavailable",
    "Value",
]

if not TYPE_CHECKING:  # Type checkers must go on refusing names that don't exist.
    _NAMES = {
        "penstock.errors": (
            "CallTimeout",
            "CallUnavailable",
            "CallUnavailable",
            "ConfigurationError",
            "CorruptSnapshot",
            "DecodeError",
            "Fenced",
            "FunctionError",
            "InvalidInput",
            "PenstockError",
            "ProtocolError",
            "Refused",
            "StepFailed",
            "Unavailable",
        ),
        "penstock.functions.app": ("App", "Egress", "Ingress"),
        "penstock.functions.context": ("Context", "MessageInfo"),
        "penstock.functions.durable": ("Durable", "Retry"),
        "penstock.functions.fence": ("FencedState",),
        "penstock.functions.formats": (
            "Avro",
            "CloudEvents",
            "Format",
            "Json",
            "JsonSchema",
            "Msgpack",
            "Protobuf",
            "Raw",
            "SchemaRegistry",
        ),
        "penstock.functions.function": ("Function",),
        "penstock.functions.io": (
            "FileEgress",
            "FileIngress",
            "GeneratorIngress",
            "HttpEgress",
            "MemoryEgress",
            "MemoryIngress",
            "PostgresEgress",
            "StdoutEgress",
        ),
        "penstock.functions.kafka": ("KafkaIngress",),
        "penstock.functions.kafka_egress": ("KafkaEgress",),
        "penstock.functions.participant": ("Action", "Declined", "Participant"),
        "penstock.functions.relay": ("Branch",),
        "penstock.functions.saga_course": ("Saga", "Step"),
        "penstock.functions.saga_record": ("Compensated", "Completed", "SagaAlert"),
        "penstock.functions.schedule": ("Schedule", "Scheduled"),
        "penstock.functions.state": ("Expire", "Log", "Message", "State", "Table", "Value"),
        "penstock.ids": ("Address",),
    }
    """What is defined where: the imports above, once more. A test compares them."""
    _HOMES = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
