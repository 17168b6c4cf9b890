"""Penstock: stateful functions over streams, exactly once.

Everything an application needs is importable from here. The folders behind it, in the order a reader may want them:

    functions/   what a user writes against: App, Context, State, ingresses and egresses
    router/      how a message reaches its address: logs, frames, ingress readers, egress sinks
    state/       where values live: overlay, keys, RocksDB
    checkpoint/  snapshots, coordinator, recovery, two-phase sinks
    engine/      the runtime: task core, worker, HTTP, CLI

Importing it starts nothing and reads nothing.
"""

from penstock.errors import (
    ConfigurationError,
    CorruptSnapshot,
    DecodeError,
    Fenced,
    FunctionError,
    InvalidInput,
    PenstockError,
    ProtocolError,
    Refused,
    Unavailable,
)
from penstock.functions.app import App, Egress, Ingress
from penstock.functions.context import Context, MessageInfo
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
from penstock.functions.state import Expire, Log, Message, State, Table, Value
from penstock.ids import Address

__version__ = "0.1.0"

__all__ = [
    "Address",
    "App",
    "ConfigurationError",
    "Context",
    "CorruptSnapshot",
    "DecodeError",
    "Egress",
    "Expire",
    "Fenced",
    "FileEgress",
    "FileIngress",
    "Function",
    "FunctionError",
    "GeneratorIngress",
    "HttpEgress",
    "Ingress",
    "InvalidInput",
    "Log",
    "MemoryEgress",
    "MemoryIngress",
    "Message",
    "MessageInfo",
    "PenstockError",
    "PostgresEgress",
    "ProtocolError",
    "Refused",
    "State",
    "StdoutEgress",
    "Table",
    "Unavailable",
    "Value",
]
