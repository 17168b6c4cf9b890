"""An application that has one of everything a checkpoint can hold, and the looks at one that tests compare."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from penstock import App, Context, Expire, FileEgress, GeneratorIngress, Log, Message, State, Table, Value
from penstock.engine.config import Config
from penstock.engine.offline import Directory, open_stopped, restored_checkpoint
from penstock.engine.regroup import fold_all
from penstock.engine.worker import Worker
from penstock.ids import Address
from penstock.state import keys

TASKS = 2
KINDS = {
    keys.VALUE: "values",
    keys.TABLE: "rows of tables",
    keys.LOG: "rows of logs",
    keys.EXPIRATION: "expirations",
    keys.IDEMPOTENCY: "idempotency results",
    keys.TOKEN: "tokens of delayed messages",
    keys.TIMER: "timers",
    keys.PENDING: "pending messages",
    keys.DEAD: "dead letters",
}


STATE = ("state", "tables", "logs")


class Movement(Message):
    amount: int
    currency: str = "EUR"


class Account(State):
    balance: int = 0
    recent: Annotated[int, Expire(after_write="1h")] = 0
    by_currency: Table[str, int] = Table()
    movements: Log[Movement] = Log()


class Seen(State):
    count: int = 0
    last: int = 0


def golden(records: int, output: Path, *, broken: bool) -> App:
    """While it is `broken`, some handlers fail, and others wait for what does not come."""
    app = App("golden")
    app.egress("golden/rows", FileEgress(str(output)))

    @app.function("golden/account")
    def account(ctx: Context[Account], movement: Movement) -> int:
        state = ctx.state
        state.balance += movement.amount
        state.recent += 1
        state.by_currency[movement.currency] = state.by_currency.get(movement.currency, 0) + movement.amount
        state.movements.append(movement)
        for note in range(4):
            ctx.send("golden/note", f"n{note}", movement.amount)
        return state.balance

    @app.function("golden/note", storage={"total": Value(int, default=0), "last": Value(int)})
    def note(ctx: Context[None], amount: int) -> None:
        ctx.storage.total += amount
        ctx.storage.last = amount

    @app.function("golden/later")
    def later(ctx: Context[Seen], amount: int) -> None:
        ctx.send_after("1h", "golden/note", "later", amount, token=f"t{amount}")

    @app.function("golden/flaky", attempts=5, backoff="1h", backoff_max="1h")
    def flaky(ctx: Context[Seen], amount: int) -> None:
        if broken:
            raise ValueError("not yet")
        ctx.state.count += 1

    @app.function("golden/slow")
    async def slow(ctx: Context[Seen], amount: int) -> None:
        if broken:
            await asyncio.Event().wait()
        ctx.state.count += 1
        ctx.state.last = amount

    @app.function("golden/bad")
    def bad(ctx: Context[Seen], amount: int) -> None:
        """Gets what is no number. A handler that raised would leave the path of this file in the dead letter."""

    @app.function("golden/emit")
    def emit(ctx: Context[Seen], amount: int) -> None:
        ctx.state.count += 1
        ctx.emit("golden/rows", {"id": ctx.id, "amount": amount})

    app.ingress(
        GeneratorIngress(lambda start: iter(range(start, records))), to=note, key=lambda n: f"i{n % 2}", name="numbers"
    )
    return app


def config(directory: Path, tasks: int, **options: Any) -> Config:
    return Config(directory=directory, port=None, parallelism=tasks, interval_ms=20, **options)


def clock_from(start_s: float) -> Callable[[], float]:
    """A clock that shows `start_s` now."""
    began = time.monotonic()
    return lambda: start_s + time.monotonic() - began


def look(directory: Path, output: Path, at: int | None = None) -> dict[str, Any]:
    """What a checkpoint, the newest if none is named, holds: all states, all dead letters, and how many there are of
    everything else."""
    app = golden(0, output, broken=False)
    with Directory(directory) as opened:
        newest = opened.newest()
        assert newest is not None
        manifest = opened.journal.manifest(newest if at is None else opened.retained(at))
        counts: Counter[str] = Counter()
        with restored_checkpoint(opened, manifest.checkpoint) as restored:
            for each in restored:
                counts["messages in queues"] += sum(tail - head for head, tail, _ in each.queues.values())
                counts["rows of egresses"] += sum(len(b.rows) for batches in each.staged.values() for b in batches)
                fold_all(each)
                for key, _ in each.overlay.backend.scan(b"", b"\xff"):
                    kind = KINDS.get(key[1] if key[0] < keys.META else key[0])
                    counts.update([kind] if kind else ())
        for part in manifest.parts:
            source = opened.source(part, manifest, {})
            counts["frames under way"] += sum(1 for _ in source.inbox)
            counts["requests under way"] += sum(1 for _ in source.requests)
            counts["bases"] += bool(part.base)
            counts["deltas"] += part.head >= 0
        with open_stopped(app, opened, checkpoint=manifest.checkpoint, note=print) as stopped:
            states = {
                f"{typename}/{id}": {
                    name: shown for name, shown in stopped.state(typename, id).items() if name in STATE and shown
                }
                for typename in app.functions
                for id in stopped.state_ids(typename, prefix="", limit=1_000)
            }
            letters = [
                {name: letter[name] for name in ("number", "function", "id", "code", "message")}
                for letter in map(
                    stopped.letter, (each["number"] for each in stopped.letters(typename=None, code=None, limit=1_000))
                )
            ]
    return {
        "tasks": manifest.parallelism,
        "replays": len(manifest.lineage.replays),
        "counts": {name: count for name, count in sorted(counts.items()) if count},
        "states": states,
        "letters": letters,
    }


def go_on(directory: Path, output: Path, tasks: int, now_s: float) -> dict[str, Any]:
    """Continue to the end of everything, two hours later and with code that works. Returns the rows that came of it,
    and what a request is answered that was made before."""

    async def run() -> bytes:
        app = golden(10, output, broken=False)
        worker = Worker(app, config(directory, tasks, until_done=True), clock=clock_from(now_s + 7_200))
        await worker.start()
        request = Address("golden/account", "ada"), msgspec.msgpack.encode(Movement(100))
        asked = asyncio.ensure_future(worker.requests.call(*request, idempotency_key="once"))
        await asyncio.sleep(0)
        await worker.serve()
        await worker.finish()
        return (await asked).value

    answer = asyncio.run(run())
    rows = sorted(line for part in output.glob("part*") for line in part.read_text(encoding="utf-8").splitlines())
    return {"answer": msgspec.msgpack.decode(answer), "rows": rows, **look(directory, output)}
