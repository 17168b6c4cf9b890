"""How long a value is kept: `Annotated[float, Expire(after_write="30d")]`.

Says what the user asked for, in milliseconds; when a value has expired, and what happens then, is for the
engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from penstock.durations import format_duration, parse_duration
from penstock.errors import ConfigurationError


@dataclass(frozen=True, slots=True, init=False)
class Expire:
    """A value goes back to its default some time after it was last written, or after its function was last
    called.
    """

    ttl_ms: int
    after_call: bool
    """Counted from the last call of the function; otherwise from the last write of the value."""

    def __init__(
        self,
        after_write: str | float | timedelta | None = None,
        *,
        after_call: str | float | timedelta | None = None,
    ) -> None:
        if (after_write is None) == (after_call is None):
            raise ConfigurationError(
                "PEN0117",
                "Expire takes either after_write or after_call. Write, for example, Expire(after_write='30d').",
            )
        duration = after_write if after_write is not None else after_call
        assert duration is not None, "exactly one is given"
        ttl_ms = parse_duration(duration)
        if ttl_ms == 0:
            raise ConfigurationError(
                "PEN0117", f"Expire({duration!r}) would forget a value at once. Give a duration above zero."
            )
        object.__setattr__(self, "ttl_ms", ttl_ms)
        object.__setattr__(self, "after_call", after_call is not None)

    def __repr__(self) -> str:
        return f"Expire(after_{'call' if self.after_call else 'write'}={format_duration(self.ttl_ms)!r})"
