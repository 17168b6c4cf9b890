"""A program on the SDK of Dapr that calls actors and methods of others. Prints what it got, as JSON."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from dapr.actor import ActorId, ActorProxy
from dapr.clients import DaprClient

from tests.mesh.dapr.apps.interface import CartInterface


async def carts() -> dict[str, Any]:
    cart: Any = ActorProxy.create("Cart", ActorId("1"), CartInterface)
    added = [await cart.Add("apple"), await cart.Add({"name": "pear"})]
    got = await cart.Get()
    await cart.Forget(None)
    await cart.SetClocks(None)
    until = time.monotonic() + 10
    while len(chimed := await cart.Get()) < 2 and time.monotonic() < until:  # noqa: ASYNC110 - it has no other way.
        await asyncio.sleep(0.02)
    item: Any = ActorProxy.create("Item", ActorId("7"))
    taken = json.loads(await item.invoke_method("Take", b"3"))
    return {"added": added, "got": got, "chimed": sorted(chimed), "taken": taken}


def main() -> None:
    told = asyncio.run(carts())
    with DaprClient() as client:
        answer = client.invoke_method(
            "stock", "reserve", data=json.dumps({"n": 2}), content_type="application/json", http_verb="POST"
        )
        told["reserved"] = answer.json()
    print(json.dumps(told))  # noqa: T201 - that is what it is for.


if __name__ == "__main__":
    main()
