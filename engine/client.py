"""Speaks to a running application over its HTTP interface, for the command line.

Errors come back as what they were: the coded error of the answer, as the class that tells what to do about it. Uses the
standard library alone, so that a command starts quickly.
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from penstock.engine.told import heard
from penstock.errors import FunctionError, InvalidInput, PenstockError, Refused, Unavailable

TIMEOUT_S: Final = 65.0
"""Longer than a call waits by itself, so that its answer, whatever it is, arrives."""


class Client:
    """A running application at `url`."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._token = token
        # The environment's proxies are for the outside; this is a neighbour.
        self._opener: OpenerDirector = build_opener(ProxyHandler({}))

    # Messages.

    def send(self, typename: str, id: str, body: bytes, *, idempotency_key: str = "") -> Any:
        """Returns when the message is durable."""
        return self._post(_path("send", typename, id), body, idempotency_key)

    def call(self, typename: str, id: str, body: bytes, *, timeout: str = "", idempotency_key: str = "") -> Any:
        """The answer. Raises FunctionError when the message became a dead letter."""
        query = f"?{urlencode({'timeout': timeout})}" if timeout else ""
        return self._post(_path("call", typename, id) + query, body, idempotency_key)

    # What people ask, as `penstock.engine.offline` answers it for a stopped application.

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get("status")
        return found

    def ready(self) -> str:
        """Why it is not ready; empty when it is."""
        try:
            self._request("GET", "/readyz")
        except Unavailable as error:
            return error.message
        return ""

    def functions(self) -> Any:
        return self._get("functions")

    def config(self) -> Any:
        return self._get("config")

    def state_ids(self, typename: str, *, prefix: str, limit: int) -> Any:
        return self._get("state", function=typename, prefix=prefix, limit=limit)["ids"]

    def state(self, typename: str, id: str) -> Any:
        return self._get("state/value", function=typename, id=id)

    def letters(self, *, typename: str | None, code: str | None, limit: int) -> Any:
        return self._get("dead", **_given(function=typename, code=code), limit=limit)

    def letter_counts(self) -> Any:
        return self._get("dead/counts")

    def letter(self, number: int) -> Any:
        return self._get(f"dead/{number}")

    def calls(self, *, typename: str | None, parked: bool, limit: int) -> Any:
        return self._get("calls", **_given(function=typename, parked="true" if parked else None), limit=limit)

    def held(self, typename: str, id: str) -> Any:
        return self._get("call", function=typename, id=id)

    def schedules(self, *, limit: int) -> Any:
        return self._get("schedules", limit=limit)

    def checkpoints(self) -> Any:
        return self._get("checkpoints")

    def checkpoint(self, number: int) -> Any:
        return self._get(f"checkpoints/{number}")

    # What changes it.

    def set_state(self, typename: str, id: str, value: Any, expect: Any = ...) -> Any:
        """Set a state, only if it is `expect` when that is given. Returns the new one."""
        body = {"function": typename, "id": id, "value": value} | ({} if expect is ... else {"expect": expect})
        return self._request("PUT", "/admin/state/value", json.dumps(body).encode())

    def redrive(self, numbers: list[int]) -> int:
        done: int = self._post("/admin/dead/redrive", json.dumps({"numbers": numbers}).encode())["redriven"]
        return done

    def drop(self, numbers: list[int]) -> int:
        done: int = self._post("/admin/dead/drop", json.dumps({"numbers": numbers}).encode())["dropped"]
        return done

    def cancel(self, typename: str, id: str) -> None:
        self._post("/admin/calls/cancel", json.dumps({"function": typename, "id": id}).encode())

    def resume(self, typename: str, id: str) -> None:
        self._post("/admin/calls/resume", json.dumps({"function": typename, "id": id}).encode())

    def resolve(self, typename: str, id: str, name: str, value: Any) -> None:
        """Keep a promise, and return when that can't be rolled back."""
        self._post(f"{_path('promise', typename, id)}/{quote(name, safe='')}", json.dumps(value).encode())

    def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Returns whether it was otherwise before."""
        return bool(self._change_schedule("pause" if paused else "resume", name)["changed"])

    def run_schedule(self, name: str) -> None:
        self._change_schedule("run", name)

    def backfill_schedule(self, name: str, *, start: str, end: str | None, dry: bool) -> int:
        """How many runs there are in that time. With `dry` nothing is run."""
        runs: int = self._change_schedule("backfill", name, start=start, end=end, dry=dry)["runs"]
        return runs

    def _change_schedule(self, verb: str, name: str, **wanted: Any) -> Any:
        return self._post(f"/admin/schedules/{verb}", json.dumps({"name": name, **wanted}).encode())

    def take_checkpoint(self) -> int:
        number: int = self._post("/admin/checkpoints", b"")["checkpoint"]
        return number

    def begin_savepoint(self, place: str | None) -> int:
        """Let a savepoint be taken, and return its number before it is there."""
        number: int = self._post("/admin/savepoints", json.dumps({"to": place}).encode())["number"]
        return number

    def savepoint(self, number: int) -> dict[str, Any] | None:
        """The savepoint once it is there, None before. Raises why there will be none."""
        state = self._get(f"savepoints/{number}")
        if state["error"] is not None:
            raise heard(state["error"])
        found: dict[str, Any] | None = state["savepoint"]
        return found

    # Inside.

    def _get(self, path: str, **query: Any) -> Any:
        return self._request("GET", f"/admin/{path}?{urlencode(query)}")

    def _post(self, path: str, body: bytes, idempotency_key: str = "") -> Any:
        return self._request("POST", path, body, **({"Idempotency-Key": idempotency_key} if idempotency_key else {}))

    def _request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(f"{self.url}{path}", data=body, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read())
        except HTTPError as error:
            with error:
                raise _coded(error.code, error.read()) from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(
                "PEN0620",
                f"{self.url} does not answer: {reason}. Start the application (penstock run), or give the right --url.",
            ) from None


def _coded(status: int, body: bytes) -> PenstockError:
    """The error an answer stands for."""
    try:
        told = json.loads(body)
        if "ready" in told:
            return Unavailable("PEN0621", told["reason"])
        code, message = told["code"], told["message"]
    except (ValueError, KeyError, TypeError):
        return Unavailable("PEN0620", f"The answer has status {status} and is not from Penstock. Give the right --url.")
    match status:
        case 401 | 403 | 409:
            return Refused(code, message)
        case 429 | 503 | 504:
            return Unavailable(code, message)
        case 422 | 500:
            return FunctionError(code, message)
        case _:
            return InvalidInput(code, message)


def _path(verb: str, typename: str, id: str) -> str:
    return f"/{verb}/{quote(typename)}/{quote(id, safe='')}"


def _given(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
