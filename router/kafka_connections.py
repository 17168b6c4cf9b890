"""The connections of a client of Kafka, none of which outlives it.

The client library forgets a connection when it is cancelled while it looks for its first broker, and one that comes
about while it closes: each leaves a socket open until memory is tidied, and a complaint. What always holds here: when
`bootstrap` fails or is cancelled nothing is open, and after `close` nothing is opened.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import aiokafka.client
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason, create_conn

_opened: ContextVar[WeakSet[Any] | None] = ContextVar("_opened", default=None)
"""Where `bootstrap` is told of connections. A weak set, because the task that refreshes what is known inherits it."""


class Connections(AIOKafkaClient):  # type: ignore[misc]  # The library is not typed.
    """The client of the library, which closes whatever it opens."""

    _ended = False

    async def bootstrap(self) -> None:
        """Learn who the brokers are. Raises KafkaConnectionError when none answers."""
        opened: WeakSet[Any] = WeakSet()
        token = _opened.set(opened)
        try:
            await super().bootstrap()
        finally:
            _opened.reset(token)
            kept = list(self._conns.values())
            for connection in list(opened):
                if connection not in kept:
                    connection.close(reason=CloseReason.SHUTDOWN)

    async def close(self) -> None:
        """End the connections. One that is being made ends as soon as it is there."""
        self._ended = True
        await super().close()

    async def _get_conn(self, node: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        connection = await super()._get_conn(node, group=group, no_hint=no_hint)
        if self._ended and connection is not None:
            connection.close(reason=CloseReason.SHUTDOWN)
            return None  # As if the broker could not be reached.
        return connection


async def _create_conn(*arguments: Any, **options: Any) -> Any:
    connection = await create_conn(*arguments, **options)
    if (opened := _opened.get()) is not None:
        opened.add(connection)
    return connection


aiokafka.client.create_conn = _create_conn
