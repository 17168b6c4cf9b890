"""Which changes of a type can read the bytes written before, and what is said about the others."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import pydantic
import pytest

from penstock.functions.shapes import incompatibilities, shape_of
from penstock.functions.state import Message, State
from penstock.functions.types import codec_for


def record(base: type = msgspec.Struct, /, name: str = "Total", **fields: Any) -> Any:
    """A class with these fields: a type, or a pair of type and default."""
    namespace: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    for field, declared in fields.items():
        annotation, *default = declared if isinstance(declared, tuple) else (declared,)
        namespace["__annotations__"][field] = annotation
        if default:
            namespace[field] = default[0]
    return type(base)(name, (base,), namespace)


BEFORE: dict[str, Any] = {"total": (float, 0.0), "names": (list[str], [])}


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (BEFORE, []),
        ({**BEFORE, "more": (int, 1)}, []),
        ({**BEFORE, "total": (float | None, 0.0)}, []),
        ({**BEFORE, "total": (Any, 0.0)}, []),
        ({"total": (float, 0.0)}, ["names was list[str] and is gone now"]),
        ({**BEFORE, "total": (int, 0)}, ["total was float and is int now"]),
        (
            {**BEFORE, "total": (str | None, None)},
            [
                "total was float and is None | str now",
                "total had the default 0.0, which is not written down, and has None now",
            ],
        ),
        ({**BEFORE, "names": (list[int], [])}, ["names[] was str and is int now"]),
        ({**BEFORE, "names": (set[str], set())}, ["names was list[str] and is set[str] now"]),
        (
            {**BEFORE, "total": (float, 1.0)},
            ["total had the default 0.0, which is not written down, and has 1.0 now"],
        ),
    ],
)
def test_a_changed_state(after: dict[str, Any], found: list[str]) -> None:
    assert incompatibilities(shape_of(record(State, **BEFORE)), shape_of(record(State, **after))) == found


@pytest.mark.parametrize("default", [(), (1, 2), frozenset({"b", "a"}), b"raw"])
def test_a_shape_is_the_same_when_it_was_kept_with_a_checkpoint(default: Any) -> None:
    shape = shape_of(record(State, value=(Any, default)))

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape)) == shape


def test_a_required_field_cannot_be_added() -> None:
    old, new = record(total=float), record(total=float, count=int)

    assert incompatibilities(shape_of(old), shape_of(new)) == ["count is new and has no default"]


def test_another_default_is_fine_where_defaults_are_written_down() -> None:
    old, new = record(total=(float, 0.0)), record(total=(float, 1.0))

    assert incompatibilities(shape_of(old), shape_of(new)) == []


def test_a_default_cannot_be_lost() -> None:
    old, new = record(total=(float, 0.0)), record(total=float)

    assert incompatibilities(shape_of(old), shape_of(new)) == ["total could be left out and is required now"]


def test_the_name_of_a_class_does_not_matter_but_its_tag_does() -> None:
    assert incompatibilities(shape_of(record(name="A", x=int)), shape_of(record(name="B", x=int))) == []
    a, b = record(Message, name="A", x=int), record(Message, name="B", x=int)
    assert incompatibilities(shape_of(a), shape_of(b)) == ["it was A and is B now"]


def test_a_union_can_grow_but_not_shrink() -> None:
    a, b, c = (record(Message, name=name, x=int) for name in "ABC")

    assert incompatibilities(shape_of(a | b), shape_of(a | b | c)) == []
    assert incompatibilities(shape_of(a | b), shape_of(a | c)) == ["it was A | B and is A | C now"]


def test_choices_can_be_added_but_not_removed() -> None:
    few, many = shape_of(Literal["a"]), shape_of(Literal["a", "b"])

    assert incompatibilities(few, many) == []
    assert incompatibilities(many, few) == ["it could be 'b', which is no choice now"]


class OldPair(NamedTuple):
    left: int
    right: int


class NewPair(NamedTuple):
    right: int
    left: int


def test_literals_in_a_union_are_the_choices_of_one() -> None:
    joined = shape_of(record(State, stage=(Literal["a"] | Literal["b"], "a")))

    assert joined == shape_of(record(State, stage=(Literal["a", "b"], "a")))
    assert incompatibilities(joined, joined) == []
    optional = shape_of(Literal["a"] | None | Literal["b", 3])
    assert incompatibilities(shape_of(Literal["a"] | None), optional) == []
    assert incompatibilities(optional, optional) == []


def test_what_is_written_by_position_keeps_its_order() -> None:
    assert incompatibilities(shape_of(OldPair), shape_of(NewPair)) == [
        "OldPair is written by position, and the order was left, right and is right, left now"
    ]


class OldNode(msgspec.Struct):
    next: OldNode | None = None


class NewNode(msgspec.Struct):
    next: NewNode | None = None
    weight: int = 1


def test_recursive_types_are_finite() -> None:
    assert incompatibilities(shape_of(OldNode), shape_of(NewNode)) == []


def test_a_change_deep_inside_is_told_with_its_path() -> None:
    old = record(legs=(list[record(at=int)], []))  # type: ignore[misc]
    new = record(legs=(list[record(at=str)], []))  # type: ignore[misc]

    assert incompatibilities(shape_of(old), shape_of(new)) == ["legs[].at was int and is str now"]


def test_pydantic_models_are_compared_alike() -> None:
    old = pydantic.create_model("Old", total=(float, 0.0), name=(str, ...))
    new = pydantic.create_model("New", total=(int, 0), name=(str, ...), extra=(int, 3))

    assert codec_for(new).compatible(codec_for(old).shape()) == ["total was number and is integer now"]


def test_the_fingerprint_changes_with_the_shape_only() -> None:
    same = [codec_for(record(State, **BEFORE)).fingerprint() for _ in range(2)]

    assert same[0] == same[1]
    assert codec_for(record(State, total=(int, 0))).fingerprint() != same[0]
