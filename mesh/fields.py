"""Reads the fields of a document one by one, and notes what is wrong with each: its line, its name, what was expected.

What always holds: reading goes on behind a mistake with the default in its place, so that one look at a file finds all
of its mistakes; a name that nobody has asked for is one, or at least worth a warning.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, TypeVar

from penstock.durations import parse_duration
from penstock.errors import ConfigurationError
from penstock.mesh.policies.settings import TextMatch
from penstock.mesh.yaml_tree import Listing, Node, Scalar, Table

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)


class Note(NamedTuple):
    """Something to be said of one field."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.field}: {self.message}" if self.field else f"line {self.line}: {self.message}"


class Notes:
    """What was found in one file."""

    def __init__(self) -> None:
        self.errors: list[Note] = []
        self.warnings: list[Note] = []


class Section:
    """One mapping of a document. `strict` says whether a name that nobody asks for is an error or a warning."""

    def __init__(self, table: Table, path: str, notes: Notes, *, strict: bool = True) -> None:
        self.path = path
        self.line = table.line
        self.strict = strict
        self._entries = table.entries
        self._notes = notes
        self._asked: dict[str, None] = {}

    # ---- what is there

    def has(self, name: str) -> bool:
        """Whether a field is given, and not null."""
        self._asked[name] = None
        node = self._entries.get(name)
        return node is not None and not (isinstance(node, Scalar) and node.value is None)

    def is_list(self, name: str) -> bool:
        return isinstance(self._entries.get(name), Listing)

    def names(self) -> list[str]:
        """All that are given."""
        return list(self._entries)

    def unasked(self) -> list[str]:
        """Those that nobody has asked for so far."""
        return [name for name in self._entries if name not in self._asked]

    def error(self, name: str, message: str) -> None:
        """Note a mistake of a field; of the section itself without a name."""
        self._notes.errors.append(Note(self._line(name), self._at(name), message))

    def warn(self, name: str, message: str) -> None:
        self._notes.warnings.append(Note(self._line(name), self._at(name), message))

    def finish(self) -> None:
        """Note the names that nobody has asked for."""
        for name in self.unasked():
            if self.strict:
                near = difflib.get_close_matches(name, self._asked, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(self._asked))}."
                self.error(name, f"there is no such field. {hint}")
            else:
                self.warn(name, "this field is not supported and ignored")

    def refuse(self, *names: str, reason: str) -> None:
        """Note as errors those that would change what the rest means, if nothing were done about them."""
        for name in names:
            if self.has(name):
                self.error(name, f"this field is not supported: {reason}")

    # ---- one value

    def text(self, name: str, default: str = "") -> str:
        return self._read(name, default, _text, "a text")

    def flag(self, name: str, default: bool) -> bool:
        return self._read(name, default, _flag, "true or false")

    def count(self, name: str, default: int, least: int = 0, most: int = 2**32 - 1) -> int:
        return self._read(
            name, default, lambda value: _count(value, least, most), f"a whole number from {least} to {most}"
        )

    def number(self, name: str, default: float, least: float = 0.0, most: float = math.inf) -> float:
        bound = f" from {least:g} to {most:g}" if most < math.inf else f" from {least:g} on"
        return self._read(name, default, lambda value: _number(value, least, most), f"a number{bound}")

    def percentage(self, name: str, default: float) -> float:
        return self.number(name, default, 0, 100)

    def duration_s(self, name: str, default: float, least_s: float = 0.0) -> float:
        least = f" of at least {least_s:g}s" if least_s else ""
        return self._read(
            name, default, lambda value: _duration_s(value, least_s), f"a duration{least} such as 250ms or 10s"
        )

    def choice(self, name: str, kind: type[_E], default: _E) -> _E:
        """One of the values of an enum."""
        expected = f"one of {', '.join(str(member.value) for member in kind)}"
        return self._read(name, default, lambda value: kind(_text(value)), expected)

    def parsed(self, name: str, default: _T, parse: Callable[[str], _T], expected: str) -> _T:
        """What `parse` makes of a text; its ValueError says what is wrong."""
        return self._read(name, default, _explained(parse), expected)

    # ---- many values

    def texts(self, name: str) -> list[str]:
        """A list of texts, or one text with commas."""
        if not self.has(name):
            return []
        node = self._entries[name]
        if isinstance(node, Scalar):
            return [part.strip() for part in self.text(name).split(",") if part.strip()]
        found = []
        for index, item in enumerate(self.items(name)):
            if isinstance(item, Scalar) and isinstance(item.value, str | int) and not isinstance(item.value, bool):
                found.append(str(item.value))
            else:
                self._notes.errors.append(Note(item.line, f"{self._at(name)}[{index}]", "expected a text"))
        return found

    def labels(self, name: str) -> dict[str, str]:
        """A mapping of texts to texts."""
        section = self.section(name)
        return {} if section is None else {label: section.text(label) for label in section.names()}

    def text_matches(self, name: str) -> dict[str, TextMatch]:
        """A mapping of texts to Istio's {exact | prefix | regex}. Null, or {}, is any text."""
        section = self.section(name)
        if section is None:
            return {}
        return {key: section.text_match(key) for key in section.names()}

    def text_match(self, name: str) -> TextMatch:
        """{exact: a}, {prefix: a}, {regex: a}; or a text, which is exact."""
        if not self.has(name):
            return TextMatch()
        if isinstance(self._entries[name], Scalar):
            return TextMatch(exact=self.text(name))
        inner = self.section(name)
        if inner is None:
            return TextMatch()
        match = TextMatch(
            inner.text("exact") if inner.has("exact") else None,
            inner.text("prefix") if inner.has("prefix") else None,
            inner.parsed("regex", None, re.compile, "a regular expression") if inner.has("regex") else None,
        )
        if sum(inner.has(kind) for kind in ("exact", "prefix", "regex")) > 1:
            inner.error("", "expected only one of exact, prefix and regex")
        inner.finish()
        return match

    def section(self, name: str) -> Section | None:
        """A mapping; None if it is not given, or none, which is noted."""
        if not self.has(name):
            return None
        node = self._entries[name]
        if isinstance(node, Table):
            return Section(node, self._at(name), self._notes, strict=self.strict)
        self.error(name, f"expected fields below it, got {_shown(node)}")
        return None

    def sections(self, name: str) -> Iterator[Section]:
        """A list of mappings."""
        for index, item in enumerate(self.items(name)):
            path = f"{self._at(name)}[{index}]"
            if isinstance(item, Table):
                yield Section(item, path, self._notes, strict=self.strict)
            else:
                self._notes.errors.append(Note(item.line, path, f"expected fields, got {_shown(item)}"))

    def items(self, name: str) -> tuple[Node, ...]:
        """A list of anything."""
        if not self.has(name):
            return ()
        node = self._entries[name]
        if isinstance(node, Listing):
            return node.items
        self.error(name, f"expected a list, got {_shown(node)}")
        return ()

    # ---- helpers

    def _read(self, name: str, default: _T, parse: Callable[[object], _T], expected: str) -> _T:
        if not self.has(name):
            return default
        node = self._entries[name]
        if isinstance(node, Scalar):
            try:
                return parse(node.value)
            except _Reason as reason:
                self.error(name, f"expected {expected}, got {_shown(node)}: {reason}")
                return default
            except (ValueError, ConfigurationError):
                pass
        self.error(name, f"expected {expected}, got {_shown(node)}")
        return default

    def _line(self, name: str) -> int:
        node = self._entries.get(name)
        return self.line if node is None else node.line

    def _at(self, name: str) -> str:
        return ".".join(part for part in (self.path, name) if part)


class _Reason(ValueError):
    """What is wrong with a value, for people to read."""


def _explained(parse: Callable[[str], _T]) -> Callable[[object], _T]:
    def told(value: object) -> _T:
        text = _text(value)
        try:
            return parse(text)
        except (ValueError, re.error) as error:
            raise _Reason(str(error)) from error

    return told


def _shown(node: Node) -> str:
    match node:
        case Scalar(value):
            return repr(value)
        case Listing():
            return "a list"
        case Table():
            return "fields"


def _text(value: object) -> str:
    """Numbers are text too: the version of a label is often one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    return str(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _count(value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(value)
    return value


def _number(value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(value)
    return float(value)


def _duration_s(value: object, least_s: float) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(value)
    seconds = parse_duration(value) / 1000
    if seconds < least_s:
        raise ValueError(value)
    return seconds
