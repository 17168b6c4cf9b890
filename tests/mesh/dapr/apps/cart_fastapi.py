"""An application on the SDK of Dapr, as it would run beside Dapr: an actor under FastAPI. Run with its port."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvicorn
from dapr.actor import Actor, Remindable
from dapr.ext.fastapi import DaprActor, DaprApp
from fastapi import Body, FastAPI

from tests.mesh.dapr.apps.interface import CartInterface


class Cart(Actor, CartInterface, Remindable):
    async def add(self, item: object) -> object:
        items = await self.get()
        await self._state_manager.set_state("items", [*items, item])
        return len(items) + 1

    async def get(self) -> Any:
        found, items = await self._state_manager.try_get_state("items")
        return items if found else []

    async def forget(self, _: object) -> None:
        await self._state_manager.remove_state("items")

    async def set_clocks(self, _: object) -> None:
        await self.register_timer(
            "tick", self.ticked, "timed", timedelta(milliseconds=50), timedelta(0), timedelta(seconds=5)
        )
        await self.register_reminder("bell", b"reminded", timedelta(milliseconds=50))

    async def ticked(self, said: object) -> None:
        await self.add(said)
        await self.unregister_timer("tick")

    async def receive_reminder(
        self, name: str, state: bytes, due_time: timedelta, period: timedelta, ttl: timedelta | None = None
    ) -> None:
        await self.add(f"{state.decode()} by {name}")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await actors.register_actor(Cart)
    yield


app = FastAPI(lifespan=lifespan)
actors = DaprActor(app)
topics = DaprApp(app)
events: list[object] = []


@topics.subscribe(pubsub="pubsub", topic="orders")
def ordered(event: Any = Body()) -> None:  # noqa: B008 - as FastAPI has it.
    events.append(event["data"])


@app.get("/events")
async def got() -> list[object]:
    return events


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
