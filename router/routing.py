"""Turns the records of one ingress into messages to functions.

What always holds: every record becomes messages or an `InvalidInput` that says where it stands and what is wrong
with it, never both; a record that is refused affects no other; an id is a non-empty text. What is wrong with the
*declaration* (an unknown field, a function that takes another type) is found when it is compiled, before any record.
Reads nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import msgspec

from penstock.errors import ConfigurationError, DecodeError, InvalidInput, PenstockError
from penstock.functions.app import App, Ingress
from penstock.functions.io import FileIngress, GeneratorIngress, IngressSpec
from penstock.functions.outlets import resolve_function
from penstock.functions.types import Codec, codec_for
from penstock.ids import is_utf8
from penstock.router.lines import BadRecord

Routed: TypeAlias = tuple[str, str, bytes, Mapping[str, str] | None]
"""One message: typename, id, payload, headers. A plain tuple, because each record makes at least one."""

Resolve: TypeAlias = Callable[[Any], tuple[str, Codec[Any]]]
"""From what a user names as a target (a function or a typename) to its typename and the codec of its messages.

Raises a PenstockError if there is no such function.
"""


class RoutedChunk(NamedTuple):
    """What became of the records of one chunk."""

    messages: list[Routed]
    owners: Sequence[int]
    """For each message, the index of its record in the chunk. In ascending order; one record may have several."""
    errors: list[tuple[int, InvalidInput]]
    """The records that were refused, by index."""


class IngressRouter:
    """The compiled declaration of one ingress. Get one from `compile`."""

    def __init__(
        self,
        *,
        decode: Callable[[Any], Any],
        explain: Callable[[Exception, Any], DecodeError],
        messages_of: Callable[[Any], list[Routed]],
        passthrough: str | None,
        message_bytes_max: int,
    ) -> None:
        self._decode = decode
        self._explain = explain
        self._messages_of = messages_of
        self._passthrough = passthrough
        """The typename that records go to as they are; None if they are decoded and routed."""
        self._bytes_max = message_bytes_max

    @classmethod
    def compile(
        cls,
        name: str,
        spec: IngressSpec,
        *,
        to: Any = None,
        key: str | Callable[[Any], Any] | None = None,
        router: Callable[[Any], Iterable[Sequence[Any]]] | None = None,
        value_codec: Codec[Any] | None = None,
        resolve: Resolve,
        message_bytes_max: int,
    ) -> IngressRouter:
        """Check the declaration of the ingress `name` and prepare it.

        Either `to` is the target of every record and `key` its id: the name of a field, or a function of the decoded
        value; or `router` gives any number of `(target, id, message)` or `(target, id, message, headers)` for a
        value. `value_codec` is that of the ingress' type; without one, records become what the target takes.
        """
        _check_combination(name, spec, to=to, key=key, router=router)
        if router is not None:
            messages_of = by_router(router, resolve)
            passthrough = None
        else:
            typename, target_codec = resolve(to)
            if isinstance(spec, GeneratorIngress) and spec.format == "msgpack":
                passthrough = typename
                messages_of = _by_pair(typename)
            else:
                value_codec = value_codec or target_codec
                check_accepted(name, value_codec, typename, target_codec)
                check_field(name, key, value_codec)
                passthrough = None
                messages_of = by_key(typename, key, encoder_of(typename, value_codec, target_codec))
        return cls(
            decode=_decoder(spec, value_codec) if passthrough is None else _as_it_is,
            explain=_explainer(value_codec),
            messages_of=messages_of,
            passthrough=passthrough,
            message_bytes_max=message_bytes_max,
        )

    def route(self, record: Any, place: str) -> list[Routed]:
        """The messages of one record that stands at `place`. Raises InvalidInput if it has to be refused."""
        if type(record) is BadRecord:
            raise InvalidInput("PEN0202", rejected(f"{record.reason}.", place))
        try:
            value = self._decode(record)
        except Exception as error:  # Codecs raise what is quickest; a type may run user code.
            explained = self._explain(error, record)
            raise DecodeError(
                explained.code,
                rejected(explained.message, place),
                path=explained.path,
                expected=explained.expected,
                got=explained.got,
            ) from error
        try:
            messages = self._messages_of(value)
        except PenstockError as error:
            raise InvalidInput(error.code, rejected(error.message, place)) from error
        except Exception as error:  # Of an encoder: a record that a program made may hold what no bytes can.
            problem = f"it can't be encoded: {type(error).__name__}: {error}."
            raise InvalidInput("PEN0209", rejected(problem, place)) from error
        for typename, id, payload, _ in messages:
            if len(payload) > self._bytes_max:
                problem = (
                    f'message of {len(payload):,} bytes to {typename} "{id}" exceeds message_bytes_max = '
                    f"{self._bytes_max:,}."
                )
                raise InvalidInput("PEN0204", rejected(problem, place))
        return messages

    def route_chunk(self, records: Sequence[Any], first: int, locate: Callable[[int], str]) -> RoutedChunk:
        """The messages of consecutive records, of which the first has number `first`; `locate` tells where one
        stands."""
        if (column := self.column(records)) is not None:
            typename, ids, payloads = column
            passed: list[Routed] = list(zip(repeat(typename), ids, payloads, repeat(None)))  # `repeat` has no end.
            return RoutedChunk(passed, range(len(passed)), [])
        messages: list[Routed] = []
        owners: list[int] = []
        errors: list[tuple[int, InvalidInput]] = []
        decode, messages_of, bytes_max = self._decode, self._messages_of, self._bytes_max
        for index, record in enumerate(records):
            try:
                if type(record) is not BadRecord:
                    routed = messages_of(decode(record))
                    for message in routed:
                        if len(message[2]) > bytes_max:
                            break
                    else:
                        messages += routed
                        owners += [index] * len(routed)
                        continue
            except Exception:  # noqa: BLE001  # Done again below, step by step, to say what failed.
                pass
            try:
                routed = self.route(record, locate(first + index))
            except InvalidInput as error:
                errors.append((index, error))
            else:
                messages += routed
                owners += [index] * len(routed)
        return RoutedChunk(messages, owners, errors)

    def column(self, records: Sequence[Any]) -> tuple[str, Sequence[str], Sequence[bytes]] | None:
        """Typename, ids and payloads, if all records go to one function as they are and are acceptable.

        Whole columns are checked at once, in C: the fastest way in.
        """
        if self._passthrough is None:
            return None
        try:
            ids, payloads = zip(*records, strict=True)
        except (TypeError, ValueError):
            return None
        if (
            set(map(type, ids)) == {str}
            and set(map(type, payloads)) == {bytes}
            and all(ids)
            and is_utf8("".join(ids))
            and max(map(len, payloads)) <= self._bytes_max
        ):
            return self._passthrough, ids, payloads
        return None


# From a record to a value.


def _decoder(spec: IngressSpec, codec: Codec[Any] | None) -> Callable[[Any], Any]:
    if _gives_json(spec):
        return msgspec.json.decode if codec is None else codec.decode_json
    if codec is None:
        return _as_it_is
    if isinstance(spec, FileIngress):
        return codec.convert
    types, convert = frozenset(codec.types), codec.convert

    def accept(record: Any) -> Any:
        return record if type(record) in types else convert(record)

    return accept


def _gives_json(spec: IngressSpec) -> bool:
    return isinstance(spec, FileIngress | GeneratorIngress) and spec.format in ("jsonl", "json")


def _as_it_is(record: Any) -> Any:
    return record


def _explainer(codec: Codec[Any] | None) -> Callable[[Exception, Any], DecodeError]:
    if codec is not None:
        return codec.explain

    def explain(error: Exception, record: Any) -> DecodeError:
        return DecodeError("PEN0201", f"it is no JSON: {error}.")

    return explain


# From a value to messages.


def by_key(
    typename: str, key: str | Callable[[Any], Any] | None, encode: Callable[[Any], bytes]
) -> Callable[[Any], list[Routed]]:
    assert key is not None
    key_of = _field_reader(key) if isinstance(key, str) else _guarded(key)

    def messages_of(value: Any) -> list[Routed]:
        id = key_of(value)
        if type(id) is not str or not id or not id.isascii():
            id = checked_id(id)
        return [(typename, id, encode(value), None)]

    return messages_of


def _field_reader(name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            return value[name] if isinstance(value, dict) else getattr(value, name)
        except (KeyError, AttributeError):
            raise InvalidInput("PEN0203", f"it has no field {name!r}, which is the key.") from None

    return read


def _guarded(key: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            return key(value)
        except Exception as error:
            raise InvalidInput(
                "PEN0203", f"the key function {_name_of(key)} raised {type(error).__name__}: {error}."
            ) from error

    return read


def by_router(router: Callable[[Any], Iterable[Sequence[Any]]], resolve: Resolve) -> Callable[[Any], list[Routed]]:
    encoders: dict[str, Callable[[Any], bytes]] = {}

    def route_one(target: Any, id: Any, message: Any, headers: Mapping[str, str] | None = None) -> Routed:
        typename, codec = resolve(target)
        encode = encoders.get(typename)
        if encode is None:
            encode = encoders[typename] = encoder_of(typename, None, codec)
        for name, text in headers.items() if headers else ():
            if not (is_utf8(name) and is_utf8(text)):
                raise InvalidInput("PEN0209", f"its header {name!r} is {text!r}, which is no text that UTF-8 can hold.")
        return (typename, checked_id(id), encode(message), headers)

    def messages_of(value: Any) -> list[Routed]:
        try:
            return [route_one(*route) for route in router(value)]
        except PenstockError:
            raise
        except Exception as error:
            raise InvalidInput(
                "PEN0207", f"the router {_name_of(router)} raised {type(error).__name__}: {error}."
            ) from error

    return messages_of


def _by_pair(typename: str) -> Callable[[Any], list[Routed]]:
    def messages_of(record: Any) -> list[Routed]:
        if not isinstance(record, tuple) or len(record) != 2 or type(record[1]) is not bytes:
            raise InvalidInput(
                "PEN0201", f"expected a pair of an id and the bytes of a message, got {type(record).__name__}."
            )
        return [(typename, checked_id(record[0]), record[1], None)]

    return messages_of


def checked_id(id: Any) -> str:
    """`id` as the text it is to be; numbers are written out. Raises InvalidInput for anything else."""
    if type(id) is str and id:
        if not is_utf8(id):
            raise InvalidInput("PEN0209", f"its key is {id!r}, which is no text that UTF-8 can hold.")
        return id
    if type(id) is int:
        return str(id)
    got = "an empty text" if id == "" else "None" if id is None else f"{type(id).__name__} {id!r}"
    raise InvalidInput("PEN0203", f"its key is {got}, not a text or a whole number.")


def compile_router(app: App, ingress: Ingress, message_bytes_max: int) -> IngressRouter:
    """Where the records of an ingress go. Raises ConfigurationError for a route that makes no sense."""
    return IngressRouter.compile(
        ingress.name,
        ingress.spec,
        to=ingress.to,
        key=ingress.key,
        router=ingress.router,
        value_codec=codec_for(ingress.spec.type) if ingress.spec.type is not None else None,
        resolve=partial(resolve_function, app),
        message_bytes_max=message_bytes_max,
    )


def encoder_of(typename: str, value_codec: Codec[Any] | None, target_codec: Codec[Any]) -> Callable[[Any], bytes]:
    encode = target_codec.encode
    if value_codec is target_codec:
        return encode
    types, convert, explain = frozenset(target_codec.types), target_codec.convert, target_codec.explain

    def checked(value: Any) -> bytes:
        if types and type(value) not in types:
            try:
                value = convert(value)
            except Exception as error:
                explained = explain(error, value)
                raise InvalidInput(explained.code, f"{typename} can't take it: {explained.message}") from error
        return encode(value)

    return checked


def rejected(problem: str, place: str) -> str:
    return f"Record rejected: {problem} Read from {place}; nothing else was affected."


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


# What is wrong with a declaration.


def _check_combination(name: str, spec: IngressSpec, *, to: Any, key: Any, router: Any) -> None:
    if (to is None) == (router is None):
        given = "neither" if to is None else "both"
        raise ConfigurationError(
            "PEN0144", f"Ingress {name} has {given} of to= and router=. Name the one function, or give a router."
        )
    pairs = isinstance(spec, GeneratorIngress) and spec.format == "msgpack"
    if router is not None and (pairs or key is not None):
        what = "encoded messages, which a router can't look into" if pairs else "a key besides its router"
        raise ConfigurationError(
            "PEN0144",
            f"Ingress {name} has {what}. A router gives the ids itself, from decoded values: remove one of them.",
        )
    if router is None and pairs == (key is not None):
        remedy = "Remove key=: the pairs hold the ids" if pairs else 'Give key="field", or a function of the value'
        raise ConfigurationError("PEN0144", f"Ingress {name} has key={key!r}. {remedy}.")


def check_accepted(name: str, value: Codec[Any], typename: str, target: Codec[Any]) -> None:
    if value.types and target.types and not set(value.types) <= set(target.types):
        raise ConfigurationError(
            "PEN0145",
            f"Ingress {name} reads {value.name}, but {typename} takes {target.name}. Give the ingress that type, or "
            f"add {value.name} to the annotation of {typename}.",
        )


def check_field(name: str, key: object, codec: Codec[Any]) -> None:
    if not isinstance(key, str):
        return
    for cls in codec.types:
        if cls not in _OPEN_TYPES and not _has_field(cls, key):
            raise ConfigurationError(
                "PEN0144",
                f"Ingress {name} has key={key!r}, but {cls.__name__} has no such field. Name one of its fields.",
            )


_OPEN_TYPES = (dict, object)
"""Classes whose values have fields that the class does not tell."""


def _has_field(cls: type, name: str) -> bool:
    return hasattr(cls, name) or any(name in getattr(base, "__annotations__", ()) for base in cls.__mro__)
