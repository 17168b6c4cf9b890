"""Where the requests of a comparison come from: the shop, a file of recorded messages, or a generator of one's own.

What always holds: request n of a seed is the same in every arm; every request has an id and a key of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from penstock.compare.checkout import data
from penstock.errors import InvalidInput


class Request(NamedTuple):
    fn: str
    id: str
    body: bytes
    key: str
    """Its Idempotency-Key, and what it is called in the records."""


class Source(Protocol):
    def request(self, number: int) -> Request: ...


def source_of(source: str, seed: int, theta: float, folder: Path) -> Source:
    """Empty is the shop; a name that ends in .jsonl a file; else module:function. Raises InvalidInput."""
    if not source:
        return _Shop(seed, theta)
    if source.endswith((".jsonl", ".json")):
        return _Messages(cycle(_recorded(folder / source)), seed, source)
    return _Messages(iter(_generated(source, seed, folder)), seed, source)


class _Shop:
    def __init__(self, seed: int, theta: float) -> None:
        self._seed = seed
        self._theta = theta

    def request(self, number: int) -> Request:
        order = data.order(self._seed, number, self._theta)
        return Request("shop/order", order.id, json.dumps(order.body).encode(), order.id)


class _Messages:
    """Asked for in the order of their numbers."""

    def __init__(self, messages: Iterator[Any], seed: int, source: str) -> None:
        self._messages = messages
        self._seed = seed
        self._source = source

    def request(self, number: int) -> Request:
        try:
            message = next(self._messages)
        except StopIteration:
            raise _refused(self._source, f"it ends after {number:,} messages, and more are to be sent") from None
        try:
            fn, id, value = message["function"], message["id"], message["message"]
        except (KeyError, TypeError) as error:
            raise _refused(self._source, f"message {number:,} is {str(message)[:200]!r}: {error!r}") from error
        return Request(str(fn), str(id), msgspec.json.encode(value), f"m-{self._seed}-{number}")


def _recorded(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(str(path), str(error)) from error
    messages: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            messages.append(json.loads(line))
        except ValueError as error:
            raise _refused(str(path), f"line {number}: {error}") from error
    if not messages:
        raise _refused(str(path), "it has no messages")
    return messages


def _generated(source: str, seed: int, folder: Path) -> Iterable[Any]:
    return named(source, folder)(seed)  # type: ignore[no-any-return]


def named(name: str, folder: Path) -> Callable[..., Any]:
    """The function that a user has named, as module:function. Raises InvalidInput."""
    module, _, function = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # It is code of a user, and may raise anything.
        raise _refused(name, f"it can't be loaded: {error!r}") from error
    if not callable(found):
        raise _refused(name, "it is no function")
    return found  # type: ignore[no-any-return]


def outcome_of(status: int, body: bytes, *, of_the_shop: bool) -> str:
    """One word: how an order has ended, `OK`, or the code of an error."""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"HTTP {status}"
    if status == 200:
        return (data.outcome_of(answer) or "PENDING") if of_the_shop else "OK"
    return str(answer.get("code") or f"HTTP {status}") if isinstance(answer, dict) else f"HTTP {status}"


def _refused(source: str, reason: str) -> InvalidInput:
    return InvalidInput(
        "PEN0906",
        f"{source} gives no load: {reason}. Name a file with one JSON object a line, or a function that takes the seed "
        'and yields such objects: {"function": "shop/cart", "id": "7", "message": {...}}.',
    )
