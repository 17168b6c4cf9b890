"""How a failure is told: a code, a reason in one line, and a traceback that begins where the user's code does."""

from __future__ import annotations

import traceback

from penstock.errors import PenstockError


def describe(error: BaseException) -> tuple[str, str]:
    """Code and reason of a failure, in one line each."""
    if isinstance(error, PenstockError):
        return error.code, error.message
    text = " ".join(str(error).split())
    return (
        "PEN0210",
        f"Handler raised {type(error).__name__}: {text}" if text else f"Handler raised {type(error).__name__}.",
    )


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of this package in front: a reader looks for their own code."""
    stack = error.__traceback__
    while (
        stack is not None
        and stack.tb_next is not None
        and stack.tb_frame.f_globals.get("__name__", "").startswith("penstock.")
    ):
        stack = stack.tb_next
    return "".join(traceback.format_exception(type(error), error, stack))
