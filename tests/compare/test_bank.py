"""The bank of the comparison: what its modes do about what comes again, and about what comes too late."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compare.checkout.bank import Asked, Bank, Books, Mode, Refused, What
from penstock.compare.checkout.teller import Teller
from penstock.compare.records import RunDirectory

AUTHORISE, CAPTURE, REFUND, VOID = What


def asked(what: What, key: str = "", order: str = "o-1") -> Asked:
    return Asked(what, order, "ada", 30, key)


def effects(mode: Mode, *requests: Asked) -> list[str]:
    """What these requests do, one after the other."""
    books, found = Books(mode), list[str]()
    for each in requests:
        try:
            effect = books.effect(each)
        except Refused:
            found.append("refused")
            continue
        if effect is not None:
            what, amount = effect
            books.note(what, each.order, amount, each.key)
            found.append(what)
    return found


def test_a_request_that_comes_again_is_done_again_without_keys() -> None:
    again = asked(CAPTURE, "k"), asked(CAPTURE, "k")

    assert effects(Mode.PLAIN, *again) == ["capture", "capture"]
    assert effects(Mode.KEYED, *again) == ["capture"]
    assert effects(Mode.TRANSACTIONAL, *again) == ["capture"]


def test_another_key_is_another_request_for_who_knows_only_keys() -> None:
    again = asked(CAPTURE, "k"), asked(CAPTURE, "l")

    assert effects(Mode.KEYED, *again) == ["capture", "capture"]
    assert effects(Mode.TRANSACTIONAL, *again) == ["capture"]


@pytest.mark.parametrize(("first", "undone"), [(CAPTURE, REFUND), (AUTHORISE, VOID)])
def test_what_comes_behind_what_undoes_it_is_refused_by_transactions_alone(first: What, undone: What) -> None:
    reordered = asked(undone, "u"), asked(first, "f")

    assert effects(Mode.PLAIN, *reordered) == [first]
    assert effects(Mode.KEYED, *reordered) == [first]
    assert effects(Mode.TRANSACTIONAL, *reordered) == ["void", "refused"]


@pytest.mark.parametrize("mode", Mode)
def test_undoing_gives_back_what_was_done_and_no_more(mode: Mode) -> None:
    assert effects(mode, asked(CAPTURE, "1"), asked(REFUND, "2"), asked(REFUND, "3")) == ["capture", "refund"]
    assert effects(mode, asked(AUTHORISE, "1"), asked(VOID, "2"), asked(VOID, "3")) == ["authorise", "void"]


def test_an_order_that_is_captured_is_not_voided() -> None:
    two_phases = asked(AUTHORISE, "1"), asked(CAPTURE, "2"), asked(VOID, "3")

    assert effects(Mode.TRANSACTIONAL, *two_phases) == ["authorise", "capture", "refused"]


REQUESTS = st.lists(st.builds(asked, st.sampled_from(What), st.sampled_from("abc"), st.sampled_from(["o-1", "o-2"])))


@given(REQUESTS, st.sampled_from(Mode))
def test_no_more_is_given_back_than_was_taken(requests: list[Asked], mode: Mode) -> None:
    for order in ("o-1", "o-2"):
        done = effects(mode, *(each for each in requests if each.order == order))
        for number in range(len(done) + 1):
            so_far = done[:number]
            assert so_far.count("refund") <= so_far.count("capture")
            assert mode is Mode.TRANSACTIONAL or so_far.count("void") <= so_far.count("authorise")


@given(REQUESTS)
def test_transactions_do_each_thing_once(requests: list[Asked]) -> None:
    done = effects(Mode.TRANSACTIONAL, *(each._replace(order="o-1") for each in requests))

    assert all(done.count(what) <= 1 for what in What)


@given(REQUESTS, st.sampled_from(Mode), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_a_bank_that_is_started_again_goes_on_where_it_was(requests: list[Asked], mode: Mode, end: int) -> None:
    with TemporaryDirectory() as folder:
        straight, broken = Path(folder) / "straight.jsonl", Path(folder) / "broken.jsonl"
        play(Bank(mode, straight), requests)
        play(Bank(mode, broken), requests[:end])
        with broken.open("a") as file:
            file.write('{"t": 1, "what": "captu')
        play(Bank(mode, broken), requests[end:])

        assert entries(straight) == entries(broken)


def play(bank: Bank, requests: list[Asked]) -> None:
    for each in requests:
        try:
            bank.handle(each)
        except Refused:
            continue
    bank.close()


def entries(ledger: Path) -> list[dict[str, Any]]:
    """All but when."""
    return [{**json.loads(line), "t": 0} for line in ledger.read_text().splitlines()]


def test_it_is_asked_over_http_and_keeps_a_ledger_that_can_be_read(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-m", "penstock.compare.checkout.bank", "--ledger", str(ledger), "--mode"]
    with subprocess.Popen([*command, "transactional"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            asyncio.run(_ask(process.stdout.readline().strip()))
        finally:
            process.terminate()

    found = RunDirectory(tmp_path).ledger()
    assert [(each.what, each.key, each.request) for each in found] == [
        ("request", "k1", 1),
        ("authorise", "k1", 1),
        ("request", "k2", 2),
        ("capture", "k2", 2),
        ("request", "k3", 3),
    ]
    assert {each.user for each in found} == {"ada"}


async def _ask(url: str) -> None:
    teller = Teller(url, timeout_s=30)
    assert await teller.ask(asked(AUTHORISE), idempotency_key="k1")
    assert await teller.ask(asked(CAPTURE), idempotency_key="k2")
    assert not await teller.ask(asked(VOID), idempotency_key="k3")
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/health") as health:
            assert await health.json() == {"mode": "transactional"}
        async with session.post("/slow", json={"handler_s": 60}) as slow:
            assert await slow.json() == {"prepare_s": 0, "handler_s": 60}
        async with session.post("/capture", json={"order": "o-1"}) as wrong:
            assert wrong.status == 400
    with pytest.raises(TimeoutError):
        await Teller(url, timeout_s=0.05).ask(asked(REFUND), idempotency_key="k4")
