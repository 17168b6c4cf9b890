"""The shop of the comparison inside a test: loaded as a process would load it, with a bank that needs no network.

The bank is the real one without HTTP; requests to it can be lost, come too late, or lose their answers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from unittest.mock import patch

from penstock.compare.checkout import data, settings
from penstock.compare.checkout.bank import Asked, Books, Mode, Refused
from penstock.compare.checkout.oracle import Evidence, judge
from penstock.state.showing import plain
from penstock.testing import Harness

STOCK, BALANCE = 12, 150
"""Little, so that goods and money run out."""
TIMEOUT_S: Final = 2.0
LATE_S: Final = 120.0
"""When such a request arrives, whoever sent it has given it up, and undone what it was for."""
SETTLED: Final = "10m"

_numbers = count()
_SOURCE: Final = Path(settings.__file__).with_name("app.py")


class Fate(Enum):
    """What becomes of one request to the bank."""

    DONE = "done"
    LOST = "lost"
    REPLY_LOST = "reply lost"
    LATE = "late"


class Till:
    """The bank, as `TELLER` is asked."""

    def __init__(self, mode: Mode, fate: Callable[[], Fate] = lambda: Fate.DONE) -> None:
        self.ledger: list[dict[str, Any]] = []
        self.late: set[asyncio.Task[None]] = set()
        self._books = Books(mode)
        self._fate = fate

    async def ask(self, asked: Asked, *, idempotency_key: str) -> bool:
        asked = asked._replace(key=asked.key or idempotency_key)
        match self._fate():
            case Fate.DONE:
                return self._do(asked)
            case Fate.LOST:
                raise ConnectionError("It did not get there.")
            case Fate.REPLY_LOST:
                self._do(asked)
                raise ConnectionError("The answer was lost.")
            case Fate.LATE:
                task = asyncio.get_running_loop().create_task(self._do_late(asked))
                self.late.add(task)
                task.add_done_callback(self.late.discard)
                await asyncio.sleep(TIMEOUT_S)
                raise TimeoutError

    async def _do_late(self, asked: Asked) -> None:
        await asyncio.sleep(LATE_S)
        self._do(asked)

    def _do(self, asked: Asked) -> bool:
        try:
            effect = self._books.effect(asked)
        except Refused:
            return False
        if effect is not None:
            what, amount = effect
            self._books.note(what, asked.order, amount, asked.key)
            self.ledger.append({"what": what, "order": asked.order, "user": asked.user, "amount": amount})
        return True


def shop_with(till: Till, **environ: str) -> ModuleType:
    """The module of the application as a process has it whose environment says this."""
    name = f"{__name__}.shop_{next(_numbers)}"
    usual = {"COMPARE_STOCK": str(STOCK), "COMPARE_BALANCE": str(BALANCE)}
    spec = spec_from_file_location(name, _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    with patch.dict(os.environ, usual | environ):
        spec.loader.exec_module(module)
    setattr(module, "TELLER", till)  # noqa: B010  # Not an attribute that every module has.
    return module


def orders(number: int, *, seed: int = 1, theta: float = 1.2) -> list[data.Placed]:
    return [data.order(seed, each, theta) for each in range(number)]


def play(harness: Harness, till: Till, placed: Sequence[data.Placed]) -> dict[str, Any]:
    """Place all these orders in the stream runtime, and let everything come to rest. What the oracle says then."""
    order = harness.app.functions["shop/order"]
    for each in placed:
        harness.send(order, each.id, order.message_codec.convert(each.body), idempotency_key=each.id)
    harness.advance(SETTLED)
    states = {
        typename: {
            id: {field: plain(getattr(state, field)) for field in state.__struct_fields__}
            for id, state in harness.states(typename).items()
        }
        for typename in data.FUNCTIONS
    }
    return verdict_on(till, states, placed, {})


def verdict_on(
    till: Till, states: Mapping[str, Mapping[str, Any]], placed: Iterable[data.Placed], told: Mapping[str, str]
) -> dict[str, Any]:
    """What the oracle says: of the states by function and id, and of what was told of each order."""
    initial = data.initial(STOCK, BALANCE)
    records = [{"fn": name, "id": id, "state": state} for name, by_id in states.items() for id, state in by_id.items()]
    events = [{"kind": "offered", "order": order.id} for order in placed]
    events += [{"kind": "reply", "order": order, "outcome": outcome} for order, outcome in told.items()]
    return judge(Evidence(initial["stock"], initial["balances"], till.ledger, records, events))
