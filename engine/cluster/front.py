"""The HTTP interface of a supervisor: what its workers tell is put together, and what is for one of them is passed on.

    /livez  /readyz  /startupz  /metrics  /admin/status     of all workers
    GET /admin/savepoints/NUMBER                            of the one that takes it
    everything else                                         of any: each reaches every address

What always holds: who may do what is decided by the workers, with the headers as they came; a request that may have
been carried out is sent to another worker only if twice is as good as once, that is, if it reads or has an
Idempotency-Key. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from penstock.engine.cluster.supervisor import Place, Supervisor
from penstock.engine.config import Config
from penstock.errors import InvalidInput, Unavailable
from penstock.exposition import CONTENT_TYPE
from penstock.web import BODY_S, HOP_BY_HOP, bind, error_response, json_response, runner_of

CONNECT_S: Final = 2.0
ASK_S: Final = 5.0
"""What every worker is asked for, it answers within so long, or counts as not there."""
READS: Final = frozenset({"GET", "HEAD"})


class Answer(NamedTuple):
    """What a worker has said."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def refused(self) -> bool:
        """Whether the one who asks may not."""
        return self.status in (401, 403)

    def passed_on(self) -> web.Response:
        response = web.Response(status=self.status, body=self.body)
        response.headers.extend((name, value) for name, value in self.headers if name.lower() not in HOP_BY_HOP)
        return response


class Front:
    """See the module. `start` binds, `close` ends it."""

    def __init__(self, supervisor: Supervisor, config: Config) -> None:
        self._supervisor = supervisor
        self._config = config
        self._started = False
        """Whether all workers were seen ready."""
        self._next = 0
        application = web.Application(client_max_size=config.body_bytes_max)
        application.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/startupz", self._startupz),
                web.get("/metrics", self._metrics),
                web.get("/admin/status", self._status),
                web.get(r"/admin/savepoints/{number:\d+}", self._savepoint),
                web.route("*", "/{path:.*}", self._pass_on),
            ]
        )
        self._runner = runner_of(application, cancelling=True)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> str:
        """Bind, and return the URL. Raises ConfigurationError."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        assert self._config.port is not None, "no port means no HTTP interface"
        return await bind(self._runner, self._config.host, self._config.port)

    async def close(self) -> None:
        await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    # Of all workers.

    async def _livez(self, request: web.Request) -> web.Response:
        return json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        reason = await self._why_not_ready(request)
        return json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def _why_not_ready(self, request: web.Request) -> str:
        if self._supervisor.stopping:
            return "stopping"
        for place in self._supervisor.workers:
            if not place.working:
                return f"{place.label}: starting"
        answers = await self._ask_all(request)
        for place in self._supervisor.workers:
            answer = answers.get(place.label)
            if answer is None:
                return f"{place.label}: does not answer"
            if answer.status != 200:
                return f"{place.label}: {_json_of(answer).get('reason', answer.status)}"
        return ""

    async def _startupz(self, request: web.Request) -> web.Response:
        """Whether all were ready once."""
        self._started = self._started or self._supervisor.ready
        restoring: dict[str, Any] = {}
        if not self._started:
            for answer in (await self._ask_all(request)).values():
                restoring |= _json_of(answer).get("restoring", {})
        return json_response({"started": self._started, "restoring": restoring}, status=200 if self._started else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        answers = await self._ask_all(request)
        refusal = _refusal(answers.values())
        if refusal is not None:
            return refusal
        texts = {label: answer.body.decode() for label, answer in answers.items() if answer.status == 200}
        body = merge_metrics(texts) + self._own_metrics()
        return web.Response(body=body.encode(), headers={"Content-Type": CONTENT_TYPE})

    def _own_metrics(self) -> str:
        working = sum(place.working for place in self._supervisor.workers)
        return (
            "# HELP penstock_workers Processes that have their tasks.\n"
            "# TYPE penstock_workers gauge\n"
            f"penstock_workers {working}\n"
            "# HELP penstock_processes_started_again_total Processes that took the place of one that had ended.\n"
            "# TYPE penstock_processes_started_again_total counter\n"
            f"penstock_processes_started_again_total {self._supervisor.started_again}\n"
        )

    async def _status(self, request: web.Request) -> web.Response:
        answers = await self._ask_all(request)
        refusal = _refusal(answers.values())
        if refusal is not None:
            return refusal
        told = {label: _json_of(answer) for label, answer in answers.items() if answer.status == 200}
        if not told:
            return error_response(_nobody())
        processes = {"leader": {"pid": self._supervisor.leader.pid}, "workers": self._workers(told)}
        return json_response(merge_status(told) | {"pid": os.getpid()} | processes)

    async def _savepoint(self, request: web.Request) -> web.Response:
        """Whoever takes it knows how far it is."""
        answers = (await self._ask_all(request)).values()
        known = [answer for answer in answers if answer.status == 200] or list(answers)
        return known[0].passed_on() if known else error_response(_nobody())

    def _workers(self, told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "worker": place.label,
                "pid": place.pid,
                "url": place.url,
                "working": place.working,
                "tasks": ((told.get(place.label) or {}).get("shared") or {}).get("tasks", []),
            }
            for place in self._supervisor.workers
        ]

    async def _ask_all(self, request: web.Request) -> dict[str, Answer]:
        """What each worker that answers says to this request, by its label."""
        places = [place for place in self._supervisor.workers if place.url]
        answers = await asyncio.gather(*(self._ask_in_time(place, request) for place in places))
        return {place.label: answer for place, answer in zip(places, answers, strict=True) if answer is not None}

    async def _ask_in_time(self, place: Place, request: web.Request) -> Answer | None:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._ask(place, request, b"")
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    # Of any worker.

    async def _pass_on(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_S):
                body = await request.read()
        except TimeoutError:
            return error_response(
                InvalidInput(
                    "PEN0610", f"The body did not arrive within {BODY_S:g} s. Send it in one go, or make it smaller."
                )
            )
        except web.HTTPRequestEntityTooLarge:
            return error_response(
                InvalidInput(
                    "PEN0605",
                    f"The body is larger than body_bytes_max = {self._config.body_bytes_max:,} bytes. "
                    "Send less, or raise body_bytes_max.",
                )
            )
        repeatable = request.method in READS or "Idempotency-Key" in request.headers
        for place in self._in_turn():
            try:
                return (await self._ask(place, request, body)).passed_on()
            except aiohttp.ClientConnectorError:
                continue  # It was never sent.
            except (aiohttp.ClientError, OSError) as error:
                if not repeatable:
                    return error_response(
                        Unavailable(
                            "PEN0776",
                            f"{place.label} ended before it had answered ({error}). Whether the request was carried "
                            "out is not known: with an Idempotency-Key it can be sent again, and has its effect once.",
                        )
                    )
        return error_response(_nobody())

    def _in_turn(self) -> list[Place]:
        """The workers that answer, each time beginning with another one."""
        places = [place for place in self._supervisor.workers if place.url]
        self._next += 1
        start = self._next % len(places) if places else 0
        return places[start:] + places[:start]

    async def _ask(self, place: Place, request: web.Request, body: bytes) -> Answer:
        assert self._session is not None
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        url = URL(f"{place.url}{_path_of(request)}", encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as response:
            return Answer(response.status, list(response.headers.items()), await response.read())


def _path_of(request: web.Request) -> str:
    """Path and query as they were written."""
    return request.raw_path if request.raw_path.startswith("/") else f"/{request.rel_url.raw_path_qs.lstrip('/')}"


def _nobody() -> Unavailable:
    return Unavailable(
        "PEN0777", "No worker answers at present: they are starting, or ended. Nothing was sent to any. Try again."
    )


def _refusal(answers: Iterable[Answer]) -> web.Response | None:
    """What a worker has said to somebody who may not ask."""
    return next((answer.passed_on() for answer in answers if answer.refused), None)


def _json_of(answer: Answer) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


# Putting together.


def merge_metrics(texts: Mapping[str, str]) -> str:
    """Texts for Prometheus in one, with a label that says whose each sample is: every metric is described once, and its
    samples stand together."""
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for label, text in texts.items():
        family = ""
        first: set[str] = set()
        for line in text.splitlines():
            if line.startswith("#"):
                _, _, family, *_ = line.split(" ", 3)
                if family not in described:
                    first.add(family)
                    described[family], samples[family] = [], []
                if family in first:
                    described[family].append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, label))
    return "".join(f"{line}\n" for family, lines in described.items() for line in (*lines, *samples.get(family, ())))


def _labelled(sample: str, worker: str) -> str:
    """`name{a="b"} 1` with one more label."""
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        comma = "" if rest.startswith("}") else ","
        return f'{name}{{worker="{worker}"{comma}{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'


Merge = Callable[[Sequence[Any]], Any]


def _newest(found: Sequence[Any]) -> Any:
    return max((each for each in found if each is not None), default=None)


def _any_text(found: Sequence[Any]) -> Any:
    return next((each for each in found if each), found[0])


_MERGES: Final[Mapping[str, Merge]] = {
    "calls_in_flight": sum,
    "committed": sum,
    "dead_letters": sum,
    "done": all,
    "duration_ms": _newest,
    "failures": sum,
    "held": sum,
    "lag": lambda found: sum(known) if (known := [each for each in found if each is not None]) else None,
    "last": _newest,
    "age_s": lambda found: min((each for each in found if each is not None), default=None),
    "messages": sum,
    "parked": sum,
    "problem": _any_text,
    "queued": sum,
    "records": sum,
    "retries": sum,
    "staged": sum,
    "uptime_s": _newest,
    "waiting": sum,
}
"""By field: of several workers. Others are those of the first."""
_NAMES: Final = ("function", "ingress", "egress")
"""Of rows that are put together when they have the same name."""


def merge_status(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What each worker tells of itself, as that of one that has all tasks."""
    shared = {label: each["shared"] for label, each in told.items() if each.get("shared")}
    lag: Counter[str] = Counter()
    for each in shared.values():
        lag.update(each["lag"])
    own = [{name: value for name, value in each.items() if name != "shared"} for each in told.values()]
    return _merged(own) | {
        "shared": None,
        "lag": dict(lag),
        "paused": [label for label, each in shared.items() if each["paused"]],
    }


def _merged(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: _merged_value(name, [each[name] for each in found if name in each]) for name in found[0]}


def _merged_value(name: str, values: Sequence[Any]) -> Any:
    if name in _MERGES:
        return _MERGES[name](values)
    if isinstance(values[0], dict):
        return _merged(values)
    if values[0] and isinstance(values[0], list) and isinstance(values[0][0], dict):
        return _merged_rows(values)
    return values[0]


def _merged_rows(values: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in (row for rows in values for row in rows):
        by_name.setdefault(next((row[name] for name in _NAMES if name in row), ""), []).append(row)
    return [_merged(rows) for rows in by_name.values()]
