"""The types of `@app.function(...)` and `@app.schedule(...)`: from the annotations of a handler to those of its
`Function`.

Only for type checkers, which infer from it what can be sent to a function and what a call of it is answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, overload

from penstock.functions.context import Context
from penstock.functions.function import Function

S = TypeVar("S")
M = TypeVar("M")
R = TypeVar("R")
F = TypeVar("F", bound=Function[Any, Any])


class FunctionDecorator(Protocol):
    """Makes a `Function` of a handler."""

    # Awaitable comes first: an `async def` matches the other signature as well, with the awaitable as its answer.
    @overload
    def __call__(self, handler: Callable[[Context[S], M], Awaitable[R]], /) -> Function[M, R]: ...
    @overload
    def __call__(self, handler: Callable[[Context[S], M], R], /) -> Function[M, R]: ...


class ScheduleDecorator(Protocol):
    """Declares a schedule for a `Function`, which stays as it is."""

    def __call__(self, function: F, /) -> F: ...
