"""Documents with one field more than there is, in each of their sections in turn."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from penstock.errors import ConfigurationError
from penstock.mesh.policy_file import read_policies

STRANGER = "stranger"


def with_a_stranger(text: str, *, free: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """The path of each section of the documents of `text`, and the text with a field there that nobody knows. The
    fields of sections called `free` have names of the user's own."""
    documents = list(yaml.safe_load_all(text))
    for path in _sections(documents):
        names = [step for step in path if isinstance(step, str)]
        if names and names[-1] in free:
            continue
        changed = copy.deepcopy(documents)
        section: Any = changed
        for step in path:
            section = section[step]
        section[STRANGER] = 1
        yield ".".join(map(str, path)), yaml.safe_dump_all(changed)


def told_of(text: str) -> list[str]:
    """Warnings; or errors, of a match, which would take other requests than it says."""
    try:
        return list(read_policies(text).warnings)
    except ConfigurationError as error:
        return [error.message]


def _sections(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            yield from _sections(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _sections(inner, (*path, index))
