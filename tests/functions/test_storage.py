"""The dynamic form of state: attributes that are declared, typed, absent until set, and expire."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import ConfigurationError, DecodeError, InvalidInput
from penstock.functions.expire import Expire
from penstock.functions.storage import Storage, Value, check_storage, storage_incompatibilities

VALUES: dict[str, Value[Any]] = {
    "seen": Value(int, default=0),
    "name": Value(str),
    "tags": Value(list[str], default=[]),
    "session": Value(str, expire=Expire(after_write="1s")),
    "visit": Value(str, expire=Expire(after_call="1s")),
}


def stored(clock_ms: int = 1_000, **attributes: Any) -> bytes:
    storage = Storage(VALUES)
    for name, value in attributes.items():
        setattr(storage, name, value)
    return storage.encode(clock_ms)[0]


def test_an_absent_value_is_its_default_or_none() -> None:
    storage = Storage(VALUES)

    assert (storage.seen, storage.name, storage.tags) == (0, None, [])


def test_what_is_set_is_read_again() -> None:
    storage = Storage.decode(VALUES, stored(seen=3, name="ann"), 1_000)

    assert (storage.seen, storage.name) == (3, "ann")


def test_a_removed_value_is_absent() -> None:
    storage = Storage.decode(VALUES, stored(seen=3), 1_000)
    del storage.seen
    del storage.name

    assert storage.seen == 0
    assert storage.encode(1_000) == (b"", None)


def test_nothing_is_stored_for_reading_a_default() -> None:
    storage = Storage(VALUES)
    assert storage.tags == []

    assert storage.encode(1_000) == (b"", None)


def test_a_value_changed_in_place_is_stored() -> None:
    storage = Storage(VALUES)
    storage.tags.append("new")

    assert Storage.decode(VALUES, storage.encode(1_000)[0], 1_000).tags == ["new"]
    assert Storage(VALUES).tags == []


def test_equal_contents_are_equal_bytes() -> None:
    assert stored(seen=3, name="ann") == stored(name="ann", seen=3)


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    storage = Storage({"seen": Value(int), "name": Value(str)})

    for access in (lambda: storage.sean, lambda: setattr(storage, "sean", 1), lambda: delattr(storage, "sean")):
        with pytest.raises(AttributeError) as caught:
            access()
        assert str(caught.value) == "Storage has no value 'sean'. Declared: name, seen."


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "PEN0205 Storage seen can't be set to None. Remove it: del ctx.storage.seen."),
        ("x", 'PEN0205 Storage seen is of type int, got str "x". Nothing was stored.'),
        (True, "PEN0205 Storage seen is of type int, got bool true. Nothing was stored."),
    ],
)
def test_a_value_of_another_type_is_refused(value: object, message: str) -> None:
    storage = Storage(VALUES)
    with pytest.raises(InvalidInput) as caught:
        storage.seen = value

    assert str(caught.value) == message
    assert storage.seen == 0


def test_a_wrong_value_deep_inside_is_refused_whether_set_or_changed_in_place() -> None:
    storage = Storage(VALUES)
    with pytest.raises(InvalidInput, match=r"PEN0205 Storage tags is of type list\[str\]: .*Nothing was stored"):
        storage.tags = [5]

    storage.tags = ["a"]
    storage.tags.append(5)
    with pytest.raises(InvalidInput, match="PEN0205"):
        storage.encode(1_000)


def test_a_stored_value_of_another_type_is_explained() -> None:
    storage = Storage.decode({"seen": Value(str)}, stored(seen=3), 1_000)
    with pytest.raises(DecodeError) as caught:
        _ = storage.seen

    assert str(caught.value) == "PEN0201 Stored value seen: $ expected str, got int 3."


def test_a_value_expires_after_its_last_write() -> None:
    raw = stored(clock_ms=1_000, session="s")

    assert Storage.decode(VALUES, raw, 1_999).encode(1_999) == (raw, 2_000)
    assert Storage.decode(VALUES, raw, 2_000).session is None
    again = Storage.decode(VALUES, raw, 1_500)
    again.session = "s"
    assert again.encode(1_500)[1] == 2_500


def test_a_value_expires_after_the_last_call() -> None:
    raw = stored(clock_ms=1_000, visit="v")

    assert Storage.decode(VALUES, raw, 1_500).encode(1_500)[1] == 2_500
    assert Storage.decode(VALUES, raw, 1_500).encode_unused() == (raw, 2_000)
    assert Storage.decode(VALUES, raw, 2_000).encode_unused() == (b"", None)


@pytest.mark.parametrize("name", ["_seen", "two words", "encode"])
def test_a_name_must_be_usable_as_an_attribute(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_storage({name: Value(int)})

    assert str(caught.value) == (
        f"PEN0118 {name!r} can't name a stored value: ctx.storage.{name} is no attribute, or it is taken. Rename it."
    )


def test_a_declaration_is_a_value_with_a_fitting_default() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_storage({"seen": int})  # type: ignore[dict-item]
    assert caught.value.code == "PEN0118"

    with pytest.raises(ConfigurationError) as caught:
        Value(int, default="x")
    assert str(caught.value) == 'PEN0118 The default of Value(int) is str "x". Give it that type.'


def test_changed_declarations() -> None:
    old = {name: spec.codec.shape() for name, spec in VALUES.items()}

    assert storage_incompatibilities(old, VALUES) == []
    assert storage_incompatibilities(old, {**VALUES, "more": Value(int)}) == []
    assert storage_incompatibilities({"a": old["seen"], "b": old["seen"]}, {"a": Value(str)}) == [
        "b is gone now",
        "a: it was int and is str now",
    ]
