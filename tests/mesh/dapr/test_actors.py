"""Actors: one turn at a time, state of the active one alone, timers, reminders, and who has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from aiohttp import web

from penstock.errors import Unavailable
from penstock.mesh.dapr.storage import Storage
from penstock.mesh.policies.settings import Match, PolicySet, Route, TextMatch
from penstock.mesh.sidecar import policies_of_a_sidecar
from tests.mesh.dapr.world import Asked, FakeApplication, World, until, world

PATH = "/v1.0/actors/Cart/1"
CALLED = "/actors/Cart/1/method/add"


def cart(**config: object) -> FakeApplication:
    application = FakeApplication(actors=["Cart"], config=config)
    application.answers[CALLED] = lambda asked: web.Response(body=asked.body)
    return application


def test_a_method_is_called_with_what_was_sent(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            application = cart()
            sidecar = await here.sidecar(application)
            told = await here.ask(sidecar, "POST", f"{PATH}/method/add", b'"apple"', x_ask="why")
            assert (told.status, told.body) == (200, b'"apple"')
            (asked,) = application.asked_for(CALLED)
            assert (asked.method, asked.body, asked.headers["x-ask"]) == ("PUT", b'"apple"', "why")

    asyncio.run(check())


def test_an_actor_of_another_application_is_called_where_it_is(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            first, second = cart(), cart()
            for number in range(20):
                for application in (first, second):
                    application.says(f"/actors/Cart/{number}/method/add", number)
            await here.sidecar(first, "carts")
            await here.sidecar(second, "carts")
            sidecar = await here.sidecar(FakeApplication())
            for _ in range(2):
                for number in range(20):
                    told = await here.ask(sidecar, "POST", f"/v1.0/actors/Cart/{number}/method/add")
                    assert told.json == number
            by_first, by_second = (
                {asked.path for asked in application.asked if "/method/" in asked.path}
                for application in (first, second)
            )
            assert by_first
            assert by_second
            assert not by_first & by_second, "an actor has one owner"

    asyncio.run(check())


def test_a_failure_of_the_method_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            application = cart()
            application.says(CALLED, {"message": "no more apples"}, status=500)
            sidecar = await here.sidecar(application)
            told = await here.ask(sidecar, "POST", f"{PATH}/method/add")
            assert told.error == (500, "ERR_ACTOR_INVOKE_METHOD")
            assert "no more apples" in told.json["message"]

    asyncio.run(check())


def test_a_type_that_nobody_has_is_said(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            sidecar = await here.sidecar(cart())
            told = await here.ask(sidecar, "POST", "/v1.0/actors/Bank/1/method/pay")
            assert told.error == (404, "ERR_ACTOR_NO_ADDRESS")
            told = await here.ask(sidecar, "POST", "/v1.0/actors/Bank/1/reminders/r", {"dueTime": "1s"})
            assert told.error == (403, "ERR_ACTOR_NOT_HOSTED")
            told = await here.ask(sidecar, "POST", "/v1.0/actors/Cart/1%3F/method/add")
            assert told.status == 400

    asyncio.run(check())


class Slow:
    """A method that takes until it is let go."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.order: list[bytes] = []
        self.go_on = asyncio.Event()

    async def __call__(self, asked: Asked) -> web.Response:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(asked.body)
        await self.go_on.wait()
        self.running -= 1
        return web.Response()


def test_turns_are_taken_one_at_a_time_in_order(tmp_path: Path) -> None:
    async def check() -> None:
        async with world(tmp_path) as here:
            application, slow = cart(), Slow()
            application.answers[CALLED] = slow
            sidecar = await here.sidecar(application)
            calls = []
            for number in range(5):
                calls.append(asyncio.create_task(here.ask(sidecar, "POST", f"{PATH}/method/add", number)))
                await asyncio.sleep(0.01)
            assert len(application.asked_for(CALLED)) == 1
            slow.go_on.set()
            await asyncio.gather(*calls)
            assert (slow.most, slow.order) == (1, [b"0", b"1", b"2", b"3", b"4"])

    asyncio.run(check())


def test_a_turn_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    """What the application is still at must not meet the next turn."""
    route = Route((Match(TextMatch(exact="actor/Cart")),), timeout_s=0.1)

    async def check() -> None:
        async with world(tmp_path) as here:
            application, slow = cart(), Slow()
            application.answers[CALLED] = slow
            sidecar = await here.sidecar(application, policies=policies_of_a_sidecar(PolicySet(routes=(route,))))
            for _ in range(2):
                told = await here.ask(sidecar, "POST", f"{PATH}/method/add")
                assert told.status == 504
            assert slow.most == 1
            slow.go_on.set()
            await application.is_asked_for(CALLED, 2)
            assert slow.most == 1

    asyncio.run(check())


class TestReentrancy:
    """A call that comes from within a turn joins it, where that is wanted."""

    def calling_itself(self, here: World, depth: int) -> tuple[FakeApplication, list[int]]:
        """An application whose method calls itself through its sidecar, `depth` deep."""
        application = cart(reentrancy={"enabled": True, "maxStackDepth": 3})
        told: list[int] = []

        async def call(asked: Asked) -> web.Response:
            deeper = int(asked.body) + 1
            if deeper < depth:
                headers = {"Dapr_Reentrancy_Id": asked.headers["Dapr-Reentrancy-Id"]}
                answer = await here.ask(self.sidecar, "POST", f"{PATH}/method/add", deeper, **headers)
                told.append(answer.status)
            return web.Response()

        application.answers[CALLED] = call
        return application, told

    def test_a_call_from_within_joins_its_turn(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application, told = self.calling_itself(here, 3)
                self.sidecar = await here.sidecar(application)
                assert (await here.ask(self.sidecar, "POST", f"{PATH}/method/add", 0)).status == 200
                assert told == [200, 200]

        asyncio.run(check())

    def test_it_has_an_end(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application, told = self.calling_itself(here, 10)
                self.sidecar = await here.sidecar(application)
                await here.ask(self.sidecar, "POST", f"{PATH}/method/add", 0)
                assert told == [500, 200, 200]

        asyncio.run(check())


class TestState:
    """The state of an actor, through the sidecar where it is active."""

    async def active(self, here: World, **config: object) -> Any:
        sidecar = await here.sidecar(cart(**config), "carts")
        assert (await here.ask(sidecar, "POST", f"{PATH}/method/add")).status == 200
        return sidecar

    def test_it_is_changed_as_a_whole_and_read(self, tmp_path: Path) -> None:
        changes = [
            {"operation": "upsert", "request": {"key": "items", "value": ["apple"]}},
            {"operation": "upsert", "request": {"key": "soon", "value": 1, "metadata": {"ttlInSeconds": "0"}}},
            {"operation": "delete", "request": {"key": "old"}},
        ]

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await self.active(here)
                assert (await here.ask(sidecar, "PUT", f"{PATH}/state", changes)).status == 204
                assert (await here.ask(sidecar, "GET", f"{PATH}/state/items")).json == ["apple"]
                assert (await here.ask(sidecar, "GET", f"{PATH}/state/soon")).status == 204
                assert (await here.ask(sidecar, "GET", f"{PATH}/state/other")).status == 204

        asyncio.run(check())

    def test_an_actor_that_is_not_active_here_has_none_here(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await self.active(here)
                for method, path, body in (("PUT", "state", []), ("GET", "state/items", None), ("PUT", "timers/t", {})):
                    told = await here.ask(sidecar, method, f"/v1.0/actors/Cart/2/{path}", body)
                    assert told.error == (400, "ERR_ACTOR_INSTANCE_MISSING")

        asyncio.run(check())

    def test_one_that_is_active_elsewhere_by_now_changes_nothing(self, tmp_path: Path) -> None:
        """Its sidecar has not noticed yet: the view of who owns what is late."""
        change = [{"operation": "upsert", "request": {"key": "items", "value": ["late"]}}]

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await self.active(here)
                other = Storage(tmp_path)
                await other.open()
                await other.activate("Cart", "1")
                told = await here.ask(sidecar, "PUT", f"{PATH}/state", change)
                assert told.error == (500, "ERR_ACTOR_STATE_TRANSACTION_SAVE")
                assert other.actor_get("Cart", "1", "items") is None
                await other.close()

        asyncio.run(check())


class TestEnd:
    """An actor that is idle, or belongs to another sidecar, ends; and begins again when it is asked."""

    def test_the_idle_are_told_so(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart(actorIdleTimeout="0h0m0s100ms0μs")
                application.says("/actors/Cart/1", "ended")
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "POST", f"{PATH}/method/add")
                (asked,) = await application.is_asked_for("/actors/Cart/1")
                assert asked.method == "DELETE"
                assert sidecar.actors.counts() == {"Cart": 0}
                assert (await here.ask(sidecar, "POST", f"{PATH}/method/add")).status == 200

        asyncio.run(check())

    def test_those_of_a_sidecar_that_comes_are_given_up_after_their_turn(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                first, second = cart(), cart()
                for application in (first, second):
                    for number in range(20):
                        application.says(f"/actors/Cart/{number}/method/add", number)
                sidecar = await here.sidecar(first, "carts")
                for number in range(20):
                    await here.ask(sidecar, "POST", f"/v1.0/actors/Cart/{number}/method/add")
                joined = await here.sidecar(second, "carts")
                await until(lambda: sidecar.actors.counts()["Cart"] < 20)
                for number in range(20):
                    await here.ask(sidecar, "POST", f"/v1.0/actors/Cart/{number}/method/add")
                counts = sidecar.actors.counts()["Cart"], joined.actors.counts()["Cart"]
                assert sum(counts) == 20
                assert min(counts) > 0
                ended = [asked for asked in first.asked if asked.method == "DELETE"]
                assert len(ended) == counts[1]

        asyncio.run(check())

    def test_at_the_end_of_the_sidecar_all_are_told(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "POST", f"{PATH}/method/add")
                await sidecar.close()
                assert [asked.method for asked in application.asked_for("/actors/Cart/1")] == ["DELETE"]

        asyncio.run(check())

    def test_an_application_that_has_gone_has_no_actors_any_more(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "POST", f"{PATH}/method/add")
                await here.ask(sidecar, "PUT", f"{PATH}/timers/tick", {"dueTime": "1h"})
                await application.stop()
                await until(lambda: not sidecar.ready)
                assert sidecar.actors.counts() == {"Cart": 0}
                await application.start()
                await until(lambda: sidecar.ready)
                assert (await here.ask(sidecar, "POST", f"{PATH}/method/add")).status == 200

        asyncio.run(check())


class TestTimers:
    """They fire while their actor is active."""

    FIRED = "/actors/Cart/1/method/timer/tick"

    async def timed(self, here: World, said: Mapping[str, object], **config: object) -> tuple[Any, FakeApplication]:
        application = cart(**config)
        application.says(self.FIRED, "ok")
        sidecar = await here.sidecar(application)
        await here.ask(sidecar, "POST", f"{PATH}/method/add")
        assert (await here.ask(sidecar, "PUT", f"{PATH}/timers/tick", said)).status == 204
        return sidecar, application

    def test_one_fires_by_its_period_with_what_was_said(self, tmp_path: Path) -> None:
        said = {"callback": "on_tick", "data": {"n": 1}, "dueTime": "0h0m0s20ms0μs", "period": "0h0m0s10ms0μs"}

        async def check() -> None:
            async with world(tmp_path) as here:
                _, application = await self.timed(here, said | {"ttl": "0h1m0s0ms0μs"})
                fired = await application.is_asked_for(self.FIRED, 3)
                assert [asked.json for asked in fired[:3]] == [said] * 3

        asyncio.run(check())

    def test_one_that_is_cleared_or_answers_so_fires_no_more(self, tmp_path: Path) -> None:
        said = {"callback": "on_tick", "period": "R9/PT0S", "dueTime": "0s"}

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar, application = await self.timed(here, said | {"period": "5ms"})
                await application.is_asked_for(self.FIRED)
                assert (await here.ask(sidecar, "DELETE", f"{PATH}/timers/tick")).status == 204
                fired = len(application.asked_for(self.FIRED))
                await asyncio.sleep(0.05)
                assert len(application.asked_for(self.FIRED)) <= fired + 1, "its turn may have begun"
                application.answers[self.FIRED] = lambda _: web.Response(headers={"X-DaprReminderCancel": "true"})
                application.asked.clear()
                await here.ask(sidecar, "PUT", f"{PATH}/timers/tick", {"dueTime": "0s", "period": "5ms"})
                await application.is_asked_for(self.FIRED)
                await asyncio.sleep(0.05)
                assert len(application.asked_for(self.FIRED)) == 1

        asyncio.run(check())

    def test_one_that_clears_itself_ends_after_its_turn(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                finished = asyncio.Event()

                async def clear(_: Asked) -> web.Response:
                    await here.ask(sidecar, "DELETE", f"{PATH}/timers/tick")
                    await asyncio.sleep(0.02)
                    finished.set()
                    return web.Response()

                application.answers[self.FIRED] = clear
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "POST", f"{PATH}/method/add")
                await here.ask(sidecar, "PUT", f"{PATH}/timers/tick", {"dueTime": "0s", "period": "5ms"})
                await asyncio.wait_for(finished.wait(), 5)
                await asyncio.sleep(0.05)
                assert len(application.asked_for(self.FIRED)) == 1

        asyncio.run(check())

    def test_what_is_no_time_is_refused(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar, _ = await self.timed(here, {"dueTime": "1h"})
                for said in (
                    {"dueTime": "soon"},
                    {"dueTime": 5},
                    {"period": "R0/PT1S"},
                    {"dueTime": "1h", "ttl": "-1s"},
                ):
                    told = await here.ask(sidecar, "PUT", f"{PATH}/timers/tick", said)
                    assert told.error == (400, "ERR_MALFORMED_REQUEST")

        asyncio.run(check())


class TestReminders:
    """They fire also when nobody has asked for their actor, and after the sidecar that has set them is gone."""

    REMINDED = "/actors/Cart/1/method/remind/tick"
    REMINDER = f"{PATH}/reminders/tick"

    def test_one_is_set_read_and_cleared(self, tmp_path: Path) -> None:
        said = {"dueTime": "1h", "period": "5m", "data": "c29vbg=="}

        async def check() -> None:
            async with world(tmp_path) as here:
                sidecar = await here.sidecar(cart())
                assert (await here.ask(sidecar, "PUT", self.REMINDER, said)).status == 204
                assert (await here.ask(sidecar, "GET", self.REMINDER)).json == said
                stays = await here.ask(sidecar, "PUT", self.REMINDER, said | {"overwrite": False})
                assert stays.error == (409, "ERR_ACTOR_REMINDER_ALREADY_EXISTS")
                assert (await here.ask(sidecar, "DELETE", self.REMINDER)).status == 204
                assert (await here.ask(sidecar, "GET", self.REMINDER)).error == (404, "ERR_ACTOR_REMINDER_GET")

        asyncio.run(check())

    def test_one_fires_by_its_period_with_what_was_said_and_once_without(self, tmp_path: Path) -> None:
        said = {"dueTime": "0s", "period": "20ms"}

        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                application.says(self.REMINDED, "ok")
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "PUT", self.REMINDER, said)
                fired = await application.is_asked_for(self.REMINDED, 3)
                assert fired[0].json == said | {"data": ""}
                await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "0s"})
                await until(lambda: sidecar.actors.reminder("Cart", "1", "tick") is None)

        asyncio.run(check())

    def test_one_outlives_its_sidecar(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                first = await here.sidecar(cart(), "carts")
                await here.ask(first, "PUT", self.REMINDER, {"dueTime": "100ms"})
                await first.close()
                application = cart()
                application.says(self.REMINDED, "ok")
                await here.sidecar(application, "carts")
                await application.is_asked_for(self.REMINDED)

        asyncio.run(check())

    def test_one_that_fails_is_tried_again_as_it_says_and_then_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        policy = {"constant": {"interval": "0h0m0s10ms0μs", "maxRetries": 2}}

        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                application.says(self.REMINDED, "no", status=500)
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "0s", "failurePolicy": policy})
                await application.is_asked_for(self.REMINDED, 3)
                await until(lambda: sidecar.actors.reminder("Cart", "1", "tick") is None)
                assert len(application.asked_for(self.REMINDED)) == 3
                await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "0s", "failure_policy": {"drop": {}}})
                await until(lambda: sidecar.actors.reminder("Cart", "1", "tick") is None)
                assert len(application.asked_for(self.REMINDED)) == 4

        asyncio.run(check())
        assert caplog.text.count("PEN0881 Reminder tick of actor Cart/1 failed and is passed over") == 2

    def test_they_go_on_after_the_storage_was_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("penstock.mesh.dapr.upkeep.AGAIN_S", 0.01)
        away = Unavailable("PEN0820", "The store does not take part.")

        def fails(*_: object) -> NoReturn:
            raise away

        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()
                application.says(self.REMINDED, "ok")
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "50ms"})
                with monkeypatch.context() as patch:
                    patch.setattr(Storage, "due_reminders", fails)
                    await until(lambda: "PEN0820" in caplog.text)
                await application.is_asked_for(self.REMINDED)

        asyncio.run(check())

    def test_one_that_is_set_anew_while_it_fires_stays(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with world(tmp_path) as here:
                application = cart()

                async def again(_: Asked) -> web.Response:
                    await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "1h"})
                    return web.Response()

                application.answers[self.REMINDED] = again
                sidecar = await here.sidecar(application)
                await here.ask(sidecar, "PUT", self.REMINDER, {"dueTime": "0s"})
                await application.is_asked_for(self.REMINDED)
                await asyncio.sleep(0.05)
                assert (await here.ask(sidecar, "GET", self.REMINDER)).json == {"dueTime": "1h"}

        asyncio.run(check())
