"""The functions of an application, for people: what each takes, answers and keeps."""

from __future__ import annotations

from typing import Any

from penstock.functions.app import App
from penstock.functions.function import Function
from penstock.functions.types import type_text


def describe_functions(app: App) -> list[dict[str, Any]]:
    """The functions of an application, with what they take, answer and keep."""
    return [_describe_function(function) for _, function in sorted(app.functions.items())]


def _describe_function(function: Function[Any, Any]) -> dict[str, Any]:
    state = type_text(function.state) if function.state is not None else ""
    if function.storage:
        state = ", ".join(f"{name}: {spec.codec.name}" for name, spec in function.storage.items())
    return {
        "function": function.typename,
        "takes": function.message_codec.name,
        "answers": function.reply_codec.name,
        "state": state,
        "location": function.location,
        "attempts": function.options.attempts,
        "on_failure": function.options.on_failure,
        "fingerprint": function.fingerprint,
    }
