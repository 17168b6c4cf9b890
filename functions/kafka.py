"""Where an application reads from Kafka, as a plain value: `KafkaIngress("orders")`.

Like the declarations in `penstock.functions.io` it is checked when it is made, never changes and opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from penstock.errors import ConfigurationError
from penstock.functions.formats import Format, Json

Start: TypeAlias = Literal["earliest", "latest"] | datetime | Mapping[int, int]
"""Where reading begins: at the first record, behind the last, at a time, or at an offset for each partition."""
Isolation = Literal["read_committed", "read_uncommitted"]
Tombstones = Literal["dead-letter", "deliver"]

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class KafkaIngress:
    """Records of Kafka topics, which are named, or whose names match `pattern`, a regular expression, as a whole.

    Records go to the address that their key names, as text in UTF-8, unless `App.ingress` is given a `key` (the name of
    a field of the value, or a function of it) or a `router`. A record without a usable key, without a value, or whose
    value can't be read becomes a dead letter, with its topic, partition, offset, headers and original bytes. Handlers
    find the headers in `ctx.message.headers`: one that is no text as `base64:...`, one that comes again as `name#2`.

    Partition j is read by task j modulo the parallelism, from `start` on when the application first starts; from then
    on positions are those of its checkpoints. Partitions and topics that appear later are read from their beginning.
    """

    topics: str | Sequence[str] = ()
    pattern: str | None = None
    type: object = None
    format: Format = field(default_factory=Json)
    start: Start = field(default="earliest", hash=False)
    """`{0: 17, 3: 0}` gives offsets of partitions; others begin at the first record. Only for a single topic."""
    group: str | None = None
    """The consumer group that positions are told to, for tools that show lag; None means the name of the application.
    Nothing is ever read back from it."""
    isolation: Isolation = "read_committed"
    tombstones: Tombstones = "dead-letter"
    """What becomes of records without a value: "deliver" gives them to the function as None, which its messages must
    allow."""
    brokers: str | None = None
    """Addresses of another cluster than that of the application."""
    properties: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Of that other cluster, by Kafka's own names: `{"security.protocol": "SSL"}`. Never shown: they may hold
    secrets."""

    def __post_init__(self) -> None:
        topics = (self.topics,) if isinstance(self.topics, str) else tuple(self.topics)
        object.__setattr__(self, "topics", topics)
        owner = f"KafkaIngress({self.name!r})"
        if bool(topics) == (self.pattern is not None):
            raise _wrong(f"{owner} has {'both' if topics else 'neither'} of topics and pattern. Give one of them.")
        for topic in topics:
            if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
                raise _wrong(
                    f"{owner} names the topic {topic!r}. Use 1 to 249 letters, digits, '.', '_' and '-'; give an "
                    "expression that names must match as pattern=."
                )
        if len(set(topics)) < len(topics):
            raise _wrong(f"{owner} names a topic twice. Remove one: its records would come twice.")
        self._check_pattern(owner)
        if not isinstance(self.format, Format):
            raise _wrong(f"{owner} has format={self.format!r}. Give a format, such as Json(), Msgpack() or Raw().")
        self._check_start(owner)
        _check_choice(self.isolation, ("read_committed", "read_uncommitted"), f"The isolation of {owner}")
        _check_choice(self.tombstones, ("dead-letter", "deliver"), f"The tombstones of {owner}")
        if self.group == "":
            raise _wrong(f"{owner} has an empty group. Leave it out for the name of the application.")
        if self.properties and self.brokers is None:
            raise _wrong(
                f"{owner} has properties without brokers. Give the addresses of that cluster, or set the properties of "
                "the application's own."
            )

    @property
    def name(self) -> str:
        """What is read, for people."""
        return self.pattern if self.pattern is not None else ", ".join(self.topics)

    def _check_pattern(self, owner: str) -> None:
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise _wrong(f"{owner} has a pattern that is no regular expression: {error}. Correct it.") from error

    def _check_start(self, owner: str) -> None:
        start: object = self.start
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise _wrong(f"{owner} starts at {start}, in no time zone. Write datetime(..., tzinfo=UTC).")
        elif isinstance(start, Mapping):
            if self.pattern is not None or len(self.topics) != 1:
                raise _wrong(
                    f"{owner} has offsets to start at, which need a single topic. Declare one ingress for each."
                )
            for partition, offset in start.items():
                if not (_is_natural(partition) and _is_natural(offset)):
                    raise _wrong(f"{owner} starts partition {partition!r} at {offset!r}. Give whole numbers from 0 on.")
            object.__setattr__(self, "start", dict(start))
        else:
            _check_choice(start, ("earliest", "latest"), f"The start of {owner}", "a time, or {partition: offset}")


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_choice(value: object, choices: Sequence[str], what: str, others: str = "") -> None:
    if value not in choices:
        known = ", ".join(choices) + (f", {others}" if others else "")
        raise ConfigurationError("PEN0140", f"{what} is {value!r}, not one of {known}. Leave it out for {choices[0]}.")


def _wrong(message: str) -> ConfigurationError:
    return ConfigurationError("PEN0141", message)
