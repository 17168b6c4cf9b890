"""What people and tools ask of a mesh at its gateway: functions, state, dead letters.

    GET  /admin/functions
    GET  /admin/state?function=&prefix=&limit=        /admin/state/value?function=&id=
    GET  /admin/dead?function=&code=&limit=           /admin/dead/counts           /admin/dead/NUMBER
    POST /admin/dead/redrive, /admin/dead/drop        {"numbers": [...]}

What always holds: the answers have the shape of those of `penstock run`, so that `penstock state --url` and the like
understand them; reading waits for no turn, and shows what is committed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web

from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.functions.describing import describe_functions
from penstock.ids import Address
from penstock.mesh.invocation import LoadedRows
from penstock.mesh.letters import Letters
from penstock.mesh.store import Store
from penstock.state.showing import show_state
from penstock.state.stateful import Stateful
from penstock.web import json_response, read_body

LIMIT: Final = 100
LIMIT_MAX: Final = 100_000


class _Numbers(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int]


class GatewayAdmin:
    """See the module."""

    def __init__(self, app: App, functions: Mapping[str, Stateful], store: Store) -> None:
        self._app = app
        self._functions = functions
        self._store = store
        self._letters = Letters(store, functions)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/admin/functions", self._list_functions),
            web.get("/admin/state", self._list_state),
            web.get("/admin/state/value", self._show_state),
            web.get("/admin/dead", self._list_dead),
            web.get("/admin/dead/counts", self._count_dead),
            web.get(r"/admin/dead/{number:\d+}", self._show_dead),
            web.post("/admin/dead/redrive", self._redrive),
            web.post("/admin/dead/drop", self._drop),
        ]

    async def _list_functions(self, request: web.Request) -> web.Response:
        return json_response(describe_functions(self._app))

    # State.

    async def _list_state(self, request: web.Request) -> web.Response:
        function = self._function(request)
        prefix = request.query.get("prefix", "")
        ids = await self._store.ids(function.function.state_typename, prefix=prefix, limit=_limit(request))
        return json_response({"function": function.typename, "ids": ids})

    async def _show_state(self, request: web.Request) -> web.Response:
        function = self._function(request)
        address = Address(function.typename, request.query.get("id", ""))
        if not address.id:
            raise InvalidInput("PEN0203", f"An empty id names no instance of {function.typename}. Give it some text.")
        loaded = await self._store.load(function.function.state_typename, address.id, rows=True)
        now_ms = time.time_ns() // 1_000_000
        return json_response(show_state(function, address, loaded.value, LoadedRows(loaded.rows), now_ms))

    def _function(self, request: web.Request) -> Stateful:
        typename = request.query.get("function", "")
        function = self._functions.get(typename)
        if function is None:
            known = ", ".join(sorted(self._functions)) or "none"
            raise InvalidInput("PEN0105", f"{typename!r} is no function of this application. Known: {known}.")
        return function

    # Dead letters.

    async def _list_dead(self, request: web.Request) -> web.Response:
        typename, code = request.query.get("function"), request.query.get("code")
        return json_response(await self._letters.choose(typename=typename, code=code, limit=_limit(request)))

    async def _count_dead(self, request: web.Request) -> web.Response:
        return json_response(await self._letters.counts())

    async def _show_dead(self, request: web.Request) -> web.Response:
        return json_response(await self._letters.show(int(request.match_info["number"])))

    async def _redrive(self, request: web.Request) -> web.Response:
        return json_response({"redriven": await self._letters.redrive(await _numbers(request))})

    async def _drop(self, request: web.Request) -> web.Response:
        return json_response({"dropped": await self._letters.drop(await _numbers(request))})


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(LIMIT))
    if not given.isdecimal():
        raise InvalidInput("PEN0610", f"limit = {given!r} is no whole number. Give ?limit=100.")
    return min(int(given), LIMIT_MAX)


async def _numbers(request: web.Request) -> list[int]:
    try:
        return msgspec.json.decode(await read_body(request), type=_Numbers).numbers
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("PEN0610", f"The body is not what this path takes: {error}.") from error
