from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock import App, Context, Message, State
from penstock.engine.config import Config
from penstock.engine.http import HttpServer, why_not_ready
from penstock.engine.worker import Worker
from penstock.errors import ConfigurationError, InvalidInput
from penstock.ids import Address
from penstock.web import TokenBucket, kept_headers, parse_address
from tests.engine.serving import Client, serving, until


class Add(Message):
    count: int


class Total(State):
    total: int = 0


def shop() -> App:
    app = App("shop")

    @app.function("shop/cart", attempts=1)
    def cart(ctx: Context[Total], message: Add) -> int:
        if message.count < 0:
            raise ValueError("the cart can't hold less than nothing")
        ctx.state.total += message.count
        return ctx.state.total

    @app.function("shop/eu/de/cart")
    def nested(ctx: Context[None], message: int) -> str:
        return f"{ctx.id}:{message}"

    @app.function("shop/headers")
    def headers(ctx: Context[None], message: None) -> dict[str, Any]:
        return {"headers": dict(ctx.message.headers), "origin": ctx.message.origin, "key": ctx.message.idempotency_key}

    @app.function("shop/never")
    async def never(ctx: Context[None], message: None) -> None:
        await asyncio.get_running_loop().create_future()

    @app.function("shop/lost", attempts=1)
    def lost(ctx: Context[None], message: str) -> None:
        ctx.send(message, "7", None)

    @app.function("shop/large", attempts=1)
    def large(ctx: Context[None], message: int) -> None:
        ctx.send(blob, ctx.id, bytes(message))

    @app.function("shop/blob")
    def blob(ctx: Context[None], message: bytes) -> int:
        return len(message)

    return app


Scenario = Callable[[Client], Coroutine[Any, Any, None]]


def run(tmp_path: Path, scenario: Scenario, app: App | None = None, **settings: Any) -> None:
    async def main() -> None:
        async with serving(app or shop(), tmp_path / "data", **settings) as client:
            await scenario(client)

    asyncio.run(main())


# Addresses.


@pytest.mark.parametrize(
    ("path", "typename", "id"),
    [
        ("a/b/7", "a/b", "7"),
        ("a/b/c", "a/b", "c"),  # a/b/c is a function too, but leaves no id.
        ("a/b/c/7", "a/b/c", "7"),
        ("a/b/c%2F7", "a/b", "c/7"),
        ("a/b/x/y", "a/b", "x/y"),
        ("a/b/x//y", "a/b", "x//y"),
        ("a/b/%C3%A9%20%25", "a/b", "é %"),
        ("a/b/.", "a/b", "."),
    ],
)
def test_the_longest_function_that_leaves_an_id_is_meant(path: str, typename: str, id: str) -> None:
    assert parse_address(path, {"a/b", "a/b/c"}) == Address(typename, id)


@pytest.mark.parametrize("path", ["a/b", "a/b/", "a/b//"])
def test_a_path_without_an_id_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_address(path.rstrip("/") if path == "a/b//" else path, {"a/b"})

    assert str(raised.value) == (
        "PEN0203 The path names a/b and no id. An id names one instance: append /ID to the path."
    )


def test_an_unknown_function_is_told_what_there_is() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_address("a/x/7", {"a/b", "c/d"})

    assert str(raised.value) == "PEN0105 a/x/7 names no function of this application. Known: a/b, c/d."


def test_a_path_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_address("a/b/%FF", {"a/b"})

    assert str(raised.value) == (
        "PEN0610 The path 'a/b/%FF' is no percent-encoded UTF-8. Encode the id, as urllib.parse.quote does."
    )


# Sending and calling.


def test_a_message_is_accepted_when_it_is_durable(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/cart/7", '{"count": 2}')

        assert answer.status == 202
        assert answer.json == {"accepted": True, "address": "shop/cart/7"}
        assert (await client.post("/call/shop/cart/7", '{"count": 3}')).json == 5

    run(tmp_path, scenario)


def test_what_was_accepted_survives_a_restart(tmp_path: Path) -> None:
    async def first(client: Client) -> None:
        assert (await client.post("/send/shop/cart/7", '{"count": 2}')).status == 202

    async def second(client: Client) -> None:
        assert (await client.post("/call/shop/cart/7", '{"count": 0}')).json == 2

    run(tmp_path, first)
    run(tmp_path, second)


def test_namespaces_and_ids_may_have_slashes(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.post("/call/shop/eu/de/cart/a%2Fb", "1")).json == "a/b:1"
        assert (await client.post("/call/shop/eu/de/cart/a/b", "1")).json == "a/b:1"

    run(tmp_path, scenario)


def test_an_encoded_message_and_answer_may_be_exchanged(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        body = msgspec.msgpack.encode({"type": "Add", "count": 4})
        answer = await client.post(
            "/call/shop/cart/7", body, Content_Type="application/msgpack", Accept="application/msgpack"
        )

        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/msgpack")
        assert msgspec.msgpack.decode(answer.body) == 4
        blob = await client.post("/call/shop/blob/7", b"\x00\xff\x01", Content_Type="application/octet-stream")
        assert blob.json == 3

    run(tmp_path, scenario)


def test_a_body_whose_type_the_client_does_not_know_is_json(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for content_type in ("application/octet-stream", "application/x-www-form-urlencoded", "text/plain"):
            answer = await client.post("/call/shop/cart/7", b'{"count": 0}', Content_Type=content_type)
            assert answer.json == 0

    run(tmp_path, scenario)


def test_a_body_that_does_not_fit_says_where_and_why(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/cart/7", '{"count": "two"}')

        assert answer.status == 400
        assert answer.json == {
            "code": "PEN0201",
            "message": "Message for shop/cart '7': $.count expected int, got str \"two\".",
            "path": "$.count",
        }
        assert (await client.post("/send/shop/cart/7", "{")).status == 400
        assert (await client.post("/send/shop/cart/7", b"\xc1", Content_Type="application/msgpack")).status == 400
        assert (await client.post("/call/shop/cart/7", '{"count": 1}')).json == 1

    run(tmp_path, scenario)


def test_an_unknown_function_and_path_are_404(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/basket/7", "{}")
        assert (answer.status, answer.json["code"]) == (404, "PEN0105")

        answer = await client.get("/nothing")
        assert answer.status == 404
        assert answer.json == {
            "code": "PEN0611",
            "message": "GET /nothing is not served here. See POST /send, POST /call, /readyz, /metrics.",
            "path": None,
        }
        answer = await client.get("/send/shop/cart/7")
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")

    run(tmp_path, scenario)


def test_too_large_a_body_and_too_large_a_message_are_413(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/blob/7", b"x" * 3_000, Content_Type="application/octet-stream")
        assert answer.status == 413
        assert answer.json["message"] == (
            "The body is larger than body_bytes_max = 2,000 bytes. Send less, or raise body_bytes_max."
        )
        answer = await client.post("/send/shop/blob/7", b"x" * 1_500, Content_Type="application/octet-stream")
        assert (answer.status, answer.json["code"]) == (413, "PEN0204")

    run(tmp_path, scenario, body_bytes_max=2_000, message_bytes_max=1_000)


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.post("/send/shop/headers/7", X_Long="x" * 9_000)).status == 400
        answer = await client.post("/send/shop/headers/7", Idempotency_Key="k" * 256)
        assert (answer.status, answer.json["code"]) == (400, "PEN0610")

    run(tmp_path, scenario)


def test_the_bytes_of_kept_headers_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="PEN0610"):
        kept_headers({f"x-{number}": "x" * 8_000 for number in range(3)})


def test_some_headers_travel_with_the_message(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post(
            "/call/shop/headers/7",
            traceparent="00-1-2-01",
            Penstock_Tenant="acme",
            X_Request="r1",
            Cookie="secret",
            Idempotency_Key="k1",
        )

        assert answer.json == {
            "headers": {"traceparent": "00-1-2-01", "penstock-tenant": "acme", "x-request": "r1"},
            "origin": "POST /call/shop/headers/7",
            "key": "k1",
        }

    run(tmp_path, scenario)


def test_a_repeat_with_the_same_idempotency_key_gets_the_same_answer(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answers = [await client.post("/call/shop/cart/7", '{"count": 1}', Idempotency_Key="k1") for _ in range(3)]

        assert [answer.json for answer in answers] == [1, 1, 1]
        assert (await client.post("/call/shop/cart/7", '{"count": 1}', Idempotency_Key="k2")).json == 2

    run(tmp_path, scenario)


def test_a_call_whose_handler_fails_is_500_and_names_the_dead_letter(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/call/shop/cart/7", '{"count": -1}')

        assert answer.status == 500
        assert answer.json == {
            "code": "PEN0210",
            "message": "Handler raised ValueError: the cart can't hold less than nothing. It is dead letter 1.",
            "path": None,
        }

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "body", "code"), [("shop/lost/7", '"shop/nowhere"', "PEN0105"), ("shop/large/7", "2000000", "PEN0204")]
)
def test_what_a_handler_sends_wrongly_is_not_blamed_on_the_caller(
    tmp_path: Path, path: str, body: str, code: str
) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post(f"/call/{path}", body)

        assert (answer.status, answer.json["code"]) == (422, code)

    run(tmp_path, scenario)


@pytest.mark.parametrize("timeout", ["0.02", "0.02s", "20ms"])
def test_a_timeout_without_a_unit_is_seconds(tmp_path: Path, timeout: str) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post(f"/call/shop/never/7?timeout={timeout}")

        assert answer.json["message"].startswith("shop/never/7 has not answered within 20ms.")

    run(tmp_path, scenario)


def test_a_call_that_takes_too_long_is_504_and_goes_on(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/call/shop/never/7?timeout=20ms")

        assert answer.status == 504
        assert answer.json["message"] == (
            "shop/never/7 has not answered within 20ms. The message was accepted and is still being processed: ask "
            "again with the same Idempotency-Key to get its answer, or allow more with ?timeout=."
        )
        assert (await client.get("/admin/status")).json["held"] == 1
        assert (await client.post("/call/shop/never/7?timeout=soon")).json["code"] == "PEN0110"

    run(tmp_path, scenario)


def test_a_caller_who_hangs_up_is_forgotten_and_the_message_is_not(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        calling = asyncio.ensure_future(client.post("/call/shop/never/7"))
        await until(lambda: client.worker.requests.in_flight)
        calling.cancel()
        with suppress(asyncio.CancelledError):
            await calling
        await until(lambda: not client.worker.requests.in_flight)
        await until(lambda: client.worker.units[0].core.statistics().pending)

    run(tmp_path, scenario)


# Who may.


def test_a_token_is_asked_for_where_one_is_set(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/cart/7", '{"count": 1}')
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.json["message"] == (
            "A token is required. Send the header 'Authorization: Bearer ...' with the token of this application "
            "(PENSTOCK_TOKEN for the command line)."
        )
        assert (await client.get("/admin/status", Authorization="Bearer wrong")).status == 401
        assert (await client.get("/metrics")).status == 401
        assert (await client.get("/admin/status", Authorization="Bearer s3cret")).status == 200
        assert (await client.get("/readyz")).status == (await client.get("/livez")).status == 200

    run(tmp_path, scenario, token="s3cret")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example:7070"}])
def test_a_web_page_of_another_site_reaches_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.post("/send/shop/cart/7", '{"count": 1}', **headers)

        assert (answer.status, answer.json["code"]) == (403, "PEN0609")

    run(tmp_path, scenario)


def test_more_messages_than_allowed_are_429(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.post("/send/shop/cart/7", '{"count": 1}')).status == 202
        answer = await client.post("/send/shop/cart/7", '{"count": 1}')
        assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (429, "PEN0606", "1")
        assert (await client.get("/admin/status")).status == 200

    run(tmp_path, scenario, requests_per_s_max=0.001)


def test_a_bucket_fills_with_time() -> None:
    now = [0.0]
    bucket = TokenBucket(2, lambda: now[0])

    assert [bucket.take(), bucket.take(), bucket.take()] == [0.0, 0.0, 0.5]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0.0, 0.5]


# Starting, stopping, probes.


def test_readiness_follows_the_worker(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        assert (await client.get("/readyz")).json == {"ready": True, "reason": ""}
        assert (await client.get("/livez")).json == {"alive": True}
        worker = client.worker
        worker.data.storage_error = "PEN0405 There is no space left."
        answer = await client.get("/readyz")
        assert (answer.status, answer.json["reason"]) == (503, "PEN0405 There is no space left.")
        worker.data.storage_error = ""
        worker.coordinator.trying_since_ms = 1_000.0
        assert why_not_ready(worker, 32_000) == "no checkpoint has completed for 31s"
        assert why_not_ready(worker, 31_000) == ""

    run(tmp_path, scenario)


def test_a_worker_that_has_not_started_or_stops_is_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        worker = Worker(shop(), Config(directory=tmp_path / "data"))
        assert why_not_ready(worker, 0) == "starting"
        worker.stop()
        assert why_not_ready(worker, 0) == "stopping"

    asyncio.run(main())


def test_a_request_while_the_worker_stops_is_503(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        calling = asyncio.ensure_future(client.post("/call/shop/never/7"))
        await until(lambda: client.worker.requests.in_flight)
        client.worker.stop()
        answer = await client.post("/send/shop/cart/7", '{"count": 1}')
        assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (503, "PEN0603", "1")
        answer = await calling
        assert (answer.status, answer.json["message"]) == (503, "shop stopped before the answer was there.")

    run(tmp_path, scenario)


def test_a_port_in_use_is_said_plainly(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        port = int(client.url.rpartition(":")[2])
        second = HttpServer(Worker(shop(), Config(directory=tmp_path / "other", port=port)))
        with pytest.raises(ConfigurationError) as raised:
            await second.start()
        assert raised.value.code == "PEN0612"
        assert raised.value.message.startswith(f"Can't listen on 127.0.0.1 port {port}: ")
        assert raised.value.message.endswith(
            "Choose another port with --port N, a free one with --port 0, or none with --port none."
        )

    run(tmp_path, scenario)


# What tools ask.


def test_state_is_listed_shown_and_set(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for id in ("b", "a", "c"):
            await client.post(f"/call/shop/cart/{id}", '{"count": 1}')
        assert (await client.get("/admin/state?function=shop/cart&limit=2")).json == {
            "function": "shop/cart",
            "ids": ["a", "b"],
        }
        value = {"function": "shop/cart", "id": "a", "exists": True, "state": {"total": 1}}
        assert (await client.get("/admin/state/value?function=shop/cart&id=a")).json == value
        body = '{"function": "shop/cart", "id": "a", "value": {"total": 9}, "expect": {"total": 1}}'
        assert (await client.request("PUT", "/admin/state/value", body)).json == value | {"state": {"total": 9}}
        answer = await client.request("PUT", "/admin/state/value", body)
        assert (answer.status, answer.json["code"]) == (409, "PEN0303")
        assert (await client.post("/call/shop/cart/a", '{"count": 1}')).json == 10

    run(tmp_path, scenario)


@pytest.mark.parametrize("parallelism", [1, 4])
def test_dead_letters_are_listed_shown_redriven_and_dropped(tmp_path: Path, parallelism: int) -> None:
    async def scenario(client: Client) -> None:
        for id in ("a", "b", "c"):
            await client.post(f"/call/shop/cart/{id}", '{"count": -1}')
        letters = (await client.get("/admin/dead?function=shop/cart")).json
        assert sorted(letter["id"] for letter in letters) == ["a", "b", "c"]
        shown = (await client.get(f"/admin/dead/{letters[0]['number']}")).json
        assert shown["message"] == {"type": "Add", "count": -1}
        assert "less than nothing" in shown["traceback"]
        numbers = [letter["number"] for letter in letters]
        body = msgspec.json.encode({"numbers": numbers[:1]})
        assert (await client.post("/admin/dead/drop", body)).json == {"dropped": 1}
        body = msgspec.json.encode({"numbers": numbers})
        assert (await client.post("/admin/dead/redrive", body)).json == {"redriven": 2}
        assert (await client.get(f"/admin/dead/{numbers[0]}")).json["code"] == "PEN0308"

    run(tmp_path, scenario, parallelism=parallelism)


@pytest.mark.parametrize("parallelism", [1, 4])
def test_schedules_are_listed_paused_run_and_filled_in(tmp_path: Path, parallelism: int) -> None:
    app = shop()
    for name in ("a", "b", "c"):
        app.schedule("0 2 * * *", app.functions["shop/cart"], id=name, name=name, tz="Asia/Tokyo", message=Add(1))

    async def total(client: Client, id: str) -> int:
        state = (await client.get(f"/admin/state/value?function=shop/cart&id={id}")).json["state"]
        found: int = state["total"]
        return found

    async def scenario(client: Client) -> None:
        listed = (await client.get("/admin/schedules")).json
        assert [row["schedule"] for row in listed] == ["a", "b", "c"]
        assert {row["next_due"][10:] for row in listed} == {"T02:00:00+09:00"}
        assert len((await client.get("/admin/schedules?limit=2")).json) == 2

        assert (await client.post("/admin/schedules/pause", '{"name": "b"}')).json == {"changed": True}
        assert (await client.post("/admin/schedules/pause", '{"name": "b"}')).json == {"changed": False}
        assert [row["paused"] for row in (await client.get("/admin/schedules")).json] == [False, True, False]
        assert (await client.post("/admin/schedules/resume", '{"name": "b"}')).json == {"changed": True}

        assert (await client.post("/admin/schedules/run", '{"name": "a"}')).json == {"runs": 1}
        assert await total(client, "a") == 1
        wanted = {"name": "c", "start": "2026-01-01", "end": "2026-01-04", "dry": True}
        assert (await client.post("/admin/schedules/backfill", msgspec.json.encode(wanted))).json == {"runs": 3}
        assert await total(client, "c") == 0
        wanted = {"name": "c", "start": "2026-01-01T02:00+09:00", "end": "2026-01-02T02:00"}
        assert (await client.post("/admin/schedules/backfill", msgspec.json.encode(wanted))).json == {"runs": 1}
        assert await total(client, "c") == 1

        for verb, body, code in [
            ("pause", '{"name": "d"}', "PEN0280"),
            ("run", "{}", "PEN0610"),
            ("backfill", '{"name": "a", "start": "soon"}', "PEN0281"),
            ("backfill", '{"name": "a", "start": "2999-01-01"}', "PEN0281"),
        ]:
            answer = await client.post(f"/admin/schedules/{verb}", body)
            assert (answer.status, answer.json["code"]) == (400, code)

    run(tmp_path, scenario, app, parallelism=parallelism)


def test_checkpoints_are_taken_listed_and_shown(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        await client.post("/call/shop/cart/a", '{"count": 1}')
        taken = (await client.post("/admin/checkpoints")).json["checkpoint"]
        listed = (await client.get("/admin/checkpoints")).json
        assert listed[-1]["checkpoint"] == taken
        shown = (await client.get(f"/admin/checkpoints/{taken}")).json
        assert (shown["application"], shown["parallelism"], len(shown["tasks"])) == ("shop", 1, 1)
        missing = await client.get("/admin/checkpoints/999999")
        assert (missing.status, missing.json["code"]) == (400, "PEN0309")

    run(tmp_path, scenario)


def test_wrong_admin_requests_are_400(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for path in ("/admin/state", "/admin/state?function=shop/cart&limit=x"):
            assert (await client.get(path)).status == 400
        assert (await client.post("/admin/dead/drop", "[1]")).status == 400
        assert (await client.request("PUT", "/admin/state/value", "{}")).status == 400

    run(tmp_path, scenario)
