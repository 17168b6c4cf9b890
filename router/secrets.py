"""Settings that name a secret instead of holding it: `${NAME}` for the environment, `file:/path` for a file.

Resolved when a client is made, so that a declaration never holds the secret itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import ConfigurationError

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")


def resolved(text: str, environment: Mapping[str, str], *, what: str) -> str:
    """`text` with what it names in its place. `what` says whose setting it is: `The password of SchemaRegistry(...)`.

    A file's content loses the line end it usually has. Raises ConfigurationError if something named is not there.
    """
    if text.startswith("file:"):
        path = Path(text.removeprefix("file:"))
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                "PEN0160", f"{what} is in {path}, which can't be read: {error}. Create the file, or correct its path."
            ) from error

    def value_of(variable: re.Match[str]) -> str:
        if variable[1] not in environment:
            raise ConfigurationError(
                "PEN0160", f"{what} is in the variable {variable[1]}, which is not set. Set it before the start."
            )
        return environment[variable[1]]

    return _VARIABLE.sub(value_of, text)
