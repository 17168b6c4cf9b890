"""The shape of a type: the names, types and defaults that decide whether bytes written before can be read
now.

A shape is plain data (it is stored with each checkpoint) and refers to records by name, so recursive types
are finite. What always holds: equal declarations have equal shapes in every process and Python version; the
name of a class, or the module it lives in, is no part of compatibility. Knows nothing of migrations: it says
what needs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec
from msgspec import inspect as mi

Shape = dict[str, Any]
"""`{"type": T, "definitions": {name: record}}`, where T is the text of a simple type, a list such as
`["list", T]`, `["union", T, ...]` or `["choice", name, value, ...]`, or a reference `{"ref": name}`."""

_CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz")


def shape_of(annotation: Any) -> Shape:
    """The shape of any type that msgspec can write."""
    builder = _Builder()
    return {"type": builder.type_of(mi.type_info(annotation)), "definitions": builder.definitions}


def incompatibilities(old: Shape, new: Shape) -> list[str]:
    """Why bytes of shape `old` can't be read as `new`, one sentence each.

    A new field with a default is fine, and so is a further alternative in a union or a further choice of an
    enum. A removed field, another type and a lost default are not; neither is another default where defaults
    are not written down, since all values that had the old one would change silently.
    """
    comparison = _Comparison(old, new)
    comparison.compare(old["type"], new["type"], "")
    return comparison.found


def required_fields(shape: Shape) -> list[str]:
    """The fields of a record that have no default; empty for what is no record."""
    match shape["type"]:
        case {"ref": name}:
            fields = shape["definitions"][name]["fields"]
            return [field for field, spec in fields.items() if not _default_of(spec)]
        case _:
            return []


def child_types(node: mi.Type) -> Iterator[mi.Type]:
    """The types directly inside `node`, fields included."""
    match node:
        case mi.UnionType(types=children) | mi.TupleType(item_types=children):
            yield from children
        case mi.DictType():
            yield node.key_type
            yield node.value_type
        case mi.Metadata():
            yield node.type
        case mi.ListType() | mi.SetType() | mi.FrozenSetType() | mi.VarTupleType() | mi.CollectionType():
            yield node.item_type
        case mi.StructType() | mi.DataclassType() | mi.TypedDictType() | mi.NamedTupleType():
            for field in node.fields:
                yield field.type
        case _:
            return


class _Builder:
    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def type_of(self, node: mi.Type) -> Any:
        match node:
            case mi.Metadata():
                return self.type_of(node.type)
            case mi.UnionType():
                alternatives = [self.type_of(alternative) for alternative in _merged(node.types)]
                return (
                    ["union", *sorted(alternatives, key=msgspec.json.encode)] if alternatives[1:] else alternatives[0]
                )
            case mi.EnumType():
                return ["choice", node.cls.__name__, *sorted((member.value for member in node.cls), key=repr)]
            case mi.LiteralType():
                return ["choice", "Literal", *sorted(node.values, key=repr)]
            case mi.TupleType():
                return ["tuple", *map(self.type_of, node.item_types)]
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType() | mi.NamedTupleType():
                return self._record(node)
            case mi.CustomType():
                return f"{node.cls.__module__}.{node.cls.__qualname__}"
            case _:
                return self._simple(node)

    def _simple(self, node: mi.Type) -> Any:
        kind = type(node).__name__.removesuffix("Type").lower() + _constraints(node)
        children = [self.type_of(child) for child in child_types(node)]
        return [kind, *children] if children else kind

    def _record(self, node: mi.StructType | mi.DataclassType | mi.TypedDictType | mi.NamedTupleType) -> Any:
        if node.cls in self._names:
            return {"ref": self._names[node.cls]}
        plain = getattr(node.cls, "__name__", str(node.cls))
        name = plain if plain not in self.definitions else f"{plain}#{len(self.definitions)}"
        self._names[node.cls] = name
        record: dict[str, Any] = {"fields": {}}
        self.definitions[name] = record
        if isinstance(node, mi.StructType):
            config = getattr(node.cls, "__struct_config__", None)
            if config is not None and config.omit_defaults:
                record["omits_defaults"] = True
            if node.tag is not None:
                record["tag"] = [node.tag_field, node.tag]
        if isinstance(node, mi.NamedTupleType) or (isinstance(node, mi.StructType) and node.array_like):
            record["order"] = [field.encode_name for field in node.fields]
        for field in node.fields:
            record["fields"][field.encode_name] = {"type": self.type_of(field.type), **_default(field)}
        return {"ref": name}


def _merged(alternatives: Iterable[mi.Type]) -> list[mi.Type]:
    """The alternatives of a union with its literals in one: `Literal["a"] | Literal["b"]` is `Literal["a", "b"]`."""
    merged = [each for each in alternatives if not isinstance(each, mi.LiteralType)]
    values = [value for each in alternatives if isinstance(each, mi.LiteralType) for value in each.values]
    return [*merged, mi.LiteralType(tuple(values))] if values else merged


def _constraints(node: mi.Type) -> str:
    limits = [(name, getattr(node, name, None)) for name in _CONSTRAINTS]
    text = ", ".join(f"{name}={limit!r}" for name, limit in limits if limit is not None)
    return f"({text})" if text else ""


def _default(field: mi.Field) -> dict[str, Any]:
    """What the field is when nothing is written: a value, the name of what makes it, or that it may be
    missing.
    """
    if field.required:
        return {}
    if field.default_factory is not msgspec.NODEFAULT:
        factory = field.default_factory
        if factory in (list, set, dict, frozenset, tuple, bytearray):
            return {"default": _plain(factory())}
        return {"factory": getattr(factory, "__qualname__", type(factory).__qualname__)}
    if field.default is msgspec.NODEFAULT:
        return {"absent": True}
    return {"default": _plain(field.default)}


def _plain(value: object) -> Any:
    """`value` as it is once written and read: a tuple comes back as a list, and a set has no order of its own."""
    builtins = msgspec.to_builtins(value, str_keys=True, enc_hook=_name_of_class, order="deterministic")
    return msgspec.msgpack.decode(msgspec.msgpack.encode(builtins))


def _name_of_class(value: object) -> str:
    return type(value).__qualname__


class _Comparison:
    """One walk over two shapes side by side."""

    def __init__(self, old: Shape, new: Shape) -> None:
        self.found: list[str] = []
        self._old = old["definitions"]
        self._new = new["definitions"]
        self._seen: set[tuple[str, str]] = set()

    def compare(self, old: Any, new: Any, path: str) -> None:
        if new == "any":
            return
        olds, news = _alternatives(old), _alternatives(new)
        if len(olds) == len(news) == 1:
            self._compare_single(olds[0], news[0], path)
            return
        for alternative in olds:
            heir = next((candidate for candidate in news if self._same_branch(alternative, candidate)), None)
            if heir is None:
                self._changed(old, new, path)
                return
            self._compare_single(alternative, heir, path)

    def _compare_single(self, old: Any, new: Any, path: str) -> None:
        match old, new:
            case {"ref": old_name}, {"ref": new_name}:
                self._compare_records(old_name, new_name, path)
            case ["choice", _, *old_values], ["choice", _, *new_values]:
                self.found.extend(
                    f"{path or 'it'} could be {value!r}, which is no choice now"
                    for value in old_values
                    if value not in new_values
                )
            case [old_kind, *old_items], [new_kind, *new_items] if (old_kind, len(old_items)) == (
                new_kind,
                len(new_items),
            ):
                for old_item, new_item in zip(old_items, new_items, strict=True):
                    self.compare(old_item, new_item, f"{path}[]")
            case _ if old != new:
                self._changed(old, new, path)

    def _compare_records(self, old_name: str, new_name: str, path: str) -> None:
        if (old_name, new_name) in self._seen:
            return
        self._seen.add((old_name, new_name))
        old, new = self._old[old_name], self._new[new_name]
        old_tag, new_tag = old.get("tag"), new.get("tag")
        old_order, new_order = old.get("order"), new.get("order")
        if (old_tag and new_tag and old_tag != new_tag) or (old_order is None) != (new_order is None):
            self._changed({"ref": old_name}, {"ref": new_name}, path)
            return
        if old_order is not None and new_order[: len(old_order)] != old_order:
            self.found.append(
                f"{path or old_name} is written by position, and the order was {', '.join(old_order)} "
                f"and is {', '.join(new_order)} now"
            )
        self._compare_fields(old, new, path)

    def _compare_fields(self, old: Shape, new: Shape, path: str) -> None:
        for name, field in old["fields"].items():
            inner = f"{path}.{name}" if path else name
            if name not in new["fields"]:
                self.found.append(f"{inner} was {self._text(field['type'], self._old)} and is gone now")
                continue
            heir = new["fields"][name]
            self.compare(field["type"], heir["type"], inner)
            old_default, new_default = _default_of(field), _default_of(heir)
            if old_default and not new_default:
                self.found.append(f"{inner} could be left out and is required now")
            elif old.get("omits_defaults") and old_default != new_default:
                self.found.append(
                    f"{inner} had the default {_default_text(field)}, which is not written down, "
                    f"and has {_default_text(heir)} now"
                )
        for name, field in new["fields"].items():
            if name not in old["fields"] and not _default_of(field):
                self.found.append(f"{f'{path}.{name}' if path else name} is new and has no default")

    def _same_branch(self, old: Any, new: Any) -> bool:
        """Whether a decoder that finds `old` takes the branch `new` of a union."""
        match old, new:
            case {"ref": old_name}, {"ref": new_name}:
                return cast(bool, self._old[old_name].get("tag") == self._new[new_name].get("tag"))
            case [old_kind, *_], [new_kind, *_]:
                return cast(bool, old_kind == new_kind)
            case _:
                return cast(bool, old == new)

    def _changed(self, old: Any, new: Any, path: str) -> None:
        self.found.append(f"{path or 'it'} was {self._text(old, self._old)} and is {self._text(new, self._new)} now")

    def _text(self, shape: Any, definitions: dict[str, Any]) -> str:
        match shape:
            case {"ref": name}:
                return cast(str, name).partition("#")[0]
            case ["union", *alternatives]:
                return " | ".join(self._text(alternative, definitions) for alternative in alternatives)
            case ["choice", name, *values]:
                return f"{name}[{', '.join(map(repr, values))}]"
            case [kind, *items]:
                return f"{kind}[{', '.join(self._text(item, definitions) for item in items)}]"
            case "none":
                return "None"
            case _:
                return str(shape)


def _alternatives(shape: Any) -> list[Any]:
    match shape:
        case ["union", *alternatives]:
            return alternatives
        case _:
            return [shape]


def _default_of(field: dict[str, Any]) -> dict[str, Any]:
    return {name: field[name] for name in ("default", "factory", "absent") if name in field}


def _default_text(field: dict[str, Any]) -> str:
    if "default" in field:
        return repr(field["default"])
    return f"what {field['factory']} makes" if "factory" in field else "none"
