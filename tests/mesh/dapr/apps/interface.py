"""What callers of the carts know of them."""

from __future__ import annotations

from typing import Any

from dapr.actor import ActorInterface, actormethod


class CartInterface(ActorInterface):
    @actormethod(name="Add")
    async def add(self, item: object) -> object: ...

    @actormethod(name="Get")
    async def get(self) -> Any: ...

    @actormethod(name="Forget")
    async def forget(self, nothing: object) -> None: ...

    @actormethod(name="SetClocks")
    async def set_clocks(self, nothing: object) -> None: ...
