"""What came of one attempt, and which of that may be tried again: the conditions of Envoy's `retry_on`.

    5xx                    a status of 500 or more, or no answer at all
    gateway-error          502, 503, 504, or no answer at all
    connect-failure        no connection: the request was not sent
    refused-stream         the host refused the request before it began with it
    reset-before-request   the connection ended before the request was sent
    reset                  no answer: the connection ended, or the time of the attempt did
    timeout                the time of the attempt ended
    retriable-4xx          409, a conflict: nothing was changed
    envoy-ratelimited      429
    500 to 599, 4xx        the status itself, as Istio allows

What always holds: connect-failure, refused-stream and reset-before-request say that the request was surely not
processed; of everything else it may have been.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple


class Failure(Enum):
    """Why there is no answer."""

    CONNECT = "connect-failure"
    REFUSED = "refused-stream"
    RESET_BEFORE_REQUEST = "reset-before-request"
    RESET = "reset"
    TIMEOUT = "timeout"


class Outcome(NamedTuple):
    """The result of one attempt: a status, or the reason why there is none. A host that refuses before it begins gives
    both, and its status is what the caller sees in the end."""

    status: int = 0
    failure: Failure | None = None
    retry_after_s: float | None = None

    @property
    def succeeded(self) -> bool:
        """What counts as a success for breakers and ejections: an error of the caller is none of the host."""
        return self.failure is None and self.status < 500


def retry_after_s(told: str) -> float | None:
    """What the header Retry-After asks to wait. A date, as HTTP allows as well, would need a clock of both sides."""
    return float(told) if told.isdecimal() else None


_Condition = Callable[[Outcome], bool]

_CONDITIONS: Final[dict[str, _Condition]] = {
    "5xx": lambda outcome: outcome.failure is not None or outcome.status >= 500,
    "gateway-error": lambda outcome: outcome.failure is not None or outcome.status in (502, 503, 504),
    "connect-failure": lambda outcome: outcome.failure is Failure.CONNECT,
    "refused-stream": lambda outcome: outcome.failure is Failure.REFUSED,
    "reset-before-request": lambda outcome: outcome.failure is Failure.RESET_BEFORE_REQUEST,
    "reset": lambda outcome: outcome.failure is not None,
    "timeout": lambda outcome: outcome.failure is Failure.TIMEOUT,
    "retriable-4xx": lambda outcome: outcome.failure is None and outcome.status == 409,
    "envoy-ratelimited": lambda outcome: outcome.failure is None and outcome.status == 429,
}

CONDITIONS: Final = tuple(_CONDITIONS)


def is_condition(name: str) -> bool:
    """Whether `retry_on` may name it."""
    return name in _CONDITIONS or (name.isdecimal() and 400 <= int(name) <= 599)


def is_retriable(outcome: Outcome, conditions: frozenset[str]) -> bool:
    """Whether one of `conditions` covers what came of an attempt."""
    if outcome.failure is None and outcome.status < 400:
        return False
    return str(outcome.status) in conditions or any(
        name in _CONDITIONS and _CONDITIONS[name](outcome) for name in conditions
    )
