"""What people and tools ask of a mesh at its gateway: how it does, functions, state, dead letters, what waits.

    GET  /admin/status                                /admin/functions
    GET  /admin/state?function=&prefix=&limit=        /admin/state/value?function=&id=
    GET  /admin/dead?function=&code=&limit=           /admin/dead/counts           /admin/dead/NUMBER
    POST /admin/dead/redrive, /admin/dead/drop        {"numbers": [...]}
    GET  /admin/calls?function=&limit=                /admin/call?function=&id=
    POST /admin/calls/cancel                          {"function": "...", "id": "..."}
    any other                                         404, and why there is no such thing

What always holds: the answers have the shape of those of `penstock run`, so that `penstock state --url` and the like
understand them; reading waits for no turn, and shows what is committed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from penstock.errors import InvalidInput
from penstock.functions.app import App
from penstock.functions.describing import describe_functions
from penstock.ids import Address
from penstock.mesh.caller import Caller
from penstock.mesh.doing import Looks
from penstock.mesh.invocation import LoadedRows
from penstock.mesh.letters import Letters
from penstock.mesh.store import Store
from penstock.mesh.wire import YES, Kind, Request, error_of
from penstock.state.showing import show_state
from penstock.state.stateful import Stateful
from penstock.web import json_response, read_body

T = TypeVar("T")

LIMIT: Final = 100
LIMIT_MAX: Final = 100_000


class _Numbers(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int]


class _Addressed(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    id: str


class GatewayAdmin:
    """See the module. Hosts are asked by `looks`, and told by `caller`."""

    def __init__(self, app: App, functions: Mapping[str, Stateful], store: Store, caller: Caller, looks: Looks) -> None:
        self._caller = caller
        self._looks = looks
        self._began_s = time.time()
        self._app = app
        self._functions = functions
        self._store = store
        self._letters = Letters(store, functions)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/admin/status", self._status),
            web.get("/admin/functions", self._list_functions),
            web.get("/admin/state", self._list_state),
            web.get("/admin/state/value", self._show_state),
            web.get("/admin/dead", self._list_dead),
            web.get("/admin/dead/counts", self._count_dead),
            web.get(r"/admin/dead/{number:\d+}", self._show_dead),
            web.post("/admin/dead/redrive", self._redrive),
            web.post("/admin/dead/drop", self._drop),
            web.get("/admin/calls", self._list_calls),
            web.get("/admin/call", self._show_call),
            web.post("/admin/calls/cancel", self._cancel),
            web.route("*", "/admin/{what:.*}", self._unserved),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        letters = sum(row["letters"] for row in await self._letters.counts())
        return json_response(await self._looks.status(self._app, self._store, letters, self._began_s))

    async def _list_functions(self, request: web.Request) -> web.Response:
        return json_response(describe_functions(self._app))

    # State.

    async def _list_state(self, request: web.Request) -> web.Response:
        function = self._function(request.query.get("function", ""))
        prefix = request.query.get("prefix", "")
        ids = await self._store.ids(function.function.state_typename, prefix=prefix, limit=_limit(request))
        return json_response({"function": function.typename, "ids": ids})

    async def _show_state(self, request: web.Request) -> web.Response:
        function = self._function(request.query.get("function", ""))
        address = Address(function.typename, request.query.get("id", ""))
        if not address.id:
            raise InvalidInput("PEN0203", f"An empty id names no instance of {function.typename}. Give it some text.")
        loaded = await self._store.load(function.function.state_typename, address.id, rows=True)
        now_ms = time.time_ns() // 1_000_000
        return json_response(show_state(function, address, loaded.value, LoadedRows(loaded.rows), now_ms))

    def _function(self, typename: str) -> Stateful:
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

    # What waits.

    async def _list_calls(self, request: web.Request) -> web.Response:
        typename = request.query.get("function")
        if typename is not None:
            self._function(typename)
        if request.query.get("parked") == "true":
            return json_response([])  # Nothing is: a handler that is run again begins at its beginning.
        return json_response(await self._looks.calls(typename=typename, limit=_limit(request)))

    async def _show_call(self, request: web.Request) -> web.Response:
        function = self._function(request.query.get("function", ""))
        return json_response(await self._looks.call(Address(function.typename, request.query.get("id", ""))))

    async def _cancel(self, request: web.Request) -> web.Response:
        wanted = await _body(request, _Addressed)
        address = Address(self._function(wanted.function).typename, wanted.id)
        reply = await self._caller.call(Request(address, b"", Kind.CANCEL))
        if reply.status != 200:
            raise error_of(reply, str(address))
        if reply.body != YES:
            raise InvalidInput(
                "PEN0270",
                f"{address} is not busy with anything that can be cancelled. What waits is told by penstock calls "
                "list.",
            )
        return json_response({"cancelled": True})

    async def _unserved(self, request: web.Request) -> web.Response:
        raise InvalidInput(
            "PEN0611",
            f"{request.method} {request.path} is not served in front of a mesh. It has no checkpoints, savepoints or "
            "parked handlers, changes no state from outside, and takes schedules and settings as they were when it was "
            "started. See docs/reference/http.md.",
        )


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(LIMIT))
    if not given.isdecimal():
        raise InvalidInput("PEN0610", f"limit = {given!r} is no whole number. Give ?limit=100.")
    return min(int(given), LIMIT_MAX)


async def _numbers(request: web.Request) -> list[int]:
    return (await _body(request, _Numbers)).numbers


async def _body(request: web.Request, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(await read_body(request), type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("PEN0610", f"The body is not what this path takes: {error}.") from error
