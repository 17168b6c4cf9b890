"""What the command line asks of a running application, under `/admin`. All answers are JSON.

    GET  status, functions, config
    GET  state?function=&prefix=&limit=        state/value?function=&id=        PUT state/value
    GET  dead?function=&code=&limit=           dead/NUMBER       POST dead/redrive, dead/drop {"numbers": [...]}
    GET  checkpoints                           checkpoints/NUMBER               POST checkpoints

Reading happens between two turns, so an answer is consistent. Changes are operations: logged, ordered and exactly once,
like any message from outside (PROTOCOL 3).
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from aiohttp import web

import penstock
from penstock.engine.operations import Drop, Redrive, SetState
from penstock.engine.settings import Setting
from penstock.engine.sinks import SinkDriver
from penstock.engine.views import (
    TaskView,
    View,
    describe_functions,
    not_retained,
    show_checkpoint,
    summarize_checkpoint,
    summarize_letter,
    timestamp,
)
from penstock.engine.worker import Worker
from penstock.errors import InvalidInput
from penstock.ids import Address, key_group

LIMIT: Final = 100
LIMIT_MAX: Final = 100_000


class _SetState(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    id: str
    value: msgspec.Raw
    expect: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Numbers(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int]


def admin_routes(worker: Worker, settings: Collection[Setting]) -> list[web.RouteDef]:
    """The routes, for the server that guards them."""
    admin = _Admin(worker, settings)
    return [
        web.get("/admin/status", admin.status),
        web.get("/admin/functions", admin.functions),
        web.get("/admin/config", admin.config),
        web.get("/admin/state", admin.list_state),
        web.get("/admin/state/value", admin.get_state),
        web.put("/admin/state/value", admin.set_state),
        web.get("/admin/dead", admin.list_dead),
        web.get(r"/admin/dead/{number:\d+}", admin.show_dead),
        web.post("/admin/dead/redrive", admin.redrive),
        web.post("/admin/dead/drop", admin.drop),
        web.get("/admin/checkpoints", admin.list_checkpoints),
        web.get(r"/admin/checkpoints/{number:\d+}", admin.show_checkpoint),
        web.post("/admin/checkpoints", admin.take_checkpoint),
    ]


def status_of(worker: Worker, now_ms: float) -> dict[str, Any]:
    """Is it healthy, and what is it doing?"""
    statistics_ = [unit.core.statistics() for unit in worker.units]
    last = worker.last_checkpoint
    durations = worker.checkpoint_driver.durations_ms
    return {
        "app": worker.app.name,
        "version": penstock.__version__,
        "pid": os.getpid(),
        "started": timestamp(worker.started_at * 1000),
        "uptime_s": round(now_ms / 1000 - worker.started_at, 3),
        "parallelism": worker.config.parallelism,
        "problem": worker.data.storage_error,
        "attempt": worker.recovery.attempt,
        "restored": {
            "checkpoint": worker.recovery.restored,
            "deltas": worker.recovery.deltas,
            "took_s": round(worker.recovery.took_s, 3),
            "notes": list(worker.recovery.notes),
        },
        "checkpoint": {
            "last": None if last is None else last.checkpoint,
            "age_s": None if last is None else round((now_ms - worker.last_checkpoint_ms) / 1000, 3),
            "interval_s": worker.config.interval_ms / 1000,
            "completed": worker.coordinator.completed,
            "abandoned": worker.coordinator.abandoned,
            "duration_ms": round(statistics.median(durations), 1) if durations else None,
            "retained": len(worker.checkpoints),
        },
        "functions": [_function_status(worker, typename) for typename in sorted(worker.app.functions)],
        "ingresses": [{"ingress": feed.name, "records": feed.records, "done": feed.done} for feed in worker.ingresses],
        "egresses": [_egress_status(worker, name) for name in worker.app.egresses],
        "queued": sum(each.queued for each in statistics_),
        "held": sum(each.pending for each in statistics_),
        "retries": sum(each.retries for each in statistics_),
        "dead_letters": view_of(worker).count_letters(),
        "calls_in_flight": worker.requests.in_flight,
    }


def view_of(worker: Worker) -> View:
    """The state of a running application."""
    tasks = [TaskView(unit.overlay, unit.core.entries, unit.core.letters) for unit in worker.units]
    return View(worker.app, tasks, max((unit.core.clock_ms for unit in worker.units), default=0))


def _function_status(worker: Worker, typename: str) -> dict[str, Any]:
    return {
        "function": typename,
        "messages": sum(unit.core.messages.get(typename, 0) for unit in worker.units),
        "failures": sum(unit.core.failures.get(typename, 0) for unit in worker.units),
        "queued": sum(len(unit.core.entries[typename].queue) for unit in worker.units),
    }


def _egress_status(worker: Worker, name: str) -> dict[str, Any]:
    staged = committed = 0
    problem = ""
    for unit in worker.units:
        driver = unit.sinks[name]
        if isinstance(driver, SinkDriver):
            counts = driver.statistics()
            staged += counts.rows_undecided + counts.rows_decided
            committed += counts.rows_committed
            problem = problem or driver.unavailable
        else:
            committed += driver.written
    delivery = worker.app.egresses[name].spec.delivery
    return {"egress": name, "delivery": delivery, "committed": committed, "staged": staged, "problem": problem}


class _Admin:
    """The handlers."""

    def __init__(self, worker: Worker, settings: Collection[Setting]) -> None:
        self._worker = worker
        self._settings = settings

    async def status(self, request: web.Request) -> web.Response:
        return _json(status_of(self._worker, time.time() * 1000))

    async def functions(self, request: web.Request) -> web.Response:
        return _json(describe_functions(self._worker.app))

    async def config(self, request: web.Request) -> web.Response:
        return _json([{"name": each.name, "value": each.text, "origin": each.origin} for each in self._settings])

    # State.

    async def list_state(self, request: web.Request) -> web.Response:
        typename = _parameter(request, "function")
        ids = view_of(self._worker).ids(typename, prefix=request.query.get("prefix", ""), limit=_limit(request))
        return _json({"function": typename, "ids": ids})

    async def get_state(self, request: web.Request) -> web.Response:
        address = Address(_parameter(request, "function"), request.query.get("id", ""))
        return _json(view_of(self._worker).state(address))

    async def set_state(self, request: web.Request) -> web.Response:
        wanted = _decoded(await request.read(), _SetState)
        address = Address(wanted.function, wanted.id)
        view = view_of(self._worker)
        value = view.encode_state(address, bytes(wanted.value))
        expected = None
        if wanted.expect is not msgspec.UNSET:
            expected = view.raw_state(address)
            if not view.holds(address, bytes(wanted.expect)):
                raise InvalidInput(
                    "PEN0303",
                    f"State of {address} is not what was expected, so it was not set. Read it again, and decide anew.",
                )
        await self._worker.requests.operate(address, SetState(value, expected))
        return _json(view_of(self._worker).state(address))

    # Dead letters.

    async def list_dead(self, request: web.Request) -> web.Response:
        letters = view_of(self._worker).letters(
            typename=request.query.get("function"), code=request.query.get("code"), limit=_limit(request)
        )
        return _json([summarize_letter(letter) for letter in letters])

    async def show_dead(self, request: web.Request) -> web.Response:
        view = view_of(self._worker)
        return _json(view.show_letter(view.letter(int(request.match_info["number"]))))

    async def redrive(self, request: web.Request) -> web.Response:
        return _json({"redriven": await self._operate_letters(request, Redrive)})

    async def drop(self, request: web.Request) -> web.Response:
        return _json({"dropped": await self._operate_letters(request, Drop)})

    async def _operate_letters(self, request: web.Request, operation: Callable[[list[int]], Redrive | Drop]) -> int:
        """Letters lie at the task that wrote them, which their number names."""
        tasks = self._worker.config.parallelism
        by_task: dict[int, list[int]] = defaultdict(list)
        for number in _decoded(await request.read(), _Numbers).numbers:
            by_task[number % tasks].append(number)
        done = 0
        for task, numbers in by_task.items():
            done += await self._worker.requests.operate(Address("", id_of_task(task, tasks)), operation(numbers))
        return done

    # Checkpoints.

    async def list_checkpoints(self, request: web.Request) -> web.Response:
        return _json([summarize_checkpoint(retained) for retained in self._worker.checkpoints])

    async def show_checkpoint(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        for retained in self._worker.checkpoints:
            if retained.checkpoint == number:
                return _json(show_checkpoint(retained, self._worker.data.journal.manifest(retained)))
        raise not_retained(number, [retained.checkpoint for retained in self._worker.checkpoints])

    async def take_checkpoint(self, request: web.Request) -> web.Response:
        return _json({"checkpoint": await self._worker.checkpoint_driver.wait_checkpoint("request")})


def id_of_task(task: int, tasks: int) -> str:
    """Some id that the task owns: how an operation is addressed to a task and not to an instance."""
    return next(id for number in range(1 << 16) if key_group(id := f"task-{number}") % tasks == task)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _decoded(body: bytes, type_: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("PEN0610", f"The body is not what this path takes: {error}.") from error


def _parameter(request: web.Request, name: str) -> str:
    value = request.query.get(name)
    if value is None:
        raise InvalidInput("PEN0610", f"{request.path} needs the parameter {name!r}: append ?{name}=... to the path.")
    return value


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(LIMIT))
    if not given.isdecimal() or not 1 <= int(given) <= LIMIT_MAX:
        raise InvalidInput("PEN0610", f"limit={given} is no number from 1 to {LIMIT_MAX:,}.")
    return int(given)
