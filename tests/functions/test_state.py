"""What messages and states are: immutable and tagged the ones, all defaults and with collections the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.expire import Expire
from penstock.functions.state import (
    EMPTY_STATE,
    Log,
    Message,
    State,
    Table,
    bind_collections,
    check_state_class,
    collections_of,
    expirations_of,
    flush_collections,
    new_state,
    state_incompatibilities,
    state_shape,
    storage_of,
)
from penstock.functions.tables import MemoryCollections
from penstock.functions.types import codec_for


class Departure(Message):
    carrier: str
    delay: float | None = None


class Item(State):
    count: int = 0
    tags: list[str] = msgspec.field(default_factory=list)


class Cart(State):
    owner: str = ""
    items: Table[str, Item] = Table()
    events: Log[Departure] = Log()


class BigCart(Cart):
    limit: int = 10
    prices: Table[int, float] = Table()


def test_a_message_takes_its_fields_in_order() -> None:
    assert Departure("AA", 12.5) == Departure(carrier="AA", delay=12.5)


def test_a_message_cannot_change() -> None:
    with pytest.raises(AttributeError):
        Departure("AA").carrier = "UA"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_message_is_written_with_the_name_of_its_class() -> None:
    data = codec_for(Departure).encode(Departure("AA"))

    assert msgspec.msgpack.decode(data) == {"type": "Departure", "carrier": "AA", "delay": None}


def test_a_message_can_have_a_field_named_type_when_its_tag_is_moved() -> None:
    class Alert(Message, tag_field="kind"):
        type: str

    assert msgspec.to_builtins(Alert("storm")) == {"kind": "Alert", "type": "storm"}


@pytest.mark.parametrize("cls", [Item, Cart, BigCart])
def test_a_state_with_only_defaults_is_written_as_the_empty_state(cls: Any) -> None:
    check_state_class(cls)

    assert codec_for(cls).encode(new_state(cls)) == EMPTY_STATE


def test_states_do_not_share_their_defaults() -> None:
    new_state(Item).tags.append("x")

    assert new_state(Item).tags == []


def test_a_state_without_collections_is_a_plain_struct() -> None:
    assert not hasattr(Item(), "__dict__")
    assert collections_of(Item) == {}


def test_collections_are_no_fields_and_are_inherited() -> None:
    assert BigCart.__struct_fields__ == ("owner", "limit")
    assert list(collections_of(BigCart)) == ["items", "events", "prices"]
    assert [spec.kind for spec in collections_of(BigCart).values()] == ["table", "log", "table"]


def test_an_unbound_state_keeps_its_collections_in_memory() -> None:
    cart = Cart()

    cart.items["apple"] = Item(2)
    cart.items["apple"].count += 1
    cart.events.append(Departure("AA"))

    assert cart.items["apple"] == Item(3)
    assert list(cart.events) == [Departure("AA")]
    assert "apple" not in Cart().items
    assert storage_of(cart) is not None


def test_a_bound_state_reads_and_writes_the_storage() -> None:
    storage, codec = MemoryCollections(), codec_for(BigCart)
    first = codec.decode(codec.encode(BigCart(owner="ann")))
    bind_collections(first, storage)
    first.items["apple"] = Item(2)
    first.prices[7] = 1.5

    second = codec.decode(codec.encode(first))
    bind_collections(second, storage)

    assert second == first
    assert dict(second.items) == {"apple": Item(2)}
    assert second.prices[7] == 1.5
    assert storage_of(second) is storage


def test_values_changed_in_place_are_stored_when_the_handler_has_returned() -> None:
    storage, cart = MemoryCollections(), Cart()
    bind_collections(cart, storage)
    cart.items["apple"] = Item(2)
    cart.items["apple"].tags.append("ripe")

    flush_collections(cart)

    again = Cart()
    bind_collections(again, storage)
    assert again.items["apple"] == Item(2, ["ripe"])


def test_binding_again_forgets_what_was_open() -> None:
    cart = Cart()
    cart.items["apple"] = Item(1)

    bind_collections(cart, MemoryCollections())

    assert len(cart.items) == 0


def test_binding_does_nothing_to_a_state_without_collections() -> None:
    bind_collections(Item(), MemoryCollections())
    flush_collections(Item())

    assert storage_of(Item()) is None


def test_a_collection_cannot_be_replaced() -> None:
    with pytest.raises(InvalidInput) as caught:
        Cart().items = {}  # type: ignore[assignment]

    assert str(caught.value) == (
        "PEN0205 The table items can't be replaced: change what is in it, as in items.update(...)."
    )


def test_states_are_equal_when_their_fields_are() -> None:
    cart = Cart("ann")
    cart.items["apple"] = Item(1)

    assert cart == Cart("ann")


@dataclasses.dataclass
class Counter:
    seen: int = 0


class Profile(TypedDict, total=False):
    name: str


class Model(pydantic.BaseModel):
    seen: int = 0


@pytest.mark.parametrize(
    ("cls", "first"),
    [(Counter, Counter(0)), (Profile, {}), (Model, Model()), (dict[str, int], {}), (list[int], []), (int, 0)],
)
def test_other_types_can_be_state_too(cls: Any, first: object) -> None:
    check_state_class(cls)

    assert new_state(cls) == first
    assert codec_for(cls).decode(codec_for(cls).encode(first)) == first


class NoDefault(State):
    total: float
    count: int = 0


@dataclasses.dataclass
class NoDefaultDataclass:
    total: float


class NoDefaultDict(TypedDict):
    total: float
    count: NotRequired[int]


class NoDefaultModel(pydantic.BaseModel):
    total: float


@pytest.mark.parametrize("cls", [NoDefault, NoDefaultDataclass, NoDefaultDict, NoDefaultModel])
def test_a_state_needs_defaults(cls: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_state_class(cls)

    assert str(caught.value) == (
        f"PEN0104 State {cls.__name__} has no default for total. Before its first message an address has none: "
        "give every field a default, for example total: ... = ..."
    )


def test_a_union_cannot_be_state() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_state_class(int | str)

    assert caught.value.code == "PEN0104"


class Bare(State):
    items: Table = Table()  # type: ignore[type-arg]


def test_a_collection_says_what_is_in_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_state_class(Bare)

    assert str(caught.value) == (
        "PEN0104 items is annotated as Table. Say what is in it: items: Table[str, int] = Table()."
    )


class Sensor(State):
    last: Annotated[float | None, Expire(after_write="30d")] = None
    seen: Annotated[int, Expire(after_call=60)] = 0
    total: int = 0


def test_fields_can_expire() -> None:
    assert expirations_of(Sensor) == {"last": Expire("30d"), "seen": Expire(after_call="1m")}
    assert (Expire("30d").ttl_ms, Expire("30d").after_call) == (2_592_000_000, False)
    assert repr(Expire(after_call=60)) == "Expire(after_call='1m')"
    assert expirations_of(Item) == expirations_of(dict[str, int]) == {}


class Misplaced(State):
    last: Annotated[float, Expire("30d")] | None = None


class ExpiringTable(State):
    items: Annotated[Table[str, int], Expire("30d")] = Table()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            Misplaced,
            (
                "PEN0117 Expire stands inside the type of last, or twice. It applies to the field as a whole: "
                "last: Annotated[..., Expire(...)]."
            ),
        ),
        (
            ExpiringTable,
            (
                "PEN0117 items is a table, whose rows can't expire. Remove old rows in the handler, for example from a "
                "message sent with ctx.send_after."
            ),
        ),
    ],
)
def test_an_expiration_without_effect_is_refused(cls: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_state_class(cls)

    assert str(caught.value) == message


@pytest.mark.parametrize("arguments", [{}, {"after_write": "1d", "after_call": "1d"}, {"after_write": 0}])
def test_an_expiration_is_one_positive_duration(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Expire(**arguments)

    assert caught.value.code == "PEN0117"


class Cart2(State):
    owner: str = ""
    items: Table[str, int] = Table()


def test_changed_collections_are_incompatible() -> None:
    old = msgspec.json.decode(msgspec.json.encode(state_shape(Cart)))

    assert state_incompatibilities(old, Cart) == []
    assert state_incompatibilities(old, Cart2) == [
        "the values of items: it was Item and is int now",
        "events was a log and is gone now",
    ]


def test_a_storage_needs_only_the_methods_of_its_protocol() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[object, ...]] = []

        def get(self, field: str, key: bytes) -> bytes | None:
            self.calls.append(("get", field, key))
            return None

        def put(self, field: str, key: bytes, value: bytes | None) -> None:
            self.calls.append(("put", field, key, value))

        def scan(self, field: str) -> Iterator[tuple[bytes, bytes]]:
            return iter(())

        def log_append(self, field: str, value: bytes) -> None:
            self.calls.append(("log_append", field, value))

        def log_read(self, field: str, start: int, stop: int) -> Iterator[bytes]:
            return iter(())

        def log_bounds(self, field: str) -> tuple[int, int]:
            return 0, 0

        def log_truncate(self, field: str, before: int) -> None:
            self.calls.append(("log_truncate", field, before))

    storage, cart = Recorder(), BigCart()
    bind_collections(cart, storage)

    cart.prices[1] = 2.0
    assert "apple" not in cart.items

    assert storage.calls == [("put", "prices", b"\x01", b"\xcb@\x00" + bytes(6)), ("get", "items", b"apple")]
