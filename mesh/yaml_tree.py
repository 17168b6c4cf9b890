"""YAML with the line of everything in it, by PyYAML. Imported only when there is a file to read.

What always holds: a tree is finite and bounded, however a text refers to its own parts; a name stands in a mapping
once; scalars are text, numbers, true, false or null, and nothing is made of any other kind of tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import yaml

NODES_MAX: Final = 100_000
"""A thousand functions with a hundred values each. References make a tree that is much larger than its text."""
DEPTH_MAX: Final = 50
_PLAIN_TAGS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "str")}
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


class Scalar(NamedTuple):
    value: str | int | float | bool | None
    line: int


class Listing(NamedTuple):
    items: tuple[Node, ...]
    line: int


class Table(NamedTuple):
    entries: Mapping[str, Node]
    line: int


Node: TypeAlias = Scalar | Listing | Table


class YamlError(Exception):
    """A text is no such tree. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(line, message)
        self.line = line
        self.message = message


def parse_yaml(text: str) -> list[Node]:
    """The documents of `text`, without the empty ones. Raises YamlError."""
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"it is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise YamlError(1, f"it is no YAML: {error}") from error
    except RecursionError as error:
        raise YamlError(1, f"it has values within values, more than {DEPTH_MAX} deep") from error
    builder = _Builder()
    nodes = [builder.build(document, 0) for document in documents]
    return [node for node in nodes if not (isinstance(node, Scalar) and node.value is None)]


class _Builder:
    def __init__(self) -> None:
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, depth: int) -> Node:
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > NODES_MAX or depth > DEPTH_MAX:
            raise YamlError(line, "it has too many values, or values within values, perhaps by references to itself")
        if isinstance(node, yaml.MappingNode):
            return Table(self._entries(node, depth), line)
        if isinstance(node, yaml.SequenceNode):
            return Listing(tuple(self.build(item, depth + 1) for item in node.value), line)
        return Scalar(self._value(node, line), line)

    def _entries(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(line, "a name must be a text")
            if key.value in entries:
                raise YamlError(line, f"{key.value!r} stands here a second time")
            entries[key.value] = self.build(value, depth + 1)
        return entries

    def _value(self, node: yaml.Node, line: int) -> str | int | float | bool | None:
        if node.tag == _TIMESTAMP:  # What looks like a day is a text here, such as the name of a version.
            return str(node.value)
        if node.tag not in _PLAIN_TAGS:
            raise YamlError(line, f"the tag {node.tag} is not understood")
        try:
            value: str | int | float | bool | None = self._scalars.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise YamlError(line, f"{node.value!r} can't be read") from error
        return value
