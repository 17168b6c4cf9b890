"""Turns the records of a Kafka ingress into messages to functions.

What always holds: every record becomes messages or an `InvalidInput` that says where it stands and what is wrong with
it, never both; a record that is refused affects no other. One whose schema is not known yet is neither: `MissingSchema`
passes through, and the record is tried again. Reads nothing and sends nothing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from penstock.errors import ConfigurationError, DecodeError, InvalidInput, PenstockError
from penstock.functions.kafka import KafkaIngress
from penstock.functions.types import Codec
from penstock.router.formats import Decoder, MissingSchema, decoder_for
from penstock.router.kafka_records import Columns, Headers
from penstock.router.routing import (
    Resolve,
    Routed,
    by_key,
    by_router,
    check_accepted,
    check_field,
    encoder_of,
    rejected,
)
from penstock.router.schema_registry import Registries

KEY_HEADER = "kafka.key"
"""Header of a dead letter that tells the key of the record it was."""


class Keyed(NamedTuple):
    """Records as messages to one function, each under the id that its key is: the fast form."""

    typename: str
    ids: list[str]
    payloads: list[bytes]


class KafkaRouter:
    """The compiled declaration of one ingress. Get one from `compile`."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        messages_of: Callable[[Any], list[Routed]] | None,
        typename: str,
        encode: Callable[[Any], bytes],
        as_is: bool,
        tombstones: bool,
        message_bytes_max: int,
    ) -> None:
        self.decoder = decoder
        self._messages_of = messages_of
        """Gives the messages of a value; None if the key of a record is the id."""
        self._typename = typename
        self._encode = encode
        self._as_is = as_is
        """Whether the payload is the value of the record, so that it need not be decoded here."""
        self._tombstones = tombstones
        self._bytes_max = message_bytes_max

    @classmethod
    def compile(
        cls,
        name: str,
        spec: KafkaIngress,
        *,
        to: Any = None,
        key: str | Callable[[Any], Any] | None = None,
        router: Callable[[Any], Iterable[Sequence[Any]]] | None = None,
        value_codec: Codec[Any] | None = None,
        resolve: Resolve,
        registries: Registries,
        message_bytes_max: int,
    ) -> KafkaRouter:
        """Check the declaration of the ingress `name` and prepare it.

        Either `to` is the target of every record, under the id that its key is, or that `key` gives; or `router` gives
        any number of `(target, id, message)` or `(target, id, message, headers)` for a value. `value_codec` is that of
        the ingress' type; without one, values become what the target takes.
        """
        _check_combination(name, to=to, key=key, router=router)
        messages_of: Callable[[Any], list[Routed]] | None = None
        encode: Callable[[Any], bytes] = _routers_encode
        typename, as_is = "", False
        if router is not None:
            messages_of = by_router(router, resolve)
        else:
            typename, target_codec = resolve(to)
            value_codec = value_codec or target_codec
            check_accepted(name, value_codec, typename, target_codec)
            encode = encoder_of(typename, value_codec, target_codec)
            if key is not None:
                check_field(name, key, value_codec)
                messages_of = by_key(typename, key, encode)
            if spec.tombstones == "deliver":
                _check_takes_none(name, typename, target_codec)
            as_is = key is None and value_codec is target_codec
        decoder = decoder_for(spec.format, value_codec, registries)
        return cls(
            decoder=decoder,
            messages_of=messages_of,
            typename=typename,
            encode=encode,
            as_is=as_is and decoder.passthrough,
            tombstones=spec.tombstones == "deliver",
            message_bytes_max=message_bytes_max,
        )

    def keyed(self, taken: Columns) -> Keyed | None:
        """All these records at once, if all are acceptable, have no headers and go by their keys.

        Whole columns are checked in C, and again one by one if anything is wrong with any.
        """
        if self._messages_of is not None or taken.headers is not None:
            return None
        ids = ids_of(taken.keys)
        if ids is None:
            return None
        try:
            payloads = self._payloads(taken.values)
            if max(map(len, payloads)) > self._bytes_max:
                return None
        except Exception:  # noqa: BLE001  # `route` does it again, record by record, to say what failed.
            return None
        return Keyed(self._typename, ids, payloads)

    def _payloads(self, values: Sequence[bytes | None]) -> Any:
        """Raises whatever is quickest to raise, if not here then in `len`."""
        if self._as_is:
            return values
        encode, decode = self._encode, self.decoder.decode
        return [encode(decode(_not_none(value), ())[0]) for value in values]

    def route(self, key: bytes | None, value: bytes | None, headers: Headers, place: str) -> list[Routed]:
        """The messages of one record that stands at `place`.

        Raises InvalidInput if it has to be refused, and MissingSchema if it has to be tried again.
        """
        try:
            messages = self._route(key, value, headers)
        except MissingSchema:
            raise
        except DecodeError as error:
            raise DecodeError(
                error.code, rejected(error.message, place), path=error.path, expected=error.expected, got=error.got
            ) from error
        except PenstockError as error:
            raise InvalidInput(error.code, rejected(error.message, place)) from error
        except Exception as error:  # Of an encoder: a value that a program made may hold what no bytes can.
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

    def _route(self, key: bytes | None, value: bytes | None, headers: Headers) -> list[Routed]:
        id = id_of(key) if self._messages_of is None else ""
        if value is None and not self._tombstones:
            raise InvalidInput("PEN0731", "it has no value: a tombstone, which deletes its key from a compacted topic.")
        if self._as_is and value is not None:
            return [(self._typename, id, value, texts_of(headers) if headers else None)]
        decoded, left = (None, headers) if value is None else self.decoder.decode(value, headers)
        texts = texts_of(left) if left else None
        if self._messages_of is None:
            return [(self._typename, id, self._encode(decoded), texts)]
        messages = self._messages_of(decoded)
        if texts:
            return [(typename, id, data, {**texts, **(own or {})}) for typename, id, data, own in messages]
        return messages


def id_of(key: bytes | None) -> str:
    """The id that the key of a record is. Raises InvalidInput."""
    if not key:
        what = "no key" if key is None else "an empty key"
        raise InvalidInput("PEN0730", f"it has {what}, so no address. Give the ingress key= or a router.")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "PEN0730",
            f"its key {key[:100]!r} is no text in UTF-8 ({error.reason} at byte {error.start}), so no id. Give the "
            "ingress key= or a router.",
        ) from error


def ids_of(keys: Sequence[bytes | None]) -> list[str] | None:
    """The ids that all these keys are; None if any is none. Decoded together, which costs a third."""
    try:
        ids = b"\n".join(keys).decode().split("\n")  # type: ignore[arg-type]  # One that is None raises.
        if len(ids) != len(keys):  # A key holds a line end.
            ids = [key.decode() for key in keys if key is not None]
    except (TypeError, UnicodeDecodeError):
        return None
    return ids if ids and all(ids) else None


def texts_of(headers: Headers) -> dict[str, str]:
    """The headers of a record as those of a message: see `KafkaIngress`."""
    texts: dict[str, str] = {}
    for name, data in headers:
        unique, number = name, 1
        while unique in texts:
            number += 1
            unique = f"{name}#{number}"
        texts[unique] = text_of(data)
    return texts


def key_and_headers(key: bytes | None, headers: Headers) -> dict[str, str]:
    """What a dead letter keeps of a record beside its value."""
    return texts_of(headers) | ({KEY_HEADER: text_of(key)} if key is not None else {})


def text_of(data: bytes | None) -> str:
    """Bytes that usually are text."""
    if not data:
        return ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"base64:{b64encode(data).decode()}"


def _routers_encode(value: Any) -> bytes:
    raise AssertionError("a router encodes what it routes")


def _not_none(value: bytes | None) -> bytes:
    if value is None:
        raise TypeError
    return value


def _check_combination(name: str, *, to: Any, key: Any, router: Any) -> None:
    if (to is None) == (router is None):
        given = "neither" if to is None else "both"
        raise ConfigurationError(
            "PEN0144", f"Ingress {name} has {given} of to= and router=. Name the one function, or give a router."
        )
    if router is not None and key is not None:
        raise ConfigurationError(
            "PEN0144",
            f"Ingress {name} has a key besides its router. A router gives the ids itself: remove one of them.",
        )


def _check_takes_none(name: str, typename: str, codec: Codec[Any]) -> None:
    if codec.types and type(None) not in codec.types:
        raise ConfigurationError(
            "PEN0145",
            f'Ingress {name} has tombstones="deliver", but {typename} takes {codec.name}, which is never None. Add '
            "None to the annotation of its message.",
        )
