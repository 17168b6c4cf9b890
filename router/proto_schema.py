"""Finds messages in protobuf schemas, which registries keep as the text of a .proto file or as a descriptor in base64.

What always holds: a message is named by its full name, and its place is the way to it: its number among the messages of
the file, then among those nested in it. Of a text only what opens, closes and names a block is understood, which is all
that this takes; whether the rest is correct was the registry's concern.

Clients count in two ways: a compiler makes a nested message of every map field, and some clients count these as well.
So a message has two places, which differ only where a map stands before a nested message.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError as NoDescriptor

Place: TypeAlias = tuple[int, ...]

_TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/            # comments
    |"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'  # strings
    |[A-Za-z_][\w.]*                  # names
    |[{};]""",
    re.VERBOSE | re.DOTALL,
)
_NAMES_OF_MESSAGES = ("message", "group")
_WELL_KNOWN = "google/protobuf/"
"""Files that every registry and every compiler brings along."""


class Places(NamedTuple):
    """Where a message stands in its schema."""

    declared: Place
    """Counting messages as they are declared, as Confluent's Java client does: this is what we write."""
    compiled: Place
    """Counting those that a compiler makes of map fields as well."""


def message_places(schema: str) -> dict[str, Places]:
    """The full name of every message in a schema, and where it stands."""
    descriptor = _descriptor_of(schema)
    if descriptor is not None:
        prefix = f"{descriptor.package}." if descriptor.package else ""
        return dict(_in_descriptor(descriptor.message_type, prefix, Places((), ())))
    return _in_text(schema)


def schema_text(file: Any) -> str:
    """The schema of a generated module's file, in the form that a registry takes."""
    return b64encode(file.serialized_pb).decode()


def imported_files(file: Any) -> list[Any]:
    """The files that `file` imports, without those that every registry knows."""
    return [other for other in file.dependencies if not other.name.startswith(_WELL_KNOWN)]


def _descriptor_of(schema: str) -> FileDescriptorProto | None:
    try:
        descriptor = FileDescriptorProto.FromString(b64decode(schema, validate=True))
    except (binascii.Error, ValueError, NoDescriptor):
        return None
    return descriptor if descriptor.message_type else None


def _in_descriptor(messages: Iterable[Any], prefix: str, around: Places) -> Iterator[tuple[str, Places]]:
    declared = 0
    for compiled, message in enumerate(messages):
        if message.options.map_entry:
            continue
        name, here = prefix + message.name, Places((*around.declared, declared), (*around.compiled, compiled))
        declared += 1
        yield name, here
        yield from _in_descriptor(message.nested_type, f"{name}.", here)


class _Block:
    """What stands between braces, of which only messages are counted."""

    def __init__(self, prefix: str, places: Places | None) -> None:
        self.prefix = prefix
        self.places = places
        """None for what holds no messages."""
        self.messages = 0
        self.maps = 0

    def inner(self, name: str) -> _Block:
        """The block of the next message in this one."""
        assert self.places is not None
        declared, compiled = self.messages, self.messages + self.maps
        self.messages += 1
        return _Block(
            f"{self.prefix}{name}.", Places((*self.places.declared, declared), (*self.places.compiled, compiled))
        )


def _in_text(text: str) -> dict[str, Places]:
    found: dict[str, Places] = {}
    blocks = [_Block("", Places((), ()))]
    statement: list[str] = []
    for token in _tokens(text):
        top = blocks[-1]
        if token == "{":
            name = _message_name(statement)
            if name is not None and top.places is not None:
                block = top.inner(name)
                assert block.places is not None
                found[top.prefix + name] = block.places
                blocks.append(block)
            elif statement[:1] == ["oneof"]:
                blocks.append(top)  # What stands in a oneof belongs to the message around it.
            else:
                blocks.append(_Block("", None))
        elif token == "}" and len(blocks) > 1:
            blocks.pop()
        elif token == ";" and len(blocks) == 1 and statement[:1] == ["package"]:
            top.prefix = f"{statement[1]}." if len(statement) > 1 else ""
        elif token == ";" and statement[:1] == ["map"]:
            top.maps += 1
        if token in "{};":
            statement = []
        else:
            statement.append(token)
    return found


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        if not match[0].startswith(("/", '"', "'")):
            yield match[0]


def _message_name(statement: list[str]) -> str | None:
    """The name of the message that `statement` opens: `message Order`, `optional group Line`."""
    for word in _NAMES_OF_MESSAGES:
        if len(statement) >= 2 and statement[-2] == word:
            return statement[-1]
    return None
