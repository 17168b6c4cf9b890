"""A process that commits until it is killed: `python -m tests.mesh.store_child STORE`.

Each commit counts its address up, answers a key, and sends one message and one row. The number is printed when the
commit has returned.
"""

from __future__ import annotations

import asyncio
import sys

from penstock.mesh.store import Answer, Commit, Emitted, Outgoing
from penstock.mesh.stores import open_store
from penstock.records import EgressRow


def counting(session: int, number: int, version: int) -> Commit:
    return Commit(
        session,
        "shop/cart",
        "alice",
        version,
        b"%d" % number,
        key=f"key-{number}",
        answer=Answer(200, b"%d" % number),
        outgoing=(Outgoing("shop/stock", "s", b"%d" % number, f"out-{number}"),),
        emitted=(Emitted("shop/log", EgressRow(b"%d" % number, number)),),
    )


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def main(where: str) -> None:
    store = await open_store(where)
    session = await store.begin_session("child")
    version = (await store.load("shop/cart", "alice")).version
    tell(session)
    number = 0
    while True:
        number += 1
        committed = await store.commit(counting(session, number, version))
        version = committed.version
        tell(number)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
