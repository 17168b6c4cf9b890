"""What the codec chooser promises for each kind of type: values come back, misfits are named, rows of text convert."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import subprocess
import sys
import uuid
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError, DecodeError
from penstock.functions.expire import Expire
from penstock.functions.state import Message, State
from penstock.functions.types import codec_for, type_text


class Delay(Message):
    minutes: float
    reason: str | None = None


class Ask(Message):
    pass


class Plane(msgspec.Struct):
    tailnum: str | None
    seats: int
    legs: list[Delay] = []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int | None = None


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Pair(NamedTuple):
    left: int
    right: str = ""


class Tree(msgspec.Struct):
    label: str
    children: list[Tree] = []


class Nested(pydantic.BaseModel):
    at: datetime.datetime


class Account(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    owner: str = pydantic.Field(alias="ownerName")
    secret: pydantic.SecretStr
    balance: float | None = None
    parts: list[Nested] = []
    colour: Colour = Colour.RED


UserId = NewType("UserId", str)


def _reading_class() -> Any:
    """A protobuf class as `protoc` would generate it, made here because no compiler is at hand."""
    file = descriptor_pb2.FileDescriptorProto(name="reading.proto", package="test", syntax="proto3")
    message = file.message_type.add(name="Reading")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="sensor_id", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    message.field.add(name="values", number=2, type=field.TYPE_DOUBLE, label=field.LABEL_REPEATED)
    message.field.add(
        name="count", number=3, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL, proto3_optional=True, oneof_index=0
    )
    message.oneof_decl.add(name="_count")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Reading"))


Reading = _reading_class()

VALUES = [
    pytest.param(Delay, Delay(3.5), id="struct"),
    pytest.param(Delay | Ask, Ask(), id="union"),
    pytest.param(Plane, Plane(None, 3, [Delay(1.0)]), id="nested structs"),
    pytest.param(Point, Point(1), id="dataclass"),
    pytest.param(Movie, {"title": "Alien"}, id="typed dict"),
    pytest.param(Pair, Pair(1, "b"), id="named tuple"),
    pytest.param(Tree, Tree("a", [Tree("b")]), id="recursive"),
    pytest.param(int, -(2**63), id="int"),
    pytest.param(float, 0.1, id="float"),
    pytest.param(str, "Zürich", id="str"),
    pytest.param(bool, True, id="bool"),
    pytest.param(None, None, id="None"),
    pytest.param(bytes, b"\x00\xff", id="bytes"),
    pytest.param(bytes | None, b"\x00\xff", id="optional bytes"),
    pytest.param(dict[str, list[int]], {"a": [1]}, id="containers"),
    pytest.param(dict[tuple[int, int], int], {(1, 2): 3}, id="tuple keys"),
    pytest.param(frozenset[str], frozenset({"a"}), id="frozenset"),
    pytest.param(int | str | None, "x", id="builtin union"),
    pytest.param(Literal["a", "b"], "b", id="literal"),
    pytest.param(Colour, Colour.BLUE, id="enum"),
    pytest.param(UserId, UserId("ann"), id="new type"),
    pytest.param(datetime.datetime, datetime.datetime(2013, 1, 1, 5, 15, tzinfo=datetime.UTC), id="datetime"),
    pytest.param(datetime.timedelta, datetime.timedelta(minutes=-3), id="timedelta"),
    pytest.param(decimal.Decimal, decimal.Decimal("1.10"), id="Decimal"),
    pytest.param(uuid.UUID, uuid.UUID(int=7), id="UUID"),
    pytest.param(Any, {"a": [1, None, 2.5]}, id="Any"),
    pytest.param(Annotated[float, Expire("1d")], 2.5, id="annotated"),
    pytest.param(
        Account,
        Account(
            ownerName="ann",
            secret=pydantic.SecretStr("s3"),
            parts=[Nested(at=datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC))],
            colour=Colour.BLUE,
        ),
        id="pydantic",
    ),
    pytest.param(Reading, Reading(sensor_id="a", values=[1.5]), id="protobuf"),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES)
def test_a_value_comes_back_from_its_bytes(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)

    data = codec.encode(value)

    assert type(data) is bytes
    assert codec.decode(data) == value
    assert not codec.types or type(value) in codec.types


@pytest.mark.parametrize(("annotation", "value"), VALUES)
def test_a_value_comes_back_from_json(annotation: Any, value: Any) -> None:
    if annotation in (Account, dict[tuple[int, int], int]):
        pytest.skip("a secret is masked in what people see, and JSON has no tuples for keys")
    codec = codec_for(annotation)

    assert codec.decode_json(codec.encode_json(value)) == value


@pytest.mark.parametrize(("annotation", "value"), VALUES)
def test_every_type_has_a_shape_that_is_plain_data_and_agrees_with_itself(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)

    stored = msgspec.json.decode(msgspec.json.encode(codec.shape()))

    assert codec.compatible(stored) == []
    assert codec.fingerprint() == codec.fingerprint()
    assert len(codec.fingerprint()) == 16


@pytest.mark.parametrize(("annotation", "value"), VALUES)
def test_every_type_has_a_json_schema(annotation: Any, value: Any) -> None:
    if annotation == dict[tuple[int, int], int]:
        pytest.skip("JSON has no tuples for keys")
    assert isinstance(codec_for(annotation).schema(), dict)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
untyped = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(untyped)
def test_any_plain_value_comes_back_untyped(value: object) -> None:
    codec = codec_for(Any)

    assert codec.decode(codec.encode(value)) == value


@given(
    st.builds(
        Plane,
        st.none() | st.text(),
        st.integers(-(2**63), 2**63),
        st.lists(st.builds(Delay, st.floats(allow_nan=False))),
    )
)
def test_any_struct_comes_back(plane: Plane) -> None:
    codec = codec_for(Plane)

    assert codec.decode(codec.encode(plane)) == plane


@given(st.binary())
def test_random_bytes_either_fit_or_are_explained(data: bytes) -> None:
    codec = codec_for(Plane)
    try:
        codec.decode(data)
    except (ValueError, RecursionError) as error:
        explained = codec.explain(error, data)
    else:
        return

    assert explained.code == "PEN0201"


def test_bytes_are_the_payload_itself() -> None:
    assert codec_for(bytes).encode(b"raw") == b"raw"


def test_one_codec_serves_all_who_use_a_type() -> None:
    assert codec_for(Delay) is codec_for(Delay)


def test_a_codec_encodes_without_python_in_between() -> None:
    assert type(codec_for(Delay).encode).__name__ == "builtin_function_or_method"


def test_a_single_type_accepts_data_without_its_tag() -> None:
    assert codec_for(Delay).decode_json(b'{"minutes": 3}') == Delay(3.0)


def test_a_pydantic_value_keeps_what_json_would_lose() -> None:
    codec = codec_for(Account)
    account = Account(ownerName="ann", secret=pydantic.SecretStr("s3"), balance=math.inf)

    returned = codec.decode(codec.encode(account))

    assert returned.balance == math.inf
    assert returned.secret.get_secret_value() == "s3"


def test_optional_packages_are_imported_only_for_their_own_classes() -> None:
    program = (
        "import sys\n"
        "from penstock.functions.types import codec_for\n"
        "codec_for(dict[str, int])\n"
        "assert not {'pydantic', 'google.protobuf'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Delay | Ask, "Delay | Ask"),
        (int | None, "int | None"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Annotated[float, Expire("1d")], "float"),
        (Any, "Any"),
        (None, "None"),
    ],
)
def test_types_are_named_as_written(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


class Opaque:
    pass


@pytest.mark.parametrize(
    ("annotation", "beginning"),
    [
        (Opaque, "Opaque can't be the type of a message or of state: There is no way to write it. Use a class"),
        (list[Opaque], "list[Opaque] can't be the type of a message or of state: It contains Opaque. Use"),
        (
            dict[str, Account],
            "dict[str, Account] can't be the type of a message or of state: Account can only be a type by",
        ),
        (
            Point | Movie,
            "Point | Movie can't be the type of a message or of state: Type unions may not contain more than",
        ),
        (
            bytes | str,
            "bytes | str can't be the type of a message or of state: Type unions may not contain more than one",
        ),
    ],
)
def test_types_that_cannot_be_written_are_refused_at_once(annotation: Any, beginning: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        codec_for(annotation)

    assert caught.value.code == "PEN0102"
    assert caught.value.message.startswith(beginning)
    assert caught.value.message.endswith("the alternatives of a union derive from Message.")


def explained(annotation: Any, value: object) -> DecodeError:
    codec = codec_for(annotation)
    data = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    with pytest.raises(Exception) as caught:
        codec.decode(data)
    return codec.explain(caught.value, data)  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Delay, {"minutes": "late"}, '$.minutes expected float, got str "late".'),
        (Delay, {"minutes": None}, "$.minutes expected float, got None."),
        (Delay, {"minutes": 1.0, "reason": 5}, "$.reason expected str | None, got int 5."),
        (Delay, {}, "$.minutes expected a value, got nothing."),
        (Delay, [1], "$ expected object, got array [1]."),
        (Delay, {"minutes": "x" * 100}, f'$.minutes expected float, got str "{"x" * 56}....'),
        (Delay | Ask, {"type": "Go"}, '$.type expected one of the choices in Delay | Ask, got str "Go".'),
        (Delay | Ask, {"minutes": 1.0}, "$.type expected a value, got nothing."),
        (
            Plane,
            {"tailnum": "N1", "seats": 3, "legs": [{"minutes": 1}, {"minutes": []}]},
            "$.legs[1].minutes expected float, got array [].",
        ),
        (dict[str, int], {"a": 1, "b": "x"}, '$[...] expected int, got str "x".'),
        (dict[int, int], {1: 1, "b": 2}, '$ (a key) expected int, got str "b".'),
        (Literal["a", "b"], "c", "$ expected one of the choices in Literal['a', 'b'], got str \"c\"."),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "$ expected int >= 0, got int -1."),
        (tuple[int, int], [1], "$ expected array of length 2, got length 1."),
        (uuid.UUID, "x", '$ expected a valid value (Invalid UUID), got str "x".'),
        (Delay, b"\x81", "$ expected Delay, got data that cannot be read: Input data was truncated."),
        (
            str,
            b"\xa1\xff",
            "$ expected str, got data that cannot be read: a text that is not UTF-8 (invalid start byte).",
        ),
        (Any, b"\x91" * 100_000, "$ expected Any, got data that cannot be read: nested too deeply."),
        (Account, {"owner": 5}, "$.owner expected a valid value (Input should be a valid string), got int 5."),
        (
            Reading,
            b"\x0a",
            (
                "$ expected Reading, got data that cannot be read: Error parsing message with "
                "type 'test.Reading': Wire format was corrupt."
            ),
        ),
    ],
)
def test_a_misfit_is_told_with_its_place_and_value(annotation: Any, value: object, message: str) -> None:
    error = explained(annotation, value)

    assert error.code == "PEN0201"
    assert error.message == message


def test_a_misfit_has_its_parts() -> None:
    error = explained(Delay, {"minutes": "late"})

    assert (error.path, error.expected, error.got) == ("$.minutes", "float", 'str "late"')


def test_a_misfit_can_begin_with_what_was_decoded() -> None:
    codec = codec_for(Delay)
    with pytest.raises(msgspec.ValidationError) as caught:
        codec.decode_json(b'{"minutes": "late"}')

    error = codec.explain(caught.value, b'{"minutes": "late"}', place="Message for flights/carrier 'AA'")

    assert str(error) == "PEN0201 Message for flights/carrier 'AA': $.minutes expected float, got str \"late\"."


def test_json_is_strict_about_types() -> None:
    with pytest.raises(msgspec.ValidationError):
        codec_for(Delay).decode_json(b'{"minutes": "12"}')


class Departure(Message):
    carrier: str
    distance: int
    dep_delay: float | None
    tailnum: str | None = "unknown"
    cancelled: bool = False


def test_a_row_of_texts_becomes_typed() -> None:
    row = {"carrier": "AA", "distance": "1400", "dep_delay": "-3.5", "tailnum": "N1", "cancelled": "1", "unused": "x"}

    assert codec_for(Departure).convert(row) == Departure("AA", 1400, -3.5, "N1", True)


@pytest.mark.parametrize("absent", ["", "NA", None])
def test_absent_cells_are_none_where_none_is_allowed(absent: str | None) -> None:
    row = {"carrier": "NA", "distance": "1", "dep_delay": absent, "tailnum": absent}

    assert codec_for(Departure).convert(row) == Departure("NA", 1, None, None)
    assert row["dep_delay"] == absent


def test_missing_cells_are_none_or_the_default() -> None:
    assert codec_for(Departure).convert({"carrier": "AA", "distance": 1}) == Departure("AA", 1, None, "unknown")


def test_an_empty_cell_is_refused_where_a_value_is_needed() -> None:
    codec, row = codec_for(Departure), {"carrier": "AA", "distance": "", "dep_delay": "1"}
    with pytest.raises(msgspec.ValidationError) as caught:
        codec.convert(row)

    assert codec.explain(caught.value, row).message == '$.distance expected int, got str "".'


def test_rows_of_a_union_convert_by_their_tag() -> None:
    row = {"type": "Delay", "minutes": "2", "reason": "NA"}

    assert codec_for(Delay | Ask).convert(row) == Delay(2.0, None)


def test_scalars_convert_from_text() -> None:
    assert codec_for(int).convert("12") == 12
    assert codec_for(float | None).convert("NA") is None
    assert codec_for(bytes).convert("raw") == b"raw"


def test_pydantic_and_protobuf_convert_rows_too() -> None:
    account = codec_for(Account).convert({"ownerName": "ann", "secret": "s", "balance": "NA"})
    reading = codec_for(Reading).convert({"sensor_id": "a", "values": ["1.5"], "count": "NA"})

    assert (account.owner, account.balance) == ("ann", None)
    assert (reading.sensor_id, list(reading.values), reading.HasField("count")) == ("a", [1.5], False)


def test_typed_data_become_values_and_nothing_is_taken_for_something_else() -> None:
    at = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)

    assert codec_for(Delay).from_builtins({"minutes": 1, "reason": ""}) == Delay(1.0, "")
    assert codec_for(dict[str, datetime.datetime]).from_builtins({"at": at}) == {"at": at}
    assert codec_for(bytes).from_builtins(b"\xff") == b"\xff"
    account = codec_for(Account).from_builtins({"ownerName": "", "secret": "s", "colour": "blue"})
    assert (account.owner, account.colour) == ("", Colour.BLUE)
    assert codec_for(Reading).from_builtins({"sensor_id": "NA"}) == Reading(sensor_id="NA")


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (Delay, {"minutes": "1"}, '$.minutes expected float, got str "1".'),
        (int, "12", '$ expected int, got str "12".'),
        (bytes, "YQ==", '$ expected bytes, got str "YQ==".'),
        (Reading, [], "$ expected Reading, got array []."),
        (Account, {"ownerName": "a"}, "$.secret expected a value, got nothing."),
    ],
)
def test_typed_data_that_do_not_fit_say_where(type_: Any, value: Any, message: str) -> None:
    codec = codec_for(type_)
    with pytest.raises(Exception) as caught:  # Whatever is quickest; `explain` makes words of it.
        codec.from_builtins(value)

    assert codec.explain(caught.value, value).message == message


def test_strict_pydantic_json_does_not_guess() -> None:
    codec = codec_for(Account)
    data = b'{"ownerName": "ann", "secret": "s", "balance": "12"}'
    with pytest.raises(pydantic.ValidationError) as caught:
        codec.decode_json(data)

    assert codec.explain(caught.value, data).path == "$.balance"


def test_builtins_for_people() -> None:
    assert codec_for(Plane).to_builtins(Plane("N1", 3)) == {"tailnum": "N1", "seats": 3, "legs": []}
    assert codec_for(bytes).to_builtins(b"raw") == "cmF3"
    assert codec_for(Reading).to_builtins(Reading(sensor_id="a")) == {"sensor_id": "a"}


def test_a_float_may_be_sent_as_an_int_but_a_bool_is_neither() -> None:
    assert codec_for(float).types == (float, int)
    assert codec_for(int).types == (int,)


def test_a_type_with_a_name_of_the_future_raises_until_it_is_defined() -> None:
    class Early(State):
        later: Later | None = None  # type: ignore[name-defined]  # noqa: F821 - the point of the test.

    with pytest.raises(NameError):
        codec_for(Early)
