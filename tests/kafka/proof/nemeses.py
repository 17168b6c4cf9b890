"""What may happen to an application while it works. `strike` lets it happen, and waits until there is output again.

Moments are chosen by chance, and from what the processes say: so kills also hit restores, hand-offs and recoveries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.kafka.proof.running import Run

RECOVERED_S = 45
FENCED, SILENT = "PEN0770", "was silent for"
CRASHED = "\ndies at "
"""What a process says that crashes by itself."""
MISSED_S = 20
"""A worker that has no tasks yet is not missed by anybody."""
NEW_ATTEMPT, IS_THERE, CONTINUES = "a new attempt begins", "is there", "continued from checkpoint"

Nemesis = Callable[[Run], Awaitable[None]]


async def kill_worker(run: Run) -> None:
    run.kill(run.worker(), what="worker")


async def kill_leader(run: Run) -> None:
    run.kill(run.leader(), what="leader")


async def kill_worker_and_leader(run: Run) -> None:
    run.kill(run.worker(), run.leader(), what="worker and leader")


async def kill_all_workers(run: Run) -> None:
    run.kill(*run.workers(), what="all workers")


async def kill_everything(run: Run) -> None:
    run.kill(*run.processes(), what="everything")


async def kill_two_in_quick_succession(run: Run) -> None:
    await kill_worker(run)
    await run.work(0.3 * run.random.random())
    run.kill(run.worker(), what="worker, soon after another")


async def kill_leader_during_recovery(run: Run) -> None:
    await kill_worker(run)
    await run.work(0.15 * run.random.random())
    run.kill(run.leader(), what="leader, during a recovery")


async def kill_worker_during_restore(run: Run) -> None:
    """As soon as an attempt has begun, or a little later: its tasks are being restored."""
    said = run.mark()
    await kill_worker(run)
    if await run.hears(NEW_ATTEMPT, since=said, within_s=MISSED_S):
        await run.work(0.3 * run.random.random())
        run.kill(run.worker(), what="worker, during a restore")


async def kill_during_hand_off(run: Run) -> None:
    """A worker that was killed is there again, and gets tasks of the other: kill the one, the other or the leader."""
    said = run.mark()
    await kill_worker(run)
    await run.must_hear(CONTINUES, since=said)
    await run.must_hear(IS_THERE, since=said)
    await run.work(0.4 * run.random.random())
    pid = run.random.choice([run.worker(), run.worker(), run.leader()])
    run.kill(pid, what="during a hand-off")


async def freeze_worker_for_long(run: Run) -> None:
    """Beyond its session: its tasks go to others, and it must end when it wakes up, and say so."""
    said, pid = run.mark(), run.worker()
    if not pid:
        return
    run.freeze(pid, what="freeze")
    try:
        missed = await run.hears(SILENT, since=said, within_s=MISSED_S)
        await run.work(run.random.random())
    finally:
        run.thaw(pid)
    if missed:
        await run.ends(pid)
        if not run.says(CRASHED, since=said):  # One that crashes as it wakes up can't say anything any more.
            await run.must_hear(FENCED, since=said)


async def freeze_worker_and_kill_leader(run: Run) -> None:
    """The next leader has never heard of the worker that is frozen."""
    said, pid = run.mark(), run.worker()
    if not pid:
        return
    run.freeze(pid, what="freeze")
    try:
        await kill_leader(run)
        missed = await run.hears(SILENT, since=said, within_s=MISSED_S)
    finally:
        run.thaw(pid)
    if missed:
        await run.ends(pid)


async def freeze_worker_shortly(run: Run) -> None:
    """Within its session: it goes on as if nothing had happened."""
    pid = run.worker()
    if not pid:
        return
    run.freeze(pid, what="short freeze")
    await run.work(0.2 + 0.5 * run.random.random())
    run.thaw(pid)


async def freeze_leader(run: Run) -> None:
    pid = run.leader()
    if not pid:
        return
    run.freeze(pid, what="frozen leader")
    await run.work(0.5 + 3 * run.random.random())
    run.thaw(pid)


async def terminate_worker(run: Run) -> None:
    """It gives its tasks back, and nothing is done again."""
    pid = run.worker()
    if pid:
        run.terminate(pid)
        await run.ends(pid, within_s=40)


LONE: tuple[Nemesis, ...] = (
    kill_worker,
    kill_all_workers,
    kill_two_in_quick_succession,
    freeze_worker_for_long,
    terminate_worker,
)
"""For workers that lead themselves."""
KILLS: tuple[Nemesis, ...] = (
    kill_worker,
    kill_leader,
    kill_worker_and_leader,
    kill_all_workers,
    kill_everything,
    kill_two_in_quick_succession,
    kill_leader_during_recovery,
    kill_worker_during_restore,
    kill_during_hand_off,
    terminate_worker,
)
FREEZES: tuple[Nemesis, ...] = (
    freeze_worker_for_long,
    freeze_worker_shortly,
    freeze_worker_and_kill_leader,
    freeze_leader,
)


async def strike(run: Run, nemesis: Nemesis) -> float:
    """Let it work for a moment, and let `nemesis` happen. Returns how long it took until there was output."""
    await run.work(0.1 + 0.7 * run.random.random())
    await nemesis(run)
    return await run.progress(within_s=RECOVERED_S)
