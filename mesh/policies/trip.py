"""When a breaker opens: Dapr's `trip`, a condition over the counts of one breaker.

    consecutiveFailures > 5
    requests >= 20 && totalFailures * 2 > requests || consecutiveFailures > 8

A small part of the CEL that Dapr takes: the five counts, whole and decimal numbers, + - * /, the comparisons, && || !
and parentheses. What always holds: a condition that was read can be asked of any counts; a division by zero is no
reason to open.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias


class Counts(NamedTuple):
    """What a breaker has seen since it began to count."""

    requests: int = 0
    total_successes: int = 0
    total_failures: int = 0
    consecutive_successes: int = 0
    consecutive_failures: int = 0


@dataclass(frozen=True, slots=True)
class Trip:
    """A condition, and the text it was read from."""

    text: str
    holds: Callable[[Counts], bool] = field(compare=False, repr=False)


_Value: TypeAlias = Callable[[Counts], float]

_COUNTS: Final[dict[str, _Value]] = {
    "requests": lambda counts: counts.requests,
    "totalSuccesses": lambda counts: counts.total_successes,
    "totalFailures": lambda counts: counts.total_failures,
    "consecutiveSuccesses": lambda counts: counts.consecutive_successes,
    "consecutiveFailures": lambda counts: counts.consecutive_failures,
}
_LEVELS: Final[tuple[dict[str, Callable[[float, float], float]], ...]] = (
    {"||": lambda a, b: bool(a) or bool(b)},
    {"&&": lambda a, b: bool(a) and bool(b)},
    {
        "==": operator.eq,
        "!=": operator.ne,
        "<=": operator.le,
        ">=": operator.ge,
        "<": operator.lt,
        ">": operator.gt,
    },
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv},
)
"""The operators, those that bind least first."""

_TOKEN: Final = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([A-Za-z_]+)|(\|\||&&|==|!=|<=|>=|[<>+\-*/!()]))")


def parse_trip(text: str) -> Trip:
    """Raises ValueError, which says what is wrong, if this is no condition."""
    reader = _Reader(list(_tokens(text)))
    value = reader.level(0)
    if reader.peek():
        raise ValueError(f"{reader.peek()!r} is not expected here")
    if not reader.compared:
        raise ValueError("nothing is compared")

    def holds(counts: Counts) -> bool:
        try:
            return bool(value(counts))
        except ZeroDivisionError:
            return False

    return Trip(text, holds)


def _tokens(text: str) -> Iterator[str]:
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position:].strip()[:20]!r} is not understood")
        yield match[0].strip()
        position = match.end()


class _Reader:
    """Reads tokens from left to right, one method call for each level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self.compared = False

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def level(self, level: int) -> _Value:
        if level == len(_LEVELS):
            return self._unary()
        left = self.level(level + 1)
        while self.peek() in _LEVELS[level]:
            self.compared |= level == 2
            left = _combined(_LEVELS[level][self._take()], left, self.level(level + 1))
        return left

    def _unary(self) -> _Value:
        token = self._take()
        if token == "!":
            inner = self._unary()
            return lambda counts: not inner(counts)
        if token == "-":
            inner = self._unary()
            return lambda counts: -inner(counts)
        if token == "(":
            inner = self.level(0)
            if self._take() != ")":
                raise ValueError("a parenthesis is not closed")
            return inner
        if token in _COUNTS:
            return _COUNTS[token]
        if token and token[0].isdigit():
            number = float(token)
            return lambda _: number
        if not token:
            raise ValueError("it ends too early")
        raise ValueError(f"{token!r} is none of {', '.join(_COUNTS)}")


def _combined(apply: Callable[[float, float], float], left: _Value, right: _Value) -> _Value:
    return lambda counts: apply(left(counts), right(counts))
