"""State of older code: read as it is, migrated, or refused before anything changes."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from penstock.errors import FunctionError, Refused
from penstock.functions.app import App
from penstock.functions.context import Context
from penstock.functions.state import Expire, Log, State, Table, Value
from penstock.testing import Harness


def app_with(state: Any, migration: Any = None, *, storage: Any = None) -> App:
    """`t/sum` keeps the last message in `total`."""
    app = App("bench")

    def last(ctx: Any, message: Any) -> None:
        target = ctx.storage if storage else ctx.state
        target.total = message

    last.__annotations__ = {"ctx": Context[state], "message": Any, "return": None}
    app.function("t/sum", storage=storage)(last)
    if migration is not None:
        app.migrate("t/sum")(migration)
    return app


class Old(State):
    total: float = 0.0


class Wider(State):
    total: float = 0.0
    count: int = 5


class Narrow(State):
    total: int = 0


class Expiring(State):
    total: Annotated[float, Expire(after_write="1h")] = 0.0


def upgraded(old: App, new: App) -> dict[str, Any]:
    """The states after two addresses were written by `old`, and `new` was started on them."""
    with Harness(old) as h:
        h.send("t/sum", "a", 2.5)
        h.send("t/sum", "b", 7.0)
        h.restart(new)
        found = h.states("t/sum")
        h.restart()
        assert h.states("t/sum") == found
        return found


def test_a_new_field_has_its_default() -> None:
    assert upgraded(app_with(Old), app_with(Wider)) == {"a": Wider(2.5, 5), "b": Wider(7.0, 5)}


def test_a_migration_rewrites_every_address() -> None:
    def whole(state: dict[str, Any]) -> dict[str, Any]:
        return {"total": round(state["total"])}

    assert upgraded(app_with(Old), app_with(Narrow, whole)) == {"a": Narrow(2), "b": Narrow(7)}


def test_a_migration_may_return_the_new_class_or_nothing_worth_keeping() -> None:
    def only_large(state: dict[str, Any]) -> Narrow:
        return Narrow(int(state["total"]) if state["total"] > 5 else 0)

    assert upgraded(app_with(Old), app_with(Narrow, only_large)) == {"b": Narrow(7)}


def test_a_migration_of_what_fits_is_left_out() -> None:
    def never(state: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError

    assert upgraded(app_with(Old), app_with(Wider, never)) == {"a": Wider(2.5), "b": Wider(7.0)}


def test_a_field_that_begins_to_expire_does_so_from_its_next_write() -> None:
    with Harness(app_with(Old)) as h:
        h.send("t/sum", "a", 2.5)
        h.restart(app_with(Expiring))
        h.advance("2h")
        assert h.state("t/sum", "a") == Expiring(2.5)
        h.send("t/sum", "a", 3.5)
        h.advance("1h")
        assert h.states("t/sum") == {}


def test_a_field_that_no_longer_expires_stays() -> None:
    with Harness(app_with(Expiring)) as h:
        h.send("t/sum", "a", 2.5)
        h.restart(app_with(Old))
        h.advance("2h")
        assert h.states("t/sum") == {"a": Old(2.5)}


def test_state_that_does_not_fit_is_refused_and_kept() -> None:
    with Harness(app_with(Old)) as h:
        h.send("t/sum", "a", 2.5)
        h.advance()
        with pytest.raises(Refused) as caught:
            h.restart(app_with(Narrow))

        assert str(caught.value).startswith(
            "PEN0302 Refused to start: the state of t/sum in checkpoint 2 does not fit test_migrate.py:"
        )
        assert str(caught.value).endswith(
            "Give a migration (@app.migrate('t/sum')), start fresh with --from none, or keep the old type. Nothing was "
            "changed."
        )
        assert h.states("t/sum") == {"a": Old(2.5)}


@pytest.mark.parametrize(
    ("migration", "reason"),
    [
        (lambda state: {"total": "much"}, "Expected `int`, got `str`"),
        (lambda state: state["other"], "'other'"),
        (lambda state: 7, "Expected `object`, got `int`"),
    ],
)
def test_a_migration_that_fails_names_the_address(migration: Any, reason: str) -> None:
    with pytest.raises(FunctionError) as caught:
        upgraded(app_with(Old), app_with(Narrow, migration))

    assert caught.value.code == "PEN0306"
    assert caught.value.message.startswith("The migration of t/sum/")
    assert reason in caught.value.message
    assert "Nothing was changed: correct the migration and start again." in caught.value.message


def test_stored_values_cannot_be_migrated_and_say_so() -> None:
    old = app_with(None, storage={"total": Value(float)})
    new = app_with(None, lambda state: state, storage={"total": Value(int)})

    with pytest.raises(Refused) as caught:
        upgraded(old, new)

    assert caught.value.code == "PEN0302"
    assert caught.value.message.endswith(
        "Stored values can't be migrated: give what is new another name, start fresh with --from none, or keep the old "
        "type. Nothing was changed."
    )


class Texts(State):
    total: float = 0.0
    items: Table[str, str] = Table()
    events: Log[int] = Log()


class Numbers(State):
    total: float = 0.0
    items: Table[str, int] = Table()
    events: Log[int] = Log()


@pytest.mark.parametrize(
    ("new", "what"),
    [(Numbers, "Tables and logs"), (Old, "Tables and logs"), (None, "State of a function that has none now")],
)
def test_what_is_no_field_is_refused_although_a_migration_is_declared(new: Any, what: str) -> None:
    with pytest.raises(Refused) as caught:
        upgraded(app_with(Texts), app_with(new, lambda state: state))

    assert caught.value.code == "PEN0302"
    assert f". {what} can't be migrated: give what is new another name" in caught.value.message


def test_fields_are_migrated_beside_a_table_that_has_not_changed() -> None:
    class Rounded(State):
        total: int = 0
        items: Table[str, str] = Table()
        events: Log[int] = Log()

    found = upgraded(app_with(Texts), app_with(Rounded, lambda state: {"total": round(state["total"])}))

    assert found == {"a": Rounded(2), "b": Rounded(7)}
