"""What the command line asks of a running application, under `/admin`. All answers are JSON.

    GET  status, functions, config
    GET  state?function=&prefix=&limit=        state/value?function=&id=        PUT state/value
    GET  dead?function=&code=&limit=           dead/NUMBER       POST dead/redrive, dead/drop {"numbers": [...]}
    GET  dead/counts
    GET  calls?function=&parked=&limit=        call?function=&id=
    POST calls/cancel, calls/resume {"function": "...", "id": "..."}
    GET  schedules                             POST schedules/pause, schedules/resume, schedules/run {"name": ...}
                                               POST schedules/backfill {"name", "start", "end", "dry"}
    GET  checkpoints                           checkpoints/NUMBER               POST checkpoints
    GET  savepoints/NUMBER                     POST savepoints {"to": "PLACE"}

Any worker answers for every task. Reading happens between two turns of a task, so what is said of one is consistent.
Changes are operations: logged, ordered and exactly once, like any message from outside (PROTOCOL 3).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

import penstock
from penstock.durations import timestamp
from penstock.engine.looks import Ask, Looks, Question, id_of_task
from penstock.engine.operations import (
    BackfillSchedule,
    CancelInvocation,
    Drop,
    Look,
    Operation,
    PauseSchedule,
    Redrive,
    ResumeInvocation,
    RunSchedule,
    SetState,
)
from penstock.engine.saving import Saving
from penstock.engine.schedules import unknown_schedule
from penstock.engine.serving import Served, SharedStatistics
from penstock.engine.settings import Setting
from penstock.engine.sinks import SinkDriver
from penstock.engine.totals import Totals
from penstock.engine.views import not_retained, show_checkpoint, summarize_checkpoint, view_of_nothing
from penstock.errors import InvalidInput, Unavailable
from penstock.functions.describing import describe_functions
from penstock.functions.schedule import Schedule
from penstock.ids import Address, key_group

LIMIT: Final = 100
LIMIT_MAX: Final = 100_000
LOOK_S: Final = 15.0
"""Longer than it takes until the tasks of a worker that died are with another one."""
CHANGE_S: Final = 60.0
"""Shorter than the command line waits, so that it hears what became of it."""


class _SetState(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    id: str
    value: msgspec.Raw
    expect: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _SavepointTo(msgspec.Struct, forbid_unknown_fields=True):
    to: str | None = None


class _Addressed(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    id: str


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class _Backfill(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    start: str
    end: str | None = None
    """The present if left out."""
    dry: bool = False


class _Numbers(msgspec.Struct, forbid_unknown_fields=True):
    numbers: list[int]


def admin_routes(worker: Served, settings: Collection[Setting]) -> list[web.RouteDef]:
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
        web.get("/admin/dead/counts", admin.count_dead),
        web.get(r"/admin/dead/{number:\d+}", admin.show_dead),
        web.post("/admin/dead/redrive", admin.redrive),
        web.post("/admin/dead/drop", admin.drop),
        web.get("/admin/calls", admin.list_calls),
        web.get("/admin/call", admin.show_call),
        web.post("/admin/calls/cancel", admin.cancel),
        web.post("/admin/calls/resume", admin.resume),
        web.get("/admin/schedules", admin.list_schedules),
        web.post("/admin/schedules/pause", admin.pause_schedule),
        web.post("/admin/schedules/resume", admin.resume_schedule),
        web.post("/admin/schedules/run", admin.run_schedule),
        web.post("/admin/schedules/backfill", admin.backfill_schedule),
        web.get("/admin/checkpoints", admin.list_checkpoints),
        web.get(r"/admin/checkpoints/{number:\d+}", admin.show_checkpoint),
        web.post("/admin/checkpoints", admin.take_checkpoint),
        web.post("/admin/savepoints", admin.take_savepoint),
        web.get(r"/admin/savepoints/{number:\d+}", admin.show_savepoint),
    ]


def status_of(worker: Served, now_ms: float) -> dict[str, Any]:
    """Is it healthy, and what is it doing? Of several workers, each tells of its own tasks."""
    statistics_ = [unit.core.statistics() for unit in worker.units]
    last = worker.last_checkpoint
    checkpoints = worker.checkpoint_statistics()
    durations, totals = checkpoints.durations_ms, worker.totals()
    return {
        "app": worker.app.name,
        "version": penstock.__version__,
        "pid": os.getpid(),
        "started": timestamp(worker.started_at * 1000),
        "uptime_s": round(now_ms / 1000 - worker.started_at, 3),
        "parallelism": worker.config.parallelism,
        "problem": worker.problem,
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
            "completed": checkpoints.completed,
            "abandoned": checkpoints.abandoned,
            "duration_ms": round(statistics.median(durations), 1) if durations else None,
            "retained": checkpoints.retained,
        },
        "functions": [_function_status(worker, totals, typename) for typename in sorted(worker.app.functions)],
        "ingresses": [_ingress_status(worker, totals, name) for name in worker.app.ingresses],
        "egresses": [_egress_status(worker, totals, name) for name in worker.app.egresses],
        "queued": sum(each.queued for each in statistics_),
        "held": sum(each.pending for each in statistics_),
        "waiting": sum(unit.core.suspended for unit in worker.units),
        "parked": sum(unit.core.parked for unit in worker.units),
        "retries": sum(each.retries for each in statistics_),
        "dead_letters": sum(unit.core.view().count_letters() for unit in worker.units),
        "calls_in_flight": worker.requests.in_flight,
        "shared": _shared_status(worker.shared),
    }


def _shared_status(shared: SharedStatistics | None) -> dict[str, Any] | None:
    """What a worker knows of the others, and of Kafka; None where there are no others."""
    if shared is None:
        return None
    return {
        "worker": shared.worker,
        "leader": shared.leader,
        "leads": shared.leads,
        "leader_silent_s": round(shared.leader_silent_s, 3),
        "members": [
            {"worker": each.worker, "host": each.host, "pid": each.pid, "url": each.url, "leaving": each.leaving}
            for each in shared.members
        ],
        "tasks": list(shared.tasks),
        "still": list(shared.still),
        "paused": shared.paused,
        "lag": dict(shared.lag),
        "unflushed_bytes": shared.unflushed_bytes,
        "rollbacks": shared.rollbacks,
        "adopted": shared.adopted,
        "given": shared.given,
    }


def _function_status(worker: Served, totals: Totals, typename: str) -> dict[str, Any]:
    return {
        "function": typename,
        "messages": totals.messages[typename],
        "failures": totals.failures[typename],
        "queued": sum(len(unit.core.entries[typename].queue) for unit in worker.units),
    }


def _ingress_status(worker: Served, totals: Totals, name: str) -> dict[str, Any]:
    """Of what is read here. Whether it has ended only the tasks that read it know."""
    feeds = [feed for feed in worker.ingresses if feed.name == name]
    lags = [feed.lag for feed in feeds if feed.lag is not None]
    return {
        "ingress": name,
        "records": totals.read[name],
        "lag": sum(lags) if lags else None,
        "done": all(feed.done for feed in feeds),
    }


def _egress_status(worker: Served, totals: Totals, name: str) -> dict[str, Any]:
    staged = 0
    problem = ""
    for unit in worker.units:
        driver = unit.sinks[name]
        if isinstance(driver, SinkDriver):
            counts = driver.statistics()
            staged += counts.rows_undecided + counts.rows_decided
            problem = problem or driver.unavailable
    delivery = worker.app.egresses[name].spec.delivery
    return {
        "egress": name,
        "delivery": delivery,
        "committed": totals.committed[name],
        "staged": staged,
        "problem": problem,
    }


class _Admin:
    """The handlers."""

    def __init__(self, worker: Served, settings: Collection[Setting]) -> None:
        self._worker = worker
        self._settings = settings
        self._looks = Looks(worker.config.parallelism, partial(_in_time, worker.look))
        self._saving = Saving(worker.take_savepoint, worker.app.name, worker.config.directory)
        self._checks = view_of_nothing(worker.app)
        """Refuses at once what no task could take."""

    async def status(self, request: web.Request) -> web.Response:
        return _json(status_of(self._worker, time.time() * 1000))

    async def functions(self, request: web.Request) -> web.Response:
        return _json(describe_functions(self._worker.app))

    async def config(self, request: web.Request) -> web.Response:
        return _json([{"name": each.name, "value": each.text, "origin": each.origin} for each in self._settings])

    # State.

    async def list_state(self, request: web.Request) -> web.Response:
        typename = _parameter(request, "function")
        self._checks.check_function(typename)
        ids = await self._looks.ids(typename, prefix=request.query.get("prefix", ""), limit=_limit(request))
        return _json({"function": typename, "ids": ids})

    async def get_state(self, request: web.Request) -> web.Response:
        address = Address(_parameter(request, "function"), request.query.get("id", ""))
        self._checks.check_address(address)
        return _json(await self._looks.state(address))

    async def set_state(self, request: web.Request) -> web.Response:
        wanted = _decoded(await request.read(), _SetState)
        address = Address(wanted.function, wanted.id)
        self._checks.encode_state(address, bytes(wanted.value))
        expected = None
        if wanted.expect is not msgspec.UNSET:
            expected = bytes(wanted.expect)
            self._checks.encode_state(address, expected)
        await self._operate(address, SetState(bytes(wanted.value), expected))
        return _json(await self._looks.state(address))

    # Dead letters.

    async def list_dead(self, request: web.Request) -> web.Response:
        letters = await self._looks.letters(
            typename=request.query.get("function"), code=request.query.get("code"), limit=_limit(request)
        )
        return _json(letters)

    async def count_dead(self, request: web.Request) -> web.Response:
        return _json(await self._looks.letter_counts())

    async def show_dead(self, request: web.Request) -> web.Response:
        return _json(await self._looks.letter(int(request.match_info["number"])))

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
            done += await self._operate(Address("", id_of_task(task, tasks)), operation(numbers))
        return done

    # What awaits.

    async def list_calls(self, request: web.Request) -> web.Response:
        typename = request.query.get("function")
        if typename is not None:
            self._checks.check_function(typename)
        parked = request.query.get("parked", "false")
        if parked not in ("true", "false"):
            raise InvalidInput("PEN0610", f"parked={parked} is neither true nor false.")
        return _json(await self._looks.calls(typename=typename, parked=parked == "true", limit=_limit(request)))

    async def show_call(self, request: web.Request) -> web.Response:
        address = Address(_parameter(request, "function"), request.query.get("id", ""))
        self._checks.check_address(address)
        return _json(await self._looks.call(address))

    async def cancel(self, request: web.Request) -> web.Response:
        return _json({"cancelled": await self._operate_call(request, CancelInvocation())})

    async def resume(self, request: web.Request) -> web.Response:
        return _json({"resumed": await self._operate_call(request, ResumeInvocation())})

    async def _operate_call(self, request: web.Request, operation: Operation) -> Any:
        wanted = _decoded(await request.read(), _Addressed)
        address = Address(wanted.function, wanted.id)
        self._checks.check_address(address)
        return await self._operate(address, operation)

    async def _operate(self, address: Address, operation: Operation) -> Any:
        return await change_in_time(self._worker, address, operation)

    # Schedules.

    async def list_schedules(self, request: web.Request) -> web.Response:
        return _json(await self._looks.schedules(limit=_limit(request)))

    async def pause_schedule(self, request: web.Request) -> web.Response:
        return await self._pause_schedule(request, paused=True)

    async def resume_schedule(self, request: web.Request) -> web.Response:
        return await self._pause_schedule(request, paused=False)

    async def _pause_schedule(self, request: web.Request, *, paused: bool) -> web.Response:
        schedule = self._schedule(_decoded(await request.read(), _Named).name)
        return _json({"changed": await self._operate(Address("", schedule.name), PauseSchedule(paused))})

    async def run_schedule(self, request: web.Request) -> web.Response:
        schedule = self._schedule(_decoded(await request.read(), _Named).name)
        await self._operate(Address("", schedule.name), RunSchedule())
        return _json({"runs": 1})

    async def backfill_schedule(self, request: web.Request) -> web.Response:
        wanted = _decoded(await request.read(), _Backfill)
        schedule = self._schedule(wanted.name)
        start_ms = schedule.cron.moment(wanted.start)
        end_ms = None if wanted.end is None else schedule.cron.moment(wanted.end)
        backfill = BackfillSchedule(start_ms, end_ms, wanted.dry)
        return _json({"runs": await self._operate(Address("", schedule.name), backfill)})

    def _schedule(self, name: str) -> Schedule:
        schedules = self._worker.app.schedules
        if name not in schedules:
            raise unknown_schedule(name, schedules)
        return schedules[name]

    # Checkpoints.

    async def list_checkpoints(self, request: web.Request) -> web.Response:
        return _json([summarize_checkpoint(retained) for retained in await self._worker.checkpoints()])

    async def show_checkpoint(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        checkpoints = await self._worker.checkpoints()
        for retained in checkpoints:
            if retained.checkpoint == number:
                return _json(show_checkpoint(retained, await self._worker.manifest(retained)))
        raise not_retained(number, [retained.checkpoint for retained in checkpoints])

    async def take_checkpoint(self, request: web.Request) -> web.Response:
        return _json({"checkpoint": await self._worker.take_checkpoint()})

    # Savepoints.

    async def take_savepoint(self, request: web.Request) -> web.Response:
        """Begin to take one: it is not there before `show_savepoint` says so."""
        wanted = _decoded(await request.read() or b"{}", _SavepointTo)
        return _json({"number": self._saving.begin(wanted.to)})

    async def show_savepoint(self, request: web.Request) -> web.Response:
        return _json(self._saving.state(int(request.match_info["number"])))


async def change_in_time(worker: Served, address: Address, operation: Operation) -> Any:
    """Carry out an operation, and return what it answers. Raises Unavailable when that is not known in time."""
    try:
        async with asyncio.timeout(CHANGE_S):
            return await worker.requests.operate(address, operation)
    except TimeoutError:
        raise Unavailable(
            "PEN0614",
            f"The change was accepted, and is not known to be done after {CHANGE_S:g} s. It will be done in its "
            "turn: look again later, and at penstock status.",
        ) from None


async def ask_in_order(worker: Served, address: Address, question: Question) -> Any:
    """Put a question to the task of an address behind everything that was accepted before. What it answers can't be
    rolled back."""

    async def ask(task: int, question: Question) -> Any:
        return await worker.requests.operate(address, Look(question))

    return await _in_time(ask, key_group(address.id) % worker.config.parallelism, question)


async def _in_time(ask: Ask, task: int, question: Question) -> Any:
    """Let nobody wait for ever who only wants to see something."""
    try:
        async with asyncio.timeout(LOOK_S):
            return await ask(task, question)
    except TimeoutError:
        raise Unavailable(
            "PEN0613",
            f"Task {task} has not answered within {LOOK_S:g} s. No worker has it at present, or its worker is under "
            "pressure: see penstock status, and ask again.",
        ) from None


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
