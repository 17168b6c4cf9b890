"""A ledger as a program to be killed, and what must be true of the lines it wrote.

Money moves between accounts in four ways, so that a crash can catch it anywhere: at once; through a function that
suspends; after a delay; and held back for an hour, then released by a message that calls the delay back. Some handlers
fail the first time. Every booking is one line with a number of its own account.

    python -m tests.kill.ledger DIRECTORY TRANSFERS PARALLELISM PAUSE
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from penstock import App, Context, FileEgress, GeneratorIngress, Message, State
from penstock.engine.config import Config
from tests.kill.telling import run_telling

ACCOUNTS = 40
OPENING = 1_000
Way = Literal["at once", "cleared", "delayed", "held"]
BURST = 20

app = App("ledger")


class Transfer(Message):
    """To the account that pays."""

    number: int
    payer: str
    payee: str
    amount: int
    way: Way


class Credit(Message):
    """To the account that is paid."""

    transfer: Transfer


class Release(Message):
    """To the account that pays: the transfer need not be held any longer."""

    transfer: Transfer


class Account(State):
    balance: int = OPENING
    bookings: int = 0


class Failed(Exception):
    """As if the network had failed."""


@app.function("ledger/account", backoff="10ms")
def account(ctx: Context[Account], message: Transfer | Credit | Release) -> None:
    match message:
        case Transfer(number=number, amount=amount):
            if number % 53 == 0 and ctx.message.attempt == 1:
                raise Failed
            book(ctx, message, -amount)
            pay(ctx, message)
        case Credit(transfer):
            book(ctx, transfer, transfer.amount)
        case Release(transfer):
            ctx.cancel(f"hold {transfer.number}")
            ctx.send(account, transfer.payee, Credit(transfer))


def pay(ctx: Context[Account], transfer: Transfer) -> None:
    match transfer.way:
        case "at once":
            ctx.send(account, transfer.payee, Credit(transfer))
        case "cleared":
            ctx.send(clearing, transfer.payee, transfer)
        case "delayed":
            ctx.send_after("50ms", account, transfer.payee, Credit(transfer))
        case "held":
            token = f"hold {transfer.number}"
            ctx.send_after("1h", account, transfer.payee, Credit(transfer), token=token)
            ctx.send(approval, transfer.payee, transfer)


@app.function("ledger/clearing", backoff="10ms")
async def clearing(ctx: Context[None], transfer: Transfer) -> None:
    await asyncio.sleep(0.005)
    if transfer.number % 51 == 0 and ctx.message.attempt == 1:
        raise Failed
    ctx.send(account, transfer.payee, Credit(transfer))


@app.function("ledger/approval")
async def approval(ctx: Context[None], transfer: Transfer) -> None:
    await asyncio.sleep(0.002)
    ctx.send(account, transfer.payer, Release(transfer))


def book(ctx: Context[Account], transfer: Transfer, amount: int) -> None:
    ctx.state.balance += amount
    ctx.state.bookings += 1
    booking = {"account": ctx.id, "number": ctx.state.bookings, "transfer": transfer.number}
    ctx.emit("ledger/bookings", booking | {"amount": amount, "balance": ctx.state.balance})


def transfer(number: int) -> Transfer:
    """Number `number` of the same endless sequence in every run."""
    choose = random.Random(number)
    payer, payee = choose.sample(range(ACCOUNTS), 2)
    return Transfer(
        number, f"account-{payer}", f"account-{payee}", choose.randint(1, 500), choose.choice(get_args(Way))
    )


def connect(results: Path, transfers: int, *, pause_s: float) -> App:
    """The application, with a pause after every twenty transfers."""

    async def transfers_from(start: int) -> AsyncIterator[Transfer]:
        for number in range(start, transfers):
            if pause_s and number % BURST == 0:
                await asyncio.sleep(pause_s)
            yield transfer(number)

    app.ingress(GeneratorIngress(transfers_from, type=Transfer), to=account, key="payer", name="transfers")
    app.egress("ledger/bookings", FileEgress(str(results)))
    return app


def check(bookings: Iterable[dict[str, Any]], transfers: int) -> None:
    """Every transfer left one account once and reached the other once, and every account booked without a gap."""
    by_account: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    moved: Counter[tuple[int, str, int]] = Counter()
    for booking in bookings:
        by_account[booking["account"]].append(booking)
        moved[booking["transfer"], booking["account"], booking["amount"]] += 1

    expected: Counter[tuple[int, str, int]] = Counter()
    for number in range(transfers):
        one = transfer(number)
        expected[number, one.payer, -one.amount] += 1
        expected[number, one.payee, one.amount] += 1
    assert moved == expected

    total = 0
    for booked in by_account.values():
        booked.sort(key=lambda booking: booking["number"])
        assert [booking["number"] for booking in booked] == list(range(1, len(booked) + 1))
        balance = OPENING
        for booking in booked:
            balance += booking["amount"]
            assert booking["balance"] == balance
        total += balance
    assert total == OPENING * len(by_account)


if __name__ == "__main__":
    directory, count, parallelism, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    config = Config(directory=directory / "state", parallelism=parallelism, until_done=True, port=None)
    run_telling(connect(directory / "results", count, pause_s=pause), config)
