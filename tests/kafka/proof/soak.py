"""The proof for as long as one likes: everything that may happen, in any order, round after round.

    python -m tests.kafka.proof.soak HOURS [SEED]

Each round has brokers, and an application, of its own, and ends with the checker. What was found is said at once; the
last line is the summary. The exit code is 1 when there was any anomaly. What processes said in a round that found one
is kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.kafka.broker import Cluster, temporary_cluster
from tests.kafka.proof.brokers import strike_broker
from tests.kafka.proof.nemeses import FREEZES, KILLS, strike
from tests.kafka.proof.running import BRISK, Run

ROUND_S = 180.0
APPS = ("tests.kafka.proof.app:app", "tests.kafka.proof.brisk:app", "tests.kafka.proof.crashing:app")
CRASHES = {"PROOF_CRASH_RATE": "0.002", "PROOF_STILL_S": "5"}


async def run_round(cluster: Cluster, directory: Path, seed: int, seconds: float) -> Run:
    """One round. What the checker found is in the result."""
    choose = random.Random(seed)
    app = choose.choice(APPS)
    async with Run(
        cluster.bootstrap,
        "soak",
        directory,
        app=app,
        seed=seed,
        workers=choose.choice((2, 2, 3)),
        session_timeout="4s",
        replicas=len(cluster.nodes),
        environment=CRASHES if app == APPS[0] else {**CRASHES, **BRISK},
    ) as run:
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                run.permit(2)
                if choose.random() < 0.2:
                    await strike_broker(run, cluster, choose.random() * choose.choice((1, 10)))
                else:
                    await strike(run, choose.choice((*KILLS, *KILLS, *FREEZES)))
        except AssertionError as error:
            run.findings.append(f"stood still: {error}")
        for node in cluster.nodes:
            if not node.running:
                await asyncio.to_thread(node.start)
        await run.finish()
        own_ends = run.said().count("\ndies ") + run.said().count("\nstands still ")
        run.kills["by itself"] += own_ends
        return run


def main(hours: float, seed: int) -> int:
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # It tells at length that brokers are away.
    ends_at = time.monotonic() + hours * 3600
    kills, records, anomalies, rounds = Counter[str](), 0, 0, 0
    while (left_s := ends_at - time.monotonic()) > 0:
        directory = Path(tempfile.mkdtemp(prefix="penstock-soak-"))
        with temporary_cluster(nodes=3 if rounds % 2 else 1) as cluster:
            run = asyncio.run(run_round(cluster, directory, seed + rounds, min(ROUND_S, left_s)))
        rounds += 1
        kills += run.kills
        records += run.summary["records"]
        anomalies += len(run.findings)
        say(f"round {rounds}, seed {seed + rounds - 1}: {run.report()}, {run.summary['records']:,} records")
        for finding in run.findings:
            say(finding)
        if run.findings:
            say(f"what its processes said is in {run.log}")
        else:
            shutil.rmtree(directory)
    say(
        f"{datetime.now(UTC):%Y-%m-%d}: {rounds} rounds in {hours:g} h, {kills.total()} kills, {records:,} records, "
        f"{anomalies} anomalies; {json.dumps(dict(kills))}"
    )
    return 1 if anomalies else 0


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # It is a program.


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1_000_000))
