"""Checks JSON against a JSON schema, by jsonschema-rs. Imported only when an egress has such a format.

References lead to schemas that the registry gave, and nowhere else: nothing is loaded from the network here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jsonschema_rs
import msgspec

from penstock.errors import ConfigurationError, InvalidInput
from penstock.functions.mismatch import describe


def validator(text: str, referred: Iterable[tuple[str, str]], what: str) -> Callable[[bytes], None]:
    """A check of JSON texts, which raises InvalidInput for one that does not fit the schema.

    Raises ConfigurationError if `text` is no schema; `referred` are the schemas it refers to, by their URIs.
    """
    try:
        known = jsonschema_rs.Registry([(uri, msgspec.json.decode(schema)) for uri, schema in referred])
        compiled = jsonschema_rs.validator_for(msgspec.json.decode(text), registry=known, offline=True)
    except Exception as error:  # One class for what no schema may say, others for what is none at all.
        raise ConfigurationError(
            "PEN0161", f"{what} has a JSON schema that can't be used: {_line(error)}. Register a correct one."
        ) from error

    def check(data: bytes) -> None:
        value = msgspec.json.decode(data)
        error = next(iter(compiled.iter_errors(value)), None)
        if error is not None:
            path = "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
            raise InvalidInput(
                "PEN0243",
                f"{path} does not fit the schema of the egress: {_line(error)} (got {describe(error.instance)}). Emit "
                "what the schema says, or register a schema that allows it.",
            )

    return check


def _line(error: Any) -> str:
    """What is wrong, without the listing that follows it."""
    return str(getattr(error, "message", error)).partition("\n")[0].rstrip(".")
