"""The supervisor with processes that only say what a leader or worker would, without Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from penstock.engine.cluster import supervisor as supervisors
from penstock.engine.cluster.channel import EXIT_ORPHANED, Order, Watching
from penstock.engine.cluster.supervisor import Plan, Supervisor
from penstock.errors import ConfigurationError, PenstockError, Unavailable
from penstock.faults import FAULT_VARIABLE
from tests.router.sink_contract import synchronous

ACTOR = """
import asyncio, os, sys
from pathlib import Path
from penstock.engine.cluster.channel import Failed, Finished, Gone, Serving, Stop, Watched, Working

watched = Watched(int(sys.argv[1]))
order = watched.order()
folder = Path(order.directory)


def said(text):
    with (folder / "said").open("a") as file:
        file.write(f"{order.label} {text}\\n")


def told(message):
    if isinstance(message, Gone):
        said(f"hears {message.worker.rpartition('/')[2].partition('#')[0]} {message.reason}")
    if isinstance(message, Stop):
        stopped.set()


async def act():
    global stopped
    stopped = asyncio.Event()
    watched.listen(told)
    said(f"from {order.from_checkpoint}")
    SCRIPT
    watched.say(Working())
    await stopped.wait()
    said("stops")
    watched.say(Finished(False))

asyncio.run(act())
"""


def once(label: str, then: str) -> str:
    """Has the process at this place do something the first time."""
    return f"""
    first = folder / f"{{order.label}}-was-here"
    if order.label == {label!r} and not first.exists():
        first.touch()
        {then}
    """.strip()


Act = Callable[..., Supervisor]


@pytest.fixture
def act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Act:
    """A supervisor of processes that run a few lines before they work as they should."""

    def make(script: str = "", *, workers: int = 2, from_checkpoint: int | None = None) -> Supervisor:
        program = ACTOR.replace("SCRIPT", script)
        monkeypatch.setattr(supervisors, "START", (sys.executable, "-c", program))
        monkeypatch.setattr(supervisors, "RESTART_S", 0.001)
        return Supervisor(
            Plan(
                flags={},
                directory=tmp_path,
                workers=workers,
                port=None,
                stop_timeout_s=20,
                from_checkpoint=from_checkpoint,
            )
        )

    return make


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, PenstockError):
            await task


async def until(holds: Callable[[], object]) -> None:
    """Wait for what other processes do, and leave them the processor."""
    while not holds():  # noqa: ASYNC110  # They announce it to nobody else.
        await asyncio.sleep(0.01)


def said(folder: Path) -> list[str]:
    return (folder / "said").read_text(encoding="utf-8").splitlines() if (folder / "said").exists() else []


@synchronous
async def test_workers_stop_before_the_leader(act: Act, tmp_path: Path) -> None:
    supervisor = act()
    async with running(supervisor) as run:
        await until(lambda: supervisor.ready)
        supervisor.stop()
        await run

    order = [line for line in said(tmp_path) if line.endswith("stops")]
    assert order[2] == "leader stops"
    assert set(order[:2]) == {"worker-0 stops", "worker-1 stops"}


@synchronous
async def test_a_process_that_is_killed_is_replaced_and_the_leader_hears_of_it(act: Act, tmp_path: Path) -> None:
    supervisor = act()
    async with running(supervisor):
        await until(lambda: supervisor.ready)
        name, pid = supervisor.workers[0].name, supervisor.workers[0].pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.workers[0].pid != pid and supervisor.ready)

        await until(lambda: "leader hears worker-0 was killed by SIGKILL" in said(tmp_path))
        assert supervisor.workers[0].name != name
        assert supervisor.started_again == 1


@synchronous
async def test_faults_are_for_the_first_process_at_a_place(
    act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT_VARIABLE, "settle.told:1:kill")
    supervisor = act(f'said("meets " + os.environ.get({FAULT_VARIABLE!r}, "no fault"))')
    async with running(supervisor):
        await until(lambda: supervisor.ready)
        os.kill(supervisor.workers[0].pid, signal.SIGKILL)
        await until(lambda: "worker-0 meets no fault" in said(tmp_path))

    assert "worker-0 meets settle.told:1:kill" in said(tmp_path)
    assert "worker-1 meets no fault" not in said(tmp_path)


@synchronous
async def test_a_leader_that_was_not_there_hears_it_later(act: Act, tmp_path: Path) -> None:
    supervisor = act()
    async with running(supervisor):
        await until(lambda: supervisor.ready and supervisor.leader.working)
        leader = supervisor.leader.pid
        os.kill(leader, signal.SIGKILL)
        os.kill(supervisor.workers[1].pid, signal.SIGKILL)

        await until(lambda: "leader hears worker-1 was killed by SIGKILL" in said(tmp_path))
        assert supervisor.leader.pid != leader


@synchronous
async def test_what_a_person_chose_to_go_back_to_is_told_to_the_first_leader_and_its_workers_only(
    act: Act, tmp_path: Path
) -> None:
    supervisor = act(from_checkpoint=7)
    async with running(supervisor):
        await until(lambda: supervisor.ready and supervisor.leader.working)
        os.kill(supervisor.leader.pid, signal.SIGKILL)
        await until(lambda: len([line for line in said(tmp_path) if line.startswith("leader from")]) == 2)

    leaders = [line for line in said(tmp_path) if line.startswith("leader from")]
    assert leaders == ["leader from 7", "leader from None"]
    # Who knows of it does not compare its code with a state that is left behind.
    assert {line for line in said(tmp_path) if line.startswith("worker")} == {"worker-0 from 7", "worker-1 from 7"}


@synchronous
async def test_an_error_that_a_new_process_would_meet_again_ends_all(act: Act) -> None:
    supervisor = act(
        once("worker-0", 'watched.say(Failed("ConfigurationError", "PEN0105", "Correct it.")); sys.exit(1)')
    )
    async with running(supervisor) as run:
        with pytest.raises(ConfigurationError, match=r"^PEN0105 Correct it\.$"):
            await run


@synchronous
async def test_before_anything_works_every_error_ends_all(act: Act) -> None:
    supervisor = act(
        'if order.label != "leader": await asyncio.sleep(60)\n'
        '    watched.say(Failed("Unavailable", "PEN0740", "No broker.")); sys.exit(1)'
    )
    async with running(supervisor) as run:
        with pytest.raises(Unavailable, match=r"^PEN0740 No broker\.$"):
            await run


@synchronous
async def test_once_they_work_a_worker_that_was_fenced_is_replaced(act: Act, tmp_path: Path) -> None:
    fail = 'watched.say(Working()); watched.say(Failed("Fenced", "PEN0770", "It was silent.")); sys.exit(1)'
    supervisor = act(once("worker-1", fail))
    async with running(supervisor):
        await until(lambda: supervisor.started_again == 1 and supervisor.ready)

    assert "leader hears worker-1 PEN0770 It was silent." in said(tmp_path)


@synchronous
async def test_a_process_that_dies_without_a_word_before_it_worked_ends_all(act: Act) -> None:
    supervisor = act('if order.label == "worker-0": os._exit(3)\n    else: await asyncio.sleep(60)')
    async with running(supervisor) as run:
        with pytest.raises(PenstockError) as raised:
            await run

    assert str(raised.value) == (
        "PEN0775 worker-0 ended with exit code 3 before it had begun to work. What it logged says why."
    )


@synchronous
async def test_it_ends_when_all_workers_say_that_all_is_done(act: Act, tmp_path: Path) -> None:
    supervisor = act('if order.label != "leader": watched.say(Working()); watched.say(Finished(True)); return')
    async with running(supervisor) as run:
        await run

    assert [line for line in said(tmp_path) if line.endswith("stops")] == ["leader stops"]
    assert supervisor.started_again == 0


@synchronous
async def test_killed_it_leaves_no_process(act: Act) -> None:
    supervisor = act()
    async with running(supervisor):
        await until(lambda: supervisor.ready and supervisor.leader.working)
        pids = [place.pid for place in (supervisor.leader, *supervisor.workers)]

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@synchronous
async def test_processes_end_with_their_supervisor_even_while_they_are_busy(tmp_path: Path) -> None:
    """The other end of the channel closes, as it does when a supervisor is killed."""
    watching = Watching()
    program = ACTOR.replace("SCRIPT", "said('busy'); time.sleep(60)").replace("import asyncio", "import time, asyncio")
    descriptor = watching.theirs.fileno()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(descriptor), pass_fds=[descriptor]
    )
    await watching.open()
    watching.say(Order(role="worker", label="worker-0", name="w#1", flags={}, directory=str(tmp_path)))
    await until(lambda: "worker-0 busy" in said(tmp_path))

    watching.close()

    assert await process.wait() == EXIT_ORPHANED
