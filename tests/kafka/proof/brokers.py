"""What may happen to the brokers while an application works."""

from __future__ import annotations

import asyncio

from tests.kafka.broker import Cluster, Node
from tests.kafka.proof.nemeses import kill_leader, kill_worker
from tests.kafka.proof.running import Run

RECOVERED_S = 60


async def restart_broker(run: Run, node: Node, away_s: float) -> None:
    """SIGKILL, and a new start on the data that it left."""
    run.count("broker")
    node.kill()
    await run.work(away_s)
    await asyncio.to_thread(node.start)


async def freeze_broker(run: Run, node: Node, away_s: float) -> None:
    run.count("frozen broker")
    node.freeze()
    try:
        await run.work(away_s)
    finally:
        node.thaw()


async def restart_broker_and_kill(run: Run, node: Node, away_s: float) -> None:
    """A worker or the leader dies when it can tell nobody, and the next starts when nobody answers."""
    run.count("broker")
    node.kill()
    await run.work(0.5 * away_s * run.random.random())
    await (kill_worker if run.random.random() < 0.7 else kill_leader)(run)
    await run.work(0.5 * away_s)
    await asyncio.to_thread(node.start)


BROKER_NEMESES = (restart_broker, freeze_broker, restart_broker_and_kill)


async def strike_broker(run: Run, cluster: Cluster, away_s: float) -> None:
    """Let it work for a moment, let something happen to any broker, and wait until there is output again."""
    await run.work(0.3 + 0.7 * run.random.random())
    nemesis, node = run.random.choice(BROKER_NEMESES), run.random.choice(cluster.nodes)
    await nemesis(run, node, away_s)
    await run.progress(within_s=RECOVERED_S)
