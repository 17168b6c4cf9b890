"""Avro bodies, by fastavro. Imported only when an ingress or egress has such a format.

What always holds: a body is read to its end or refused; a value is checked against the schema before it is written,
field by field, because fastavro itself writes 1.5 into an int as 1. What a message holds beyond msgpack (dates,
decimals, ...) arrives here as text, and becomes what the schema calls for.
"""

from __future__ import annotations

import datetime
import decimal
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import fastavro
import msgspec
from fastavro.read import SchemaResolutionError

from penstock.errors import ConfigurationError, DecodeError, InvalidInput
from penstock.functions.mismatch import describe, mismatch

Check: TypeAlias = Callable[[Any], Any]
"""From plain data to what fastavro writes. Raises _Misfit."""


class AvroSchema:
    """One parsed schema, with those it builds on."""

    def __init__(self, text: str, referred: Sequence[str] = ()) -> None:
        """Raises ValueError if a text is no schema."""
        self._names: dict[str, Any] = {}
        try:
            for other in referred:
                fastavro.parse_schema(msgspec.json.decode(other), self._names)
            self._parsed = fastavro.parse_schema(msgspec.json.decode(text), self._names)
        except Exception as error:  # Of fastavro's for what no schema may say; KeyError and others for nonsense.
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def reader(self, resolved_to: AvroSchema | None = None) -> Callable[[bytes], Any]:
        """Reads what this schema wrote, as values of the schema `resolved_to` if there is one."""
        written, wanted = self._parsed, None if resolved_to is None else resolved_to._parsed

        def read(body: bytes) -> Any:
            stream = io.BytesIO(body)
            try:
                value = fastavro.schemaless_reader(stream, written, wanted)
            except SchemaResolutionError as error:
                raise DecodeError(
                    "PEN0242",
                    f"$ can't be read as the schema of the ingress: {_short(error)}. Give its new fields a default, "
                    "or correct the producer.",
                ) from error
            except Exception as error:
                raise mismatch("$", "Avro", f"data that cannot be read: {_short(error)}") from error
            if stream.tell() < len(body):
                raise mismatch("$", "Avro", f"{len(body) - stream.tell()} bytes behind the end of the value")
            return value

        return read

    def writer(self) -> Callable[[Any], bytes]:
        """Writes plain data (msgpack's, decoded). Raises InvalidInput for what does not fit the schema."""
        check = _Compiler(self._names).check_of(self._parsed)

        def write(value: Any) -> bytes:
            stream = io.BytesIO()
            try:
                fastavro.schemaless_writer(stream, self._parsed, check(value))
            except _Misfit as misfit:
                got = "nothing" if misfit.value is _ABSENT else describe(misfit.value)
                raise _unfit(misfit.path, misfit.expected, got) from None
            except Exception as error:  # What only fastavro knows, such as the scale of a decimal.
                raise _unfit("$", "a value of the schema", _short(error)) from error
            return stream.getvalue()

        return write


def parsed_schema(text: str, what: str) -> AvroSchema:
    """The schema of a declaration. Raises ConfigurationError if it is none."""
    try:
        return AvroSchema(text)
    except ValueError as error:
        raise ConfigurationError(
            "PEN0141", f"{what} has a schema that is not Avro: {error}. Correct it; the whole text is needed."
        ) from error


def _unfit(path: str, expected: str, got: str) -> InvalidInput:
    return InvalidInput(
        "PEN0243",
        f"{path} expected {expected}, got {got}. Emit what the schema of the egress says, or register a schema that "
        "allows it.",
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# Checking a value against a schema.


_ABSENT = object()


class _Misfit(Exception):
    """A value that does not fit. The path is put together on the way out, so that it costs nothing otherwise."""

    def __init__(self, expected: str, value: object) -> None:
        super().__init__(expected)
        self.expected = expected
        self.value = value
        self.steps: list[str] = []

    @property
    def path(self) -> str:
        return "$" + "".join(reversed(self.steps))


class _Compiler:
    """Turns a schema into functions, once."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._named: dict[str, Check] = {}

    def check_of(self, schema: Any) -> Check:
        if isinstance(schema, list):
            return self._union(schema)
        if isinstance(schema, str):
            return _PRIMITIVES[schema] if schema in _PRIMITIVES else self._reference(schema)
        kind = schema["type"]
        logical = _LOGICAL.get((kind, schema.get("logicalType")))
        if logical is not None:
            return logical
        match kind:
            case "record" | "error":
                return self._record(schema)
            case "enum":
                return _among(schema["symbols"])
            case "array":
                return _array(self.check_of(schema["items"]))
            case "map":
                return _map(self.check_of(schema["values"]))
            case "fixed":
                return _fixed(schema["size"])
            case _:
                return self.check_of(kind)

    def _reference(self, name: str) -> Check:
        """The check of a named schema, which may be in the making: schemas may contain themselves."""

        def check(value: Any) -> Any:
            made = self._named.get(name)
            if made is None:
                made = self._named[name] = self.check_of(self._names[name])
            return made(value)

        return check

    def _record(self, schema: Any) -> Check:
        title = schema["name"]
        fields = [(field["name"], self.check_of(field["type"]), "default" in field) for field in schema["fields"]]
        known = frozenset(name for name, _, _ in fields)

        def check(value: Any) -> Any:
            if not isinstance(value, dict):
                raise _Misfit(f"record {title}", value)
            if not value.keys() <= known:
                extra = next(iter(value.keys() - known))
                misfit = _Misfit(f"no such field of record {title}", value[extra])
                misfit.steps.append(f".{extra}")
                raise misfit
            record = {}
            for name, check_field, optional in fields:
                try:
                    if name in value:
                        record[name] = check_field(value[name])
                    elif not optional:
                        raise _Misfit("a value", _ABSENT)
                except _Misfit as misfit:
                    misfit.steps.append(f".{name}")
                    raise
            return record

        return check

    def _union(self, schemas: list[Any]) -> Check:
        branches = [(self._record_name(schema), self.check_of(schema)) for schema in schemas]
        expected = " or ".join(_title(schema) for schema in schemas)
        alone = sum(name is not None for name, _ in branches) <= 1

        def check(value: Any) -> Any:
            deepest: _Misfit | None = None
            for name, check_branch in branches:
                try:
                    checked = check_branch(value)
                except _Misfit as misfit:
                    if misfit.steps and (deepest is None or len(misfit.steps) > len(deepest.steps)):
                        deepest = misfit
                else:
                    # Among several records fastavro is told which: two may fit, and this was the first.
                    return checked if alone or name is None else (name, checked)
            raise deepest or _Misfit(expected, value)

        return check

    def _record_name(self, schema: Any) -> str | None:
        named = self._names.get(schema) if isinstance(schema, str) else schema
        return named["name"] if isinstance(named, dict) and named.get("type") in ("record", "error") else None


def _title(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    return str(schema.get("logicalType") or schema.get("name") or _title(schema["type"]))


def _whole(expected: str, bits: int) -> Check:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def check(value: Any) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise _Misfit(expected, value)
        return value

    return check


def _of(expected: str, *types: type) -> Check:
    accepted = frozenset(types)

    def check(value: Any) -> Any:
        if type(value) not in accepted:
            raise _Misfit(expected, value)
        return value

    return check


def _among(symbols: Sequence[str]) -> Check:
    known = frozenset(symbols)

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise _Misfit(f"one of {', '.join(symbols)}", value)
        return value

    return check


def _fixed(size: int) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, bytes) or len(value) != size:
            raise _Misfit(f"{size} bytes", value)
        return value

    return check


def _array(check_item: Check) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, list):
            raise _Misfit("array", value)
        checked = []
        for index, item in enumerate(value):
            try:
                checked.append(check_item(item))
            except _Misfit as misfit:
                misfit.steps.append(f"[{index}]")
                raise
        return checked

    return check


def _map(check_value: Check) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit("map", value)
        checked = {}
        for name, item in value.items():
            if not isinstance(name, str):
                raise _Misfit("map with texts as keys", name)
            try:
                checked[name] = check_value(item)
            except _Misfit as misfit:
                misfit.steps.append(f".{name}")
                raise
        return checked

    return check


def _parsed(expected: str, parse: Callable[[str], Any], *, instead: Check | None = None) -> Check:
    """A text that `parse` understands, or what `instead` accepts."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            try:
                return parse(value)
            except (ValueError, ArithmeticError):
                raise _Misfit(expected, value) from None
        if instead is None:
            raise _Misfit(expected, value)
        return instead(value)

    return check


def _moment(value: Any) -> Any:
    """A time with a zone, which msgpack has; or the number that the schema would store."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value
    if type(value) is not int:
        raise _Misfit("a time with a zone", value)
    return _LONG(value)


def _local(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        raise ValueError("a time with a zone is not local")
    return moment


_INT = _whole("int", 32)
_LONG = _whole("long", 64)
_PRIMITIVES: dict[str, Check] = {
    "null": _of("null", type(None)),
    "boolean": _of("boolean", bool),
    "int": _INT,
    "long": _LONG,
    "float": _of("float", float, int),
    "double": _of("double", float, int),
    "string": _of("string", str),
    "bytes": _of("bytes", bytes),
}
_DECIMAL = _parsed("decimal", decimal.Decimal)
_LOCAL = _parsed("a time without a zone", _local, instead=_LONG)
_LOGICAL: dict[tuple[Any, Any], Check] = {
    ("int", "date"): _parsed("date", datetime.date.fromisoformat, instead=_INT),
    ("int", "time-millis"): _parsed("time", datetime.time.fromisoformat, instead=_INT),
    ("long", "time-micros"): _parsed("time", datetime.time.fromisoformat, instead=_LONG),
    ("long", "timestamp-millis"): _moment,
    ("long", "timestamp-micros"): _moment,
    ("long", "local-timestamp-millis"): _LOCAL,
    ("long", "local-timestamp-micros"): _LOCAL,
    ("bytes", "decimal"): _DECIMAL,
    ("fixed", "decimal"): _DECIMAL,
    ("string", "uuid"): _parsed("uuid", lambda text: str(uuid.UUID(text))),
}
"""What fastavro writes from Python's own types."""
