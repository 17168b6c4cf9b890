"""Steps of handlers: what `ctx.run` asks for, carried out in the event loop or in a thread, and tried again.

What always holds: a step ends as bytes or as a coded error, never as an exception; the key it is given is the same at
every try. Keeps nothing: whoever asked journals what comes back.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from penstock.errors import InvalidInput
from penstock.functions.answers import encode_answer
from penstock.functions.durable import Stepped, is_async
from penstock.ids import Address

Performance = tuple[bytes, tuple[str, str] | None]
"""The result of a step, and code and text of why there is none."""

log = logging.getLogger("penstock")


Blocking = Callable[..., Awaitable[Any]]
"""Where a plain function is run, which may block."""


async def perform(step: Stepped, *, key: str, address: Address, blocking: Blocking = asyncio.to_thread) -> Performance:
    """Carry out `step`, as often as its policy says until it succeeds."""
    attempt = 1
    while True:
        try:
            if is_async(step.function):
                value = await step.call(key)
            else:
                value = await blocking(step.call, key)
                if inspect.isawaitable(value):  # Of a lambda around an `async def`, say.
                    value = await value
            return encode_answer(address, value, what=f"result of step {_name(step)}"), None
        except InvalidInput as error:
            return b"", (error.code, error.message)
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # Whatever a step raises is how it failed.
            if _is_cancelled():
                raise
            if attempt >= step.retry.attempts:
                return b"", ("PEN0271", _failed(step, address, attempt, error))
            log.warning("%s: try %d of step %s failed: %r", address, attempt, _name(step), error)
        await asyncio.sleep(step.retry.wait_ms(attempt) / 1000)
        attempt += 1


def _is_cancelled() -> bool:
    """Whether the process stops, and it is not the step itself that raises."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _failed(step: Stepped, address: Address, attempts: int, error: BaseException) -> str:
    return (
        f"Step {_name(step)} of {address} failed {attempts} times, the last time with {type(error).__name__}: {error}. "
        "Catch FunctionError to go another way, or give ctx.run a retry= with more attempts."
    )


def _name(step: Stepped) -> str:
    return getattr(step.function, "__qualname__", repr(step.function))
