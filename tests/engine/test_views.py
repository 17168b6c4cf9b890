"""What people see of every form of state, and what setting it stores, in a running application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import pytest

from penstock import App, Context, Expire, Log, State, Table, Value
from penstock.durations import timestamp
from penstock.engine.looks import id_of_task
from penstock.functions.types import codec_for
from penstock.ids import key_group
from penstock.state.showing import builtins_of
from tests.engine.serving import Client, serving


class Journal(State):
    count: int = 0
    places: Table[str, int] = Table()
    events: Log[str] = Log()


class Session(State):
    user: str = ""
    token: Annotated[str, Expire(after_write="1h")] = ""


def forms() -> App:
    app = App("forms")

    @app.function("forms/journal")
    def journal(ctx: Context[Journal], place: str) -> int:
        ctx.state.count += 1
        ctx.state.places[place] = ctx.state.places.get(place, 0) + 1
        ctx.state.events.append(place)
        return ctx.state.count

    @app.function("forms/rows")
    def rows(ctx: Context[Journal], kept: str) -> None:
        if kept == "places":
            ctx.state.places.update({f"place {number}": number for number in range(3)})
        if kept == "events":
            ctx.state.events.extend(["a", "b"])

    @app.function("forms/session")
    def session(ctx: Context[Session], user: str) -> dict[str, str]:
        if user:
            ctx.state.user, ctx.state.token = user, f"token of {user}"
        return {"user": ctx.state.user, "token": ctx.state.token}

    @app.function("forms/dynamic", storage={"seen": Value(int, default=0), "names": Value(list[str])})
    def dynamic(ctx: Context[None], name: str) -> int:
        ctx.storage.seen += 1
        ctx.storage.names = [*(ctx.storage.names or []), name]
        return int(ctx.storage.seen)

    @app.function("forms/none")
    def none(ctx: Context[None], message: int) -> None:
        pass

    return app


def run(tmp_path: Path, scenario: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with serving(forms(), tmp_path / "data") as client:
            await scenario(client)

    asyncio.run(main())


async def call(client: Client, function: str, message: str) -> Any:
    answer = await client.post(f"/call/forms/{function}/a", json.dumps(message))
    assert answer.status == 200, answer.body
    return answer.json


async def shown(client: Client, function: str) -> Any:
    return (await client.get(f"/admin/state/value?function=forms/{function}&id=a")).json


async def set_state(client: Client, function: str, value: object, **more: object) -> Any:
    body = json.dumps({"function": f"forms/{function}", "id": "a", "value": value} | more)
    return (await client.request("PUT", "/admin/state/value", body)).json


def test_tables_and_logs_are_shown_beside_the_fields(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for place in ("oslo", "rome", "oslo"):
            await call(client, "journal", place)

        assert await shown(client, "journal") == {
            "function": "forms/journal",
            "id": "a",
            "exists": True,
            "state": {"count": 3},
            "tables": {"places": [{"key": "oslo", "value": 2}, {"key": "rome", "value": 1}]},
            "logs": {"events": ["oslo", "rome", "oslo"]},
        }
        await set_state(client, "journal", {"count": 10})
        assert await call(client, "journal", "rome") == 11
        assert (await shown(client, "journal"))["tables"]["places"][1] == {"key": "rome", "value": 2}

    run(tmp_path, scenario)


def test_an_address_with_only_rows_of_tables_or_logs_is_listed_and_exists(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for kept in ("places", "events", ""):
            assert (await client.post(f"/call/forms/rows/only-{kept}", json.dumps(kept))).status == 200

        assert (await client.get("/admin/state?function=forms/rows")).json["ids"] == ["only-events", "only-places"]
        assert (await client.get("/admin/state?function=forms/rows&prefix=only-p")).json["ids"] == ["only-places"]
        for id, exists in (("only-events", True), ("only-places", True), ("only-", False)):
            found = (await client.get(f"/admin/state/value?function=forms/rows&id={id}")).json
            assert found["exists"] is exists, id

    run(tmp_path, scenario)


def test_a_state_with_expiring_fields_is_shown_and_set_whole(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await call(client, "session", "ada")
        assert (await shown(client, "session"))["state"] == {"user": "ada", "token": "token of ada"}
        after = await set_state(
            client,
            "session",
            {"user": "grace", "token": "given"},
            expect={"user": "ada", "token": "token of ada"},
        )
        assert after["state"] == {"user": "grace", "token": "given"}
        assert await call(client, "session", "") == {"user": "grace", "token": "given"}

    run(tmp_path, scenario)


def test_the_dynamic_form_is_shown_and_set_by_name(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await call(client, "dynamic", "ada")
        assert (await shown(client, "dynamic"))["state"] == {"seen": 1, "names": ["ada"]}
        assert (await set_state(client, "dynamic", {"seen": 7}))["state"] == {"seen": 7}
        assert await call(client, "dynamic", "grace") == 8
        refused = await set_state(client, "dynamic", {"sean": 7})
        assert refused["message"] == "State for forms/dynamic 'a' has no value 'sean'. Declared: names, seen."
        refused = await set_state(client, "dynamic", {"seen": "many"})
        assert (refused["code"], refused["path"]) == ("PEN0201", "$")
        assert (await set_state(client, "dynamic", [1]))["code"] == "PEN0307"

    run(tmp_path, scenario)


def test_null_removes_a_state(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await call(client, "session", "ada")
        after = await set_state(client, "session", None)
        assert (after["exists"], after["state"]) == (False, {"user": "", "token": ""})
        assert (await client.get("/admin/state?function=forms/session")).json["ids"] == []
        assert (await set_state(client, "session", {"user": "x"}, expect=None))["exists"]

    run(tmp_path, scenario)


def test_what_has_no_state_can_be_shown_and_not_set(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await shown(client, "none"))["state"] is None
        refused = await set_state(client, "none", {"x": 1})
        assert refused["message"] == "forms/none has no state: there is nothing to set."

    run(tmp_path, scenario)


def test_a_value_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        refused = await set_state(client, "journal", {"count": "three"})
        assert refused == {
            "code": "PEN0201",
            "message": "State for forms/journal 'a': $.count expected int, got str \"three\".",
            "path": "$.count",
        }

    run(tmp_path, scenario)


def test_functions_say_what_they_take_and_keep(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        rows = {row["function"]: row for row in (await client.get("/admin/functions")).json}
        assert rows["forms/journal"]["takes"] == "str"
        assert rows["forms/journal"]["state"] == "Journal"
        assert rows["forms/dynamic"]["state"] == "seen: int, names: list[str]"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", None), (b"\x93\x01\x02\x03", [1, 2, 3]), (b"\xc1\xff", {"base64": "wf8="})],
)
def test_stored_bytes_are_shown_as_well_as_can_be(data: bytes, expected: object) -> None:
    assert builtins_of(data) == expected
    assert builtins_of(data, codec_for(dict[str, int])) == expected  # Its type does not fit: shown without.


def test_a_moment_is_written_in_utc() -> None:
    assert timestamp(1_767_225_600_123) == "2026-01-01T00:00:00.123Z"


@pytest.mark.parametrize("tasks", [1, 4, 128])
def test_every_task_owns_some_id(tasks: int) -> None:
    assert [key_group(id_of_task(task, tasks)) % tasks for task in range(tasks)] == list(range(tasks))
