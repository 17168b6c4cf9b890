"""What users derive their messages and state from: `Message`, `State`, and how long values are kept
(`Expire`).

What always holds: a `State` can be made without arguments, since that is what an address has before its first
message; one in which every field has its default is written as `EMPTY_STATE`, for which the engine keeps no
row; tables and logs are no part of what is written, but rows of their own (`penstock.functions.tables`).
Stores nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, cached_property
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.expire import Expire
from penstock.functions.shapes import Shape, incompatibilities, required_fields
from penstock.functions.storage import Storage, Value
from penstock.functions.tables import CollectionStorage, Keys, Log, MemoryCollections, Table, keys_for
from penstock.functions.types import Codec, codec_for, type_text

__all__ = [
    "EMPTY_STATE",
    "CollectionSpec",
    "CollectionStorage",
    "Expire",
    "Log",
    "Message",
    "State",
    "Storage",
    "Table",
    "Value",
    "bind_collections",
    "check_state_class",
    "collections_of",
    "expirations_of",
    "flush_collections",
    "new_state",
    "state_incompatibilities",
    "state_shape",
    "storage_of",
]

S = TypeVar("S")

EMPTY_STATE: Final = b"\x80"
"""An empty msgpack map: a State in which every field has its default."""

_STORAGE_SLOT = "__storage__"
"""Where a state with collections keeps its storage. No field can have this name, nor one that users write."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes messages immutable unless they say otherwise.

    `frozen=True` on the base would do so as well, but type checkers then ask for it on every class derived from it.
    """

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, frozen: bool = True, **config: Any
    ) -> MessageMeta:
        return super().__new__(mcls, name, bases, namespace, frozen=frozen, **config)


class Message(msgspec.Struct, tag=True, metaclass=MessageMeta):
    """Base of messages: `class Delay(Message): minutes: float`.

    Immutable, and written with its class name in the field `type`, so that the members of a union are told
    apart. A function that takes a single type accepts data without that field. To have a field `type` of your
    own, move the tag: `class Alert(Message, tag_field="kind")`, the same for all members of a union.
    """


class CollectionSpec:
    """One `Table` or `Log` of a State class. Its types are looked up at first use: they may be defined later."""

    def __init__(self, name: str, kind: Literal["table", "log"], annotation: Any, module: str) -> None:
        self.name = name
        self.kind = kind
        self._annotation = annotation
        self._module = module

    @cached_property
    def keys(self) -> Keys:
        """How keys of a table are encoded. A log has none: its entries go by position."""
        assert self.kind == "table", "only tables have keys"
        return keys_for(self._arguments[0])

    @cached_property
    def values(self) -> Codec[Any]:
        """The codec of the values of a table, or the entries of a log."""
        return codec_for(self._arguments[-1])

    def open(self, storage: CollectionStorage) -> Table[Any, Any] | Log[Any]:
        """The collection itself, over the rows that `storage` has."""
        if self.kind == "table":
            return Table.bound(storage, self.name, self.keys, self.values)
        return Log.bound(storage, self.name, self.values)

    @cached_property
    def _arguments(self) -> tuple[Any, ...]:
        holder = type("holder", (), {"__annotations__": {self.name: self._annotation}, "__module__": self._module})
        annotation = get_type_hints(holder, include_extras=True)[self.name]
        if get_origin(annotation) is Annotated:
            raise ConfigurationError(
                "PEN0117",
                f"{self.name} is a {self.kind}, whose rows can't expire. Remove old rows in the handler, "
                f"for example from a message sent with ctx.send_after.",
            )
        arguments = get_args(annotation)
        if len(arguments) != (2 if self.kind == "table" else 1):
            wanted = "Table[str, int] = Table()" if self.kind == "table" else "Log[int] = Log()"
            raise ConfigurationError(
                "PEN0104",
                f"{self.name} is annotated as {type_text(annotation)}. Say what is in it: {self.name}: {wanted}.",
            )
        return arguments


class _CollectionField:
    """What stands in a State class where `Table()` or `Log()` was written."""

    __slots__ = ("spec",)

    def __init__(self, spec: CollectionSpec) -> None:
        self.spec = spec

    def __get__(self, state: Any, owner: type | None = None) -> Any:
        if state is None:
            return self
        own: dict[str, Any] = state.__dict__
        collection = own.get(self.spec.name)
        if collection is None:
            storage = own.setdefault(_STORAGE_SLOT, MemoryCollections())
            collection = own[self.spec.name] = self.spec.open(storage)
        return collection

    def __set__(self, state: Any, value: object) -> None:
        name = self.spec.name
        raise InvalidInput(
            "PEN0205",
            f"The {self.spec.kind} {name} can't be replaced: change what is in it, as in {name}.{self._way()}.",
        )

    def _way(self) -> str:
        return "update(...)" if self.spec.kind == "table" else "append(...)"


class StateMeta(msgspec.StructMeta):
    """Takes the collections out of a State class before msgspec makes fields of them."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> StateMeta:
        declared = {field: value for field, value in namespace.items() if isinstance(value, Table | Log)}
        if not declared:
            return super().__new__(mcls, name, bases, namespace, **config)
        annotations = _own_annotations(namespace)
        specs: dict[str, CollectionSpec] = {}
        for base in reversed(bases):
            specs.update(getattr(base, "__penstock_collections__", {}))
        for field, value in declared.items():
            kind: Literal["table", "log"] = "table" if isinstance(value, Table) else "log"
            specs[field] = CollectionSpec(field, kind, annotations.pop(field, None), namespace["__module__"])
            namespace[field] = _CollectionField(specs[field])
        namespace["__penstock_collections__"] = specs
        # The instance dictionary holds the opened collections; classes without any do not pay for one.
        return super().__new__(mcls, name, bases, namespace, **{"dict": True, **config})


def _own_annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body, as a dictionary in `namespace` whose changes msgspec sees."""
    if sys.version_info >= (3, 14) and "__annotations__" not in namespace:
        import annotationlib

        annotate = annotationlib.get_annotate_from_class_namespace(namespace)
        if annotate is not None:
            namespace["__annotations__"] = annotationlib.call_annotate_function(
                annotate, annotationlib.Format.FORWARDREF
            )
            namespace.pop("__annotate_func__", None)
            namespace.pop("__annotate__", None)
    annotations: dict[str, Any] = namespace.setdefault("__annotations__", {})
    return annotations


class State(msgspec.Struct, omit_defaults=True, metaclass=StateMeta):
    """Base of the state of a function: `class Airport(State): departures: int = 0`.

    Every field has a default: the value it has before the first message. Adding a field is free; another
    change needs a migration. Fields may be a `Table` or a `Log`, and may expire. Two states are equal when
    their fields are, whatever their tables and logs contain.
    """

    __penstock_collections__: ClassVar[dict[str, CollectionSpec]] = {}


def collections_of(cls: Any) -> dict[str, CollectionSpec]:
    """The tables and logs of a state class, by name; empty for every class that is no State."""
    specs: dict[str, CollectionSpec] = getattr(cls, "__penstock_collections__", {})
    return specs


def bind_collections(state: object, storage: CollectionStorage) -> None:
    """Let the tables and logs of `state` read and write `storage`. To be called once the state was decoded."""
    if collections_of(type(state)):
        state.__dict__.clear()
        state.__dict__[_STORAGE_SLOT] = storage


def storage_of(state: object) -> CollectionStorage | None:
    """The storage that `bind_collections` gave to `state`; None for a state that is not bound."""
    storage: CollectionStorage | None = state.__dict__.get(_STORAGE_SLOT) if collections_of(type(state)) else None
    return storage


def flush_collections(state: object) -> None:
    """Write back the table values that were changed in place. To be called when the handler has returned."""
    if collections_of(type(state)):
        for collection in state.__dict__.values():
            if isinstance(collection, Table):
                collection.flush()


def new_state(cls: type[S]) -> S:
    """The state of an address that has none yet."""
    return cls()


def check_state_class(cls: Any) -> None:
    """Raise ConfigurationError unless `cls` can be the state of a function."""
    name = type_text(cls)
    required = required_fields(codec_for(cls).shape())
    if required:
        raise ConfigurationError(
            "PEN0104",
            f"State {name} has no default for {', '.join(required)}. Before its first message an address has none: "
            f"give every field a default, for example {required[0]}: ... = ...",
        )
    try:
        new_state(cls)
    except TypeError as error:
        raise ConfigurationError(
            "PEN0104", f"{name} can't be state: {name}() fails with {error}. Derive from State and give all defaults."
        ) from None
    for spec in collections_of(cls).values():
        spec.open(MemoryCollections())  # Looks its types up, which refuses those that can't be written.
    expirations_of(cls)


def state_shape(cls: Any) -> Shape:
    """What the stored state of `cls` looks like, collections included, as plain data to be kept with a
    checkpoint.
    """
    collections = {
        name: {"kind": spec.kind, "values": spec.values.shape()}
        | ({"keys": spec.keys.shape} if spec.kind == "table" else {})
        for name, spec in collections_of(cls).items()
    }
    return {"fields": codec_for(cls).shape(), "collections": collections}


def state_incompatibilities(old: Shape, cls: Any) -> list[str]:
    """Why state stored under `old`, a `state_shape`, can't be read as `cls`: one sentence each."""
    new = state_shape(cls)
    found = incompatibilities(old["fields"], new["fields"])
    for name, was in old["collections"].items():
        now = new["collections"].get(name)
        if now is None or now["kind"] != was["kind"]:
            found.append(f"{name} was a {was['kind']} and is {'gone' if now is None else 'a ' + now['kind']} now")
            continue
        for part in ("keys", "values"):
            if part in was:
                found.extend(f"the {part} of {name}: {each}" for each in incompatibilities(was[part], now[part]))
    return found


@cache
def expirations_of(cls: Any) -> dict[str, Expire]:
    """The fields of a state class that expire."""
    if not hasattr(cls, "__annotations__"):
        return {}
    hints = get_type_hints(cls, include_extras=True)
    return {field: expire for field, hint in hints.items() if (expire := _expire_of(field, hint)) is not None}


def _expire_of(field: str, hint: Any) -> Expire | None:
    while get_origin(hint) in (Required, NotRequired):
        hint = get_args(hint)[0]
    found: list[Expire] = []
    if get_origin(hint) is Annotated:
        hint, *metadata = get_args(hint)
        found = [each for each in metadata if isinstance(each, Expire)]
    if len(found) > 1 or any(_expires_within(hint)):
        raise ConfigurationError(
            "PEN0117",
            f"Expire stands inside the type of {field}, or twice. It applies to the field as a whole: "
            f"{field}: Annotated[..., Expire(...)].",
        )
    return found[0] if found else None


def _expires_within(hint: Any) -> Iterator[bool]:
    if get_origin(hint) is Annotated:
        yield any(isinstance(each, Expire) for each in hint.__metadata__)
    for argument in get_args(hint):
        yield from _expires_within(argument)
