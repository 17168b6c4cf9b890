"""What the environment says about the shop. All processes of one run have the same, so they all serve the same shop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from penstock.compare.checkout.data import BALANCE, STOCK
from penstock.errors import ConfigurationError
from penstock.functions.durable import Retry
from penstock.functions.function import OnFailure

Flow = Literal["plain", "saga", "parallel", "tcc", "choreography"]
"""How an order goes about it."""
_MANY: Final = 1_000_000
"""More units, and more money, than a run can need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See each. The names in the environment are those in `read`."""

    flow: Flow
    is_fenced: bool
    """Whether participants of a saga remember what was asked. Without, the saga is written by hand."""
    bank: str
    """Where it can be asked."""
    is_two_phase: bool
    """Whether money is authorised before it is captured, because the bank wants that."""
    bank_retry: Retry
    bank_timeout_s: float
    """Of one try."""
    patience_s: float
    """Until a saga that may still turn back does."""
    attempts: int
    """Tries of a message whose handler raises."""
    on_failure: OnFailure
    stock: int
    """Of each sku, in the beginning."""
    balance: int
    """Of each user, in the beginning."""
    poison: str
    """Orders whose ids match this pattern raise."""
    witness: str
    """The file that handlers note their beginnings and ends in; none if empty."""


def read(environ: Mapping[str, str]) -> Settings:
    """Raises ConfigurationError, which names the variable, for what is none of its values."""
    given = _Given(environ)
    return Settings(
        flow=given.one_of("COMPARE_FLOW", Flow),
        is_fenced=given.one_of("COMPARE_FENCE", Literal["on", "off"]) == "on",
        bank=environ.get("COMPARE_BANK", "http://127.0.0.1:7099"),
        is_two_phase=given.one_of("COMPARE_BANK_MODE", Literal["keyed", "plain", "transactional"]) == "transactional",
        bank_retry=Retry(int(given.number("COMPARE_BANK_TRIES", 3)), backoff="100ms", backoff_max="2s"),
        bank_timeout_s=given.number("COMPARE_BANK_TIMEOUT", 2),
        patience_s=given.number("COMPARE_PATIENCE", 10),
        attempts=int(given.number("COMPARE_ATTEMPTS", 3)),
        on_failure=given.one_of("COMPARE_ON_FAILURE", OnFailure),
        stock=int(given.number("COMPARE_STOCK", STOCK)),
        balance=int(given.number("COMPARE_BALANCE", BALANCE)),
        poison=environ.get("COMPARE_POISON", ""),
        witness=environ.get("COMPARE_WITNESS", ""),
    )


class _Given:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def one_of(self, name: str, kind: Any) -> Any:
        """One of the values of a literal type: its first, if nobody says otherwise."""
        values = get_args(kind)
        value = self._environ.get(name, values[0])
        if value not in values:
            raise _wrong(name, value, f"one of {', '.join(values)}")
        return value

    def number(self, name: str, default: float) -> float:
        text = self._environ.get(name, str(default))
        with suppress(ValueError):
            if 0 < float(text) <= _MANY:
                return float(text)
        raise _wrong(name, text, f"a number above 0, up to {_MANY:,}")


def _wrong(name: str, value: str, known: str) -> ConfigurationError:
    return ConfigurationError("PEN0920", f"{name}={value!r} is nothing the shop can be run with. Set it to {known}.")
