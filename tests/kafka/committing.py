"""A process that commits numbered rows, checkpoint after checkpoint, until it is killed or replaced.

    python -m tests.kafka.committing BOOTSTRAP APPLICATION LAST

It goes on where the marker says, and prints each checkpoint that it knows to be committed.
"""

from __future__ import annotations

import asyncio
import sys

from penstock.errors import Fenced, Unavailable
from penstock.functions.formats import Raw
from penstock.functions.kafka_egress import KafkaEgress
from penstock.records import EgressRow
from penstock.router.formats import encoder_for
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_sink import KafkaSinks
from penstock.router.schema_registry import Registries

ATTEMPT = 1
PARTITIONS = 4
ROWS = 40
"""Of one checkpoint, over all partitions."""


def value_of(checkpoint: int, number: int) -> bytes:
    return b"%d:%d" % (checkpoint, number)


async def commit_all(bootstrap: str, application: str, last: int) -> None:
    sinks = KafkaSinks(KafkaOptions(bootstrap), application, marks=f"{application}-marks")
    spec = KafkaEgress(f"{application}-rows", format=Raw())
    sink = sinks.sink("shop/out", spec, encoder_for(spec.format, Registries()))
    await sink.open()
    try:
        marker = await sink.read_marker(0)
        for checkpoint in range(marker.get(ATTEMPT, 0) + 1, last + 1):
            rows = [EgressRow(value_of(checkpoint, n), n, partition=n % PARTITIONS) for n in range(ROWS)]
            await sink.commit(0, rows, {ATTEMPT: checkpoint})
            sys.stdout.write(f"{checkpoint}\n")
            sys.stdout.flush()
    except (Fenced, Unavailable) as error:
        sys.stdout.write(f"{error.code}\n")
    finally:
        await sink.close(final=True)


if __name__ == "__main__":
    asyncio.run(commit_all(sys.argv[1], sys.argv[2], int(sys.argv[3])))
