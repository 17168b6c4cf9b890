"""An application on the SDK of Dapr under Flask: an actor, a method, a topic. Run with its port."""

from __future__ import annotations

import sys
from typing import Any

from dapr.actor import Actor, ActorInterface, actormethod
from dapr.ext.flask import DaprActor, DaprApp
from flask import Flask, jsonify, request

app = Flask("stock")
actors = DaprActor(app)
topics = DaprApp(app)
events: list[object] = []


class ItemInterface(ActorInterface):
    @actormethod(name="Take")
    async def take(self, number: object) -> object: ...


class Item(Actor, ItemInterface):
    async def take(self, number: Any) -> object:
        found, left = await self._state_manager.try_get_state("left")
        left = (left if found else 10) - number
        await self._state_manager.set_state("left", left)
        return left


@app.post("/reserve")
def reserve() -> Any:
    return jsonify(reserved=request.get_json(), asked_by=request.headers["dapr-caller-app-id"])


@topics.subscribe(pubsub="pubsub", topic="orders", route="/ordered")
def ordered() -> Any:
    events.append(request.get_json(force=True)["data"])
    return jsonify(status="SUCCESS")


@app.get("/events")
def got() -> Any:
    return jsonify(events)


if __name__ == "__main__":
    actors.register_actor(Item)
    app.run(host="127.0.0.1", port=int(sys.argv[1]))
