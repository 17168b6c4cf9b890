"""Makes a golden data directory and savepoint, as the next pair `format-N.*`: `python -m tests.golden.make`.

To be run when a format that is stored has got another number, and never to make a test pass: what is there stays, and
stays restorable for as long as an application may have been stopped with it. See `test_golden`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from penstock.checkpoint import control, delta, savepoint, store
from penstock.checkpoint.stores import open_blobs
from penstock.engine import journal, restore
from penstock.engine.offline import Directory
from penstock.engine.rescaling import rescale
from penstock.engine.savepoints import take_stopped
from penstock.engine.sinks import SinkDriver
from penstock.engine.worker import Worker
from penstock.ids import Address, key_group
from tests.golden.app import TASKS, Movement, config, go_on, golden, look

FOLDER = Path(__file__).parent


def formats() -> dict[str, int]:
    """Of everything that is stored, as this version writes it."""
    return {
        "manifest": control.FORMAT,
        "delta": delta.FORMAT,
        "savepoint": savepoint.FORMAT,
        "list of a base": store.FORMAT,
        "rows of a base": restore.FORMAT,
        "index": journal.INDEX_FORMAT,
    }


def make(folder: Path) -> dict[str, Any]:
    """Leave `data` and `saved` in a folder. Returns what is in them, and what comes of them."""
    data, output = folder / "data", folder / "rows"
    asyncio.run(_use(data, output))
    rescale(golden(5, output, broken=True), config(data, TASKS), 1, now_ms=_now_ms(), progress=_no_bar)
    shutil.rmtree(data / "savepoints")
    asyncio.run(_leave(data, output, rows=False))
    with Directory(data) as opened:
        take_stopped(opened, open_blobs(str(folder / "saved")), now_ms=_now_ms(), progress=_no_bar)
        saved = opened.newest()
        assert saved is not None
    asyncio.run(_leave(data, output, rows=True))
    shutil.rmtree(data / "tasks")
    (data / "LOCK").unlink(missing_ok=True)
    made_s = time.time()
    shutil.copytree(data, folder / "copy")
    return {
        "formats": formats(),
        "made_s": made_s,
        "saved": look(data, output, saved.checkpoint),
        "restored": look(data, output),
        "continued": go_on(folder / "copy", folder / "after", TASKS, made_s),
    }


async def _use(data: Path, output: Path) -> None:
    """Some work of one task, with a replay, up to a stop in order."""
    first = await _work(data, output, {"ada": 10, "ben": 20})
    await _work(data, output, {"cid": 1})
    await _work(data, output, {"cid": 30}, from_checkpoint=first)


async def _work(data: Path, output: Path, movements: Mapping[str, int], **options: Any) -> int:
    worker = Worker(golden(5, output, broken=True), config(data, 1, **options))
    await worker.start()
    serving = asyncio.ensure_future(worker.serve())
    for id, amount in movements.items():
        payload = msgspec.msgpack.encode(Movement(amount))
        await worker.requests.call(Address("golden/account", id), payload, idempotency_key="once")
        for name, message in (("later", amount), ("emit", amount), ("bad", "no number")):
            await worker.requests.send(Address(f"golden/{name}", id), msgspec.msgpack.encode(message))
    checkpoint = await worker.take_checkpoint()
    worker.stop()
    await serving
    await worker.finish()
    return checkpoint


async def _leave(data: Path, output: Path, *, rows: bool) -> None:
    """Some work of all tasks, up to the end of a process that is killed behind a checkpoint: much is under way."""
    worker = Worker(golden(5, output, broken=True), config(data, TASKS))
    await worker.start()

    async def send(name: str, id: str, message: Any) -> None:
        await worker.requests.send(Address(f"golden/{name}", id), msgspec.msgpack.encode(message))

    for name in ("flaky", "slow", "slow"):
        await send(name, "dan", 1)
    await send("account", "dan", Movement(5, "USD"))
    for _ in range(10):
        worker._take_turns(_now_ms(), pressure=0)
        await asyncio.sleep(0)
    if rows:
        for unit in worker.units:
            driver = unit.sinks["golden/rows"]
            assert isinstance(driver, SinkDriver)
            driver.handle = lambda event: None  # type: ignore[method-assign]  # It dies before it writes any.
        await send("emit", "dan", 7)
        worker._take_turns(_now_ms(), pressure=0)
    owner = worker.units[key_group("eve") % TASKS]
    owner._invocations_max = 1
    await send("account", "eve", Movement(6, "USD"))
    while not owner.core.queued:
        owner.turn(_now_ms(), paused=False)
    for id in ("flo", "gus"):
        await send("account", id, Movement(7))
    taken = asyncio.ensure_future(worker.take_checkpoint())
    while not taken.done():
        worker.checkpoint_driver.tick(time.time() * 1000)
        await asyncio.sleep(0)
    await worker._abort()


def _now_ms() -> int:
    return int(time.time() * 1000)


def _no_bar(done: int, total: int) -> None:
    """It is over before a bar would be seen."""


def main() -> None:
    name = FOLDER / f"format-{len(list(FOLDER.glob('format-*.json'))) + 1}"
    with TemporaryDirectory() as folder:
        made = make(Path(folder))
        with tarfile.open(f"{name}.tar.gz", "w:gz") as archive:
            for part in ("data", "saved"):
                archive.add(Path(folder) / part, part)
    name.with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"{name}.tar.gz, {name}.json\n")


if __name__ == "__main__":
    main()
