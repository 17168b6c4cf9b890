"""The API of a sidecar as programs see it: health, invocation, state, locks."""

from __future__ import annotations

import asyncio
import io
from base64 import b64encode
from pathlib import Path

import pytest
from aiohttp import web

from penstock.mesh.policies.settings import AccessRule, Match, Mirror, PolicySet, Route, TextMatch
from penstock.mesh.policy_file import read_policies
from penstock.mesh.sidecar import policies_of_a_sidecar
from tests.mesh.dapr.world import Asked, FakeApplication, until, world


def test_health_is_said_for_the_sidecar_and_for_what_it_stands_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(application := FakeApplication())
            assert (await here.ask(sidecar, "GET", "/v1.0/healthz")).status == 204
            assert (await here.ask(sidecar, "GET", "/v1.0/healthz?appid=shop")).status == 204
            assert (await here.ask(sidecar, "GET", "/v1.0/healthz?appid=x")).error == (
                500,
                "ERR_HEALTH_APPID_NOT_MATCH",
            )
            await application.stop()
            await until(lambda: not sidecar.ready)
            assert "PEN0880 shop takes no connections at port" in caplog.text
            assert (await here.ask(sidecar, "GET", "/v1.0/healthz")).error == (500, "ERR_HEALTH_NOT_READY")
            assert (await here.ask(sidecar, "GET", "/v1.0/healthz/outbound")).status == 204
            await application.start()
            await until(lambda: sidecar.ready)

    asyncio.run(check())


def test_metadata_says_what_there_is_and_takes_notes(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication(actors=["Cart"]))
            assert (await here.ask(sidecar, "PUT", "/v1.0/metadata/team", b"blue")).status == 204
            said = (await here.ask(sidecar, "GET", "/v1.0/metadata")).json
            assert said["id"] == "shop"
            assert said["extended"] == {"team": "blue"}
            assert said["actorRuntime"]["hostReady"]
            assert [one["name"] for one in said["components"]] == ["statestore", "pubsub", "lockstore"]

    asyncio.run(check())


def test_health_and_figures_are_where_those_of_hosts_are(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            application = FakeApplication()
            application.says("/hello", "there")
            sidecar = await here.sidecar(application)
            await here.ask(sidecar, "GET", "/v1.0/invoke/shop/method/hello")
            assert (await here.ask(sidecar, "GET", "/actuator/health/readiness")).json["status"] == "UP"
            assert (await here.ask(sidecar, "GET", "/actuator/info")).json["app"]["name"] == "shop"
            figures = (await here.ask(sidecar, "GET", "/metrics")).body.decode()
            edge = 'destination="app/shop",response_code="200",source="app/shop"'
            assert f"penstock_mesh_requests_total{{{edge}}} 1.0" in figures

    asyncio.run(check())


def test_shutdown_is_asked_for(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication())
            assert (await here.ask(sidecar, "POST", "/v1.0/shutdown")).status == 204
            await asyncio.wait_for(sidecar.wait(), 5)

    asyncio.run(check())


def test_with_a_token_every_request_needs_it_and_the_application_sees_its_own(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            application = FakeApplication()
            sidecar = await here.sidecar(application, api_token="let me in", app_token="it is me")
            assert (await here.ask(sidecar, "GET", "/v1.0/metadata")).error == (401, "ERR_API_TOKEN")
            assert (await here.ask(sidecar, "GET", "/v1.0/metadata", dapr_api_token="let me in")).status == 200
            assert {asked.headers["dapr-api-token"] for asked in application.asked} == {"it is me"}

    asyncio.run(check())


def test_pages_in_browsers_are_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication())
            for header in ({"Origin": "https://example.com"}, {"Host": f"example.com:{sidecar.port}"}):
                told = await here.ask(sidecar, "POST", "/v1.0/shutdown", **header)
                assert told.error == (403, "ERR_ORIGIN")

    asyncio.run(check())


def test_what_is_not_answered_is_said_with_what_is(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication())
            told = await here.ask(sidecar, "POST", "/v1.0/bindings/mail", {})
            assert told.error == (404, "ERR_NOT_FOUND")
            assert "/v1.0/invoke/{app}/method/{path}" in told.json["message"]

    asyncio.run(check())


class TestInvocation:
    """Method, path, query, headers and body arrive as they were sent; so does the answer."""

    @pytest.mark.parametrize("way", ["path", "header", "user"])
    def test_another_application_is_asked(self, tmp_path: Path, way: str) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                stock = FakeApplication()
                stock.answers["/items/a b"] = lambda asked: web.Response(
                    status=418, body=asked.body[::-1], headers={"x-answer": "42"}
                )
                await here.sidecar(stock, "stock")
                sidecar = await here.sidecar(FakeApplication())
                prefix = "/v1.0/invoke/stock/method" if way == "path" else ""
                headers = {"x_ask": "why", "dapr_caller_app_id": "somebody else"}
                if way == "header":
                    headers["dapr_app_id"] = "stock"
                if way == "user":
                    headers["Authorization"] = f"Basic {b64encode(b'dapr-app-id:stock').decode()}"
                told = await here.ask(sidecar, "PATCH", f"{prefix}/items/a%20b?q=%2F", b"123", **headers)

                assert (told.status, told.body, told.headers["x-answer"]) == (418, b"321", "42")
                (asked,) = stock.asked_for("/items/a%20b")
                assert (asked.method, asked.path) == ("PATCH", "/items/a%20b?q=%2F")
                assert asked.headers["x-ask"] == "why"
                assert asked.headers["dapr-caller-app-id"] == "shop"
                assert "dapr-app-id" not in asked.headers

        asyncio.run(check())

    def test_ones_own_application_may_be_asked_and_a_namespace_named(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = FakeApplication()
                application.says("/hello", "there")
                sidecar = await here.sidecar(application)
                for app in ("shop", "shop.default"):
                    assert (await here.ask(sidecar, "GET", f"/v1.0/invoke/{app}/method/hello")).json == "there"

        asyncio.run(check())

    def test_an_application_that_nobody_is_is_an_error(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                told = await here.ask(sidecar, "GET", "/v1.0/invoke/stock/method/items")
                assert told.error == (500, "ERR_DIRECT_INVOKE")

        asyncio.run(check())

    def test_what_one_instance_can_not_take_another_takes(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                first, second = FakeApplication(), FakeApplication()
                for application in (first, second):
                    application.says("/items", [])
                leaving = await here.sidecar(first, "stock")
                await here.sidecar(second, "stock")
                sidecar = await here.sidecar(FakeApplication())
                leaving._draining = True
                for _ in range(10):
                    assert (await here.ask(sidecar, "GET", "/v1.0/invoke/stock/method/items")).status == 200
                assert len(second.asked_for("/items")) == 10

        asyncio.run(check())

    def test_who_may_not_ask_is_refused_before_the_application_sees_it(self, tmp_path: Path) -> None:
        rule = AccessRule(TextMatch(exact="app/stock"), (TextMatch(exact="app/shop"),), (TextMatch(exact="items"),))

        async def check() -> None:
            async with world(tmp_path) as here:
                stock = FakeApplication()
                stock.says("/items", [])
                stock.says("/secrets", [])
                await here.sidecar(stock, "stock", policies=policies_of_a_sidecar(PolicySet(access=(rule,))))
                shop, thief = await here.sidecar(FakeApplication()), await here.sidecar(FakeApplication(), "thief")
                assert (await here.ask(shop, "GET", "/v1.0/invoke/stock/method/items")).status == 200
                assert (await here.ask(shop, "GET", "/v1.0/invoke/stock/method/secrets")).status == 403
                told = await here.ask(thief, "GET", "/v1.0/invoke/stock/method/items")
                assert told.error == (403, "ERR_DENIED")
                assert len(stock.asked_for("/items")) == 1
                assert stock.asked_for("/secrets") == []

        asyncio.run(check())

    def test_a_copy_goes_where_the_policies_say_and_changes_nothing(self, tmp_path: Path) -> None:
        route = Route((Match(TextMatch(exact="app/stock")),), mirror=Mirror("", 100.0))

        async def check() -> None:
            async with world(tmp_path) as here:
                stock = FakeApplication()
                stock.says("/items", [])
                await here.sidecar(stock, "stock")
                policies = policies_of_a_sidecar(PolicySet(routes=(route,)))
                sidecar = await here.sidecar(FakeApplication(), policies=policies)
                assert (await here.ask(sidecar, "GET", "/v1.0/invoke/stock/method/items")).json == []
                asked = await stock.is_asked_for("/items", 2)
                assert sorted("penstock-shadow" in one.headers for one in asked) == [False, True]

        asyncio.run(check())

    def test_a_copy_goes_to_the_subset_that_a_sidecar_belongs_to_and_has_no_key(self, tmp_path: Path) -> None:
        text = """
functions: {app/stock: {subsets: {old: {version: v1}, new: {cohort: beta}}}}
routes: [{match: {function: app/stock}, split: [{subset: old}], mirror: {subset: new}}]
"""

        async def check() -> None:
            async with world(tmp_path) as here:
                old, new = FakeApplication(), FakeApplication()
                await here.sidecar(old, "stock", version="v1")
                await here.sidecar(new, "stock", version="v2", labels={"cohort": "beta"})
                sidecar = await here.sidecar(FakeApplication(), policies=policies_of_a_sidecar(read_policies(text)))
                await here.ask(sidecar, "POST", "/take", dapr_app_id="stock", idempotency_key="k")
                (asked,), (copied,) = await old.is_asked_for("/take"), await new.is_asked_for("/take")
                assert (asked.headers.get("idempotency-key"), asked.headers.get("penstock-shadow")) == ("k", None)
                assert (copied.headers.get("idempotency-key"), copied.headers.get("penstock-shadow")) == (None, "1")

        asyncio.run(check())

    def test_a_body_that_is_too_large_is_refused(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                told = await here.ask(sidecar, "POST", "/v1.0/invoke/shop/method/x", io.BytesIO(b"x" * ((4 << 20) + 1)))
                assert told.error == (413, "ERR_BODY_TOO_LARGE")

        asyncio.run(check())

    def test_a_call_that_has_begun_is_finished_before_the_end(self, tmp_path: Path) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_: Asked) -> web.Response:
            begun.set()
            await go_on.wait()
            return web.json_response("done")

        async def check() -> None:
            async with world(tmp_path) as here:
                stock = FakeApplication()
                stock.answers["/slow"] = slow
                leaving = await here.sidecar(stock, "stock")
                sidecar = await here.sidecar(FakeApplication())
                asking = asyncio.create_task(here.ask(sidecar, "GET", "/v1.0/invoke/stock/method/slow"))
                await begun.wait()
                closing = asyncio.create_task(leaving.close())
                await until(lambda: leaving._draining)
                go_on.set()
                assert (await asking).json == "done"
                await closing

        asyncio.run(check())


class TestState:
    """A state store: etags, first write wins, expiration, transactions."""

    STORE = "/v1.0/state/statestore"

    def test_a_value_is_saved_read_and_deleted(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                saved = await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": {"n": 1}}, {"key": "b"}])
                assert (saved.status, saved.body) == (204, b"")
                told = await here.ask(sidecar, "GET", f"{self.STORE}/a")
                assert (told.status, told.json) == (200, {"n": 1})
                assert told.headers["ETag"]
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/b")).json is None
                assert (await here.ask(sidecar, "DELETE", f"{self.STORE}/a")).status == 204
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/a")).status == 204
                assert (await here.ask(sidecar, "DELETE", f"{self.STORE}/a")).status == 204

        asyncio.run(check())

    def test_a_stale_etag_changes_nothing(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": 1}])
                etag = (await here.ask(sidecar, "GET", f"{self.STORE}/a")).headers["ETag"]
                assert (
                    await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": 2, "etag": etag}])
                ).status == 204
                for stale in (
                    await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": 3, "etag": etag}]),
                    await here.ask(sidecar, "DELETE", f"{self.STORE}/a", If_Match=etag),
                    await here.ask(sidecar, "POST", self.STORE, [{"key": "x", "value": 3, "etag": etag}]),
                ):
                    assert stale.error == (409, "ERR_STATE_SAVE")
                wrong = await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": 3, "etag": "bad-etag"}])
                assert wrong.status == 400
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/a")).json == 2

        asyncio.run(check())

    def test_of_several_the_others_are_saved(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                items = [{"key": "a", "value": 1}, {"key": "b", "value": 1, "etag": "7"}, {"key": "c", "value": 1}]
                assert (await here.ask(sidecar, "POST", self.STORE, items)).status == 409
                told = await here.ask(sidecar, "POST", f"{self.STORE}/bulk", {"keys": ["a", "b", "c"]})
                assert [one.get("data") for one in told.json] == [1, None, 1]

        asyncio.run(check())

    def test_the_first_write_wins_where_that_is_wanted(self, tmp_path: Path) -> None:
        item = {"key": "a", "value": 1, "options": {"concurrency": "first-write"}}

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                told = await asyncio.gather(*(here.ask(sidecar, "POST", self.STORE, [item]) for _ in range(5)))
                assert sorted(one.status for one in told) == [204, 409, 409, 409, 409]

        asyncio.run(check())

    def test_a_transaction_is_done_as_a_whole_or_not_at_all(self, tmp_path: Path) -> None:
        def transaction(**changes: object) -> dict[str, object]:
            return {
                "operations": [
                    {"operation": "upsert", "request": {"key": "a", "value": 2} | changes},
                    {"operation": "delete", "request": {"key": "b"}},
                ]
            }

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                await here.ask(sidecar, "POST", self.STORE, [{"key": "a", "value": 1}, {"key": "b", "value": 1}])
                path = f"{self.STORE}/transaction"
                told = await here.ask(sidecar, "POST", path, transaction(etag="7"))
                assert told.error == (500, "ERR_STATE_TRANSACTION")
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/b")).json == 1
                assert (await here.ask(sidecar, "POST", path, transaction())).status == 204
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/a")).json == 2
                assert (await here.ask(sidecar, "GET", f"{self.STORE}/b")).status == 204
                unknown = {"operations": [{"operation": "rename", "request": {"key": "a"}}]}
                assert (await here.ask(sidecar, "POST", path, unknown)).status == 400

        asyncio.run(check())

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1.0/state/other", [{"key": "a", "value": 1}]),
            ("/v1.0/state/statestore", [{"value": 1}]),
            ("/v1.0/state/statestore", [{"key": "a||b", "value": 1}]),
            ("/v1.0/state/statestore", [{"key": "a", "metadata": {"ttlInSeconds": "soon"}}]),
            ("/v1.0/state/statestore", {"key": "a"}),
            ("/v1.0/state/statestore", b"{"),
        ],
    )
    def test_what_can_not_be_saved_is_refused(self, tmp_path: Path, path: str, body: object) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(FakeApplication())
                assert (await here.ask(sidecar, "POST", path, body)).status == 400

        asyncio.run(check())

    def test_two_applications_do_not_share_keys(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                shop, stock = await here.sidecar(FakeApplication()), await here.sidecar(FakeApplication(), "stock")
                await here.ask(shop, "POST", self.STORE, [{"key": "a", "value": 1}])
                assert (await here.ask(stock, "GET", f"{self.STORE}/a")).status == 204

        asyncio.run(check())


def test_a_lock_has_one_owner_until_it_is_given_back(tmp_path: Path) -> None:
    def lock(owner: str, **changes: object) -> dict[str, object]:
        return {"resourceId": "door", "lockOwner": owner, "expiryInSeconds": 60} | changes

    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(FakeApplication())
            path, unlock = "/v1.0-alpha1/lock/lockstore", "/v1.0-alpha1/unlock/lockstore"
            assert (await here.ask(sidecar, "POST", path, lock("a"))).json == {"success": True}
            assert (await here.ask(sidecar, "POST", path, lock("b"))).json == {"success": False}
            assert (await here.ask(sidecar, "POST", unlock, lock("b"))).json == {"status": 2}
            assert (await here.ask(sidecar, "POST", unlock, lock("a"))).json == {"status": 0}
            assert (await here.ask(sidecar, "POST", unlock, lock("a"))).json == {"status": 1}
            assert (await here.ask(sidecar, "POST", path, lock("b", expiryInSeconds=0))).status == 400
            assert (await here.ask(sidecar, "POST", "/v1.0-alpha1/lock/other", lock("b"))).status == 400

    asyncio.run(check())
