"""The bank: outside of both runtimes, where no crash and no rollback takes anything back. Its ledger is the truth.

    python -m penstock.compare.checkout.bank --port 0 --ledger FILE --mode keyed

Asked by `POST /authorise`, `/capture`, `/refund` and `/void` with `{"order", "user", "amount"}` and an
`Idempotency-Key`; answers 200 when it is as was asked for, 409 when it can't be any more. `POST /slow {"prepare_s",
"handler_s"}` delays authorisations, and everything else, from then on. The ledger has a line for every request that
came, and one for every effect it had, in the order in which they were; nothing in it is ever changed. A bank that is
started again with its ledger goes on where it was. Times are those of the clock that never jumps.

| mode            | a request that comes again | something that comes behind what undoes it |
| `plain`         | is done again              | is done                                    |
| `keyed`         | with its key, is not       | is done                                    |
| `transactional` | is not                     | is refused                                 |

`transactional` prepares and commits: an order is authorised, and then captured or voided, each once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import web

HOST: Final = "127.0.0.1"
SHUTDOWN_S: Final = 0.1
"""A request that takes longer by then is not done."""


class Mode(StrEnum):
    """See the module."""

    PLAIN = "plain"
    KEYED = "keyed"
    TRANSACTIONAL = "transactional"


class What(StrEnum):
    """What is asked for, and what is done."""

    AUTHORISE = "authorise"
    CAPTURE = "capture"
    REFUND = "refund"
    VOID = "void"


class Asked(NamedTuple):
    """One request."""

    what: What
    order: str
    user: str
    amount: int
    key: str = ""


class Account:
    """What was done for one order: amounts that are authorised and captured, and whether that is over."""

    def __init__(self) -> None:
        self.authorised: list[int] = []
        self.captured: list[int] = []
        self.is_closed = False
        """It was refunded or voided: `transactional` takes nothing for it any more, whatever is still on its way."""

    def note(self, what: What, amount: int) -> None:
        """Something was done."""
        match what:
            case What.AUTHORISE:
                self.authorised.append(amount)
            case What.CAPTURE:
                del self.authorised[:1]
                self.captured.append(amount)
            case What.REFUND:
                del self.captured[:1]
                self.is_closed = True
            case What.VOID:
                del self.authorised[:1]
                self.is_closed = True


class Books:
    """Decides what a request does. What was done is told by `note`, also when it is read from the ledger."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._accounts: defaultdict[str, Account] = defaultdict(Account)
        self._keys: set[str] = set()

    def note(self, what: What, order: str, amount: int, key: str) -> None:
        self._accounts[order].note(what, amount)
        if key:
            self._keys.add(key)

    def effect(self, asked: Asked) -> tuple[What, int] | None:
        """What a request does, and with how much; None when all is as was asked for. Raises Refused."""
        account = self._accounts[asked.order]
        if self.mode is Mode.KEYED and asked.key in self._keys:
            return None
        if self.mode is Mode.TRANSACTIONAL:
            return self._effect_once(asked, account)
        match asked.what:
            case What.AUTHORISE | What.CAPTURE:
                return asked.what, asked.amount
            case What.REFUND:
                return (What.REFUND, account.captured[0]) if account.captured else None
            case What.VOID:
                return (What.VOID, account.authorised[0]) if account.authorised else None

    def _effect_once(self, asked: Asked, account: Account) -> tuple[What, int] | None:
        match asked.what:
            case What.AUTHORISE | What.CAPTURE if account.is_closed:
                raise Refused(f"{asked.order} is over, so nothing is taken for it any more.")
            case What.AUTHORISE:
                return None if account.authorised or account.captured else (asked.what, asked.amount)
            case What.CAPTURE:
                return None if account.captured else (asked.what, asked.amount)
            case What.VOID if account.captured:
                raise Refused(f"{asked.order} is captured, so it can't be voided: refund it.")
        if account.is_closed:
            return None
        if account.captured:
            return What.REFUND, account.captured[0]
        # Also of nothing: what is to be undone may still be on its way.
        return What.VOID, sum(account.authorised)


class Refused(Exception):
    """It can't be done any more."""


class Ledger:
    """The file. A line that was torn by a crash of the bank was never answered, and is cut off."""

    def __init__(self, path: Path, books: Books) -> None:
        self._requests = 0
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        for line in map(json.loads, whole.splitlines()):
            self._requests = max(self._requests, line["request"])
            if line["what"] != "request":
                books.note(What(line["what"]), line["order"], line["amount"], line["key"])

    def came(self, asked: Asked) -> int:
        """A request came. Returns its number."""
        self._requests += 1
        self._append(asked, "request", asked.amount, self._requests, wanted=asked.what)
        return self._requests

    def did(self, asked: Asked, what: What, amount: int, request: int) -> None:
        self._append(asked, what, amount, request)

    def _append(self, asked: Asked, what: str, amount: int, request: int, **more: str) -> None:
        line = {"t": time.monotonic(), "what": what, "key": asked.key, "order": asked.order, "user": asked.user}
        line |= {"amount": amount, "request": request, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


class Bank:
    """Serves the books over HTTP."""

    def __init__(self, mode: Mode, ledger: Path) -> None:
        self._books = Books(mode)
        self._ledger = Ledger(ledger, self._books)
        self._prepare_s = 0.0
        self._handler_s = 0.0

    def handle(self, asked: Asked) -> None:
        """Do it, once the books say what it does. Raises Refused."""
        request = self._ledger.came(asked)
        effect = self._books.effect(asked)
        if effect is not None:
            what, amount = effect
            self._ledger.did(asked, what, amount, request)
            self._books.note(what, asked.order, amount, asked.key)

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes([web.post(f"/{what}", self._serve) for what in What])
        application.add_routes([web.post("/slow", self._slow_down), web.get("/health", self._health)])
        return application

    def close(self) -> None:
        self._ledger.close()

    async def _serve(self, request: web.Request) -> web.Response:
        what = What(request.path.removeprefix("/"))
        try:
            body = await request.json()
            asked = Asked(what, body["order"], body["user"], int(body["amount"]))
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response({"error": f'Give {{"order", "user", "amount"}}: {error!r}.'}, status=400)
        await asyncio.sleep(self._prepare_s if what is What.AUTHORISE else self._handler_s)
        try:
            self.handle(asked._replace(key=request.headers.get("Idempotency-Key", "")))
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=409)
        return web.json_response({"done": what})

    async def _slow_down(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._prepare_s = float(body.get("prepare_s", 0))
        self._handler_s = float(body.get("handler_s", 0))
        return web.json_response({"prepare_s": self._prepare_s, "handler_s": self._handler_s})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"mode": self._books.mode})


async def serve(bank: Bank, port: int, stopped: asyncio.Event) -> None:
    """Until it is stopped. Says where it is, once it can be asked."""
    runner = web.AppRunner(bank.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        sys.stdout.write(f"http://{HOST}:{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await runner.cleanup()
        bank.close()


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m penstock.compare.checkout.bank", description="Keep the money.")
    options.add_argument("--port", type=int, default=0, help="where to listen on loopback; 0 chooses a free one")
    options.add_argument("--ledger", type=Path, required=True, help="the file that every effect is appended to")
    options.add_argument("--mode", type=Mode, choices=list(Mode), default=Mode.KEYED)
    chosen: Any = options.parse_args(arguments)
    with suppress(KeyboardInterrupt):
        asyncio.run(_until_told(Bank(chosen.mode, chosen.ledger), chosen.port))


async def _until_told(bank: Bank, port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await serve(bank, port, stopped)


if __name__ == "__main__":
    main()
