from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from penstock import App, Context, MemoryEgress, MemoryIngress, State
from penstock.engine.config import Config
from penstock.engine.metrics import Metrics
from penstock.engine.worker import Worker
from tests.engine.serving import serving, until


class Seen(State):
    count: int = 0


def counter() -> App:
    app = App("counter")
    numbers = MemoryIngress(type=int)
    totals = MemoryEgress()
    app.egress("counter/totals", totals)

    @app.function("counter/count", attempts=2, backoff="0s")
    def count(ctx: Context[Seen], number: int) -> None:
        if number < 0:
            raise ValueError("negative")
        ctx.state.count += number
        ctx.emit("counter/totals", ctx.state.count)

    app.ingress(numbers, to="counter/count", key=str, name="numbers")
    numbers.feed(1, 2, -3)
    return app


def samples(exposition: bytes) -> dict[str, float]:
    """Each sample, as it is written, without its value."""
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def test_every_figure_is_what_happened(tmp_path: Path) -> None:
    async def main() -> dict[str, float]:
        async with serving(counter(), tmp_path / "data") as client:
            await until(lambda: client.worker.units[0].core.statistics().dead_letters)
            await client.post("/admin/checkpoints")
            for unit in client.worker.units:
                for driver in unit.sinks.values():
                    await driver.wait_quiet()
            answer = await client.get("/metrics")
            assert answer.headers["Content-Type"].startswith("text/plain")
            return samples(answer.body)

    found = asyncio.run(main())

    assert found["penstock_messages_total function=counter/count"] == 3
    assert found["penstock_retries_total task=0"] == 1
    assert found["penstock_dead_letters_total task=0"] == 1
    assert found["penstock_queue_messages task=0"] == 0
    assert found["penstock_invocations_waiting task=0"] == 0
    assert found["penstock_invocations_parked task=0"] == 0
    assert found["penstock_late_answers_total task=0"] == 0
    assert found["penstock_calls_in_flight"] == 0
    assert found["penstock_ingress_records_total ingress=numbers"] == 3
    assert found["penstock_egress_records_total egress=counter/totals"] == 2
    assert found["penstock_egress_commits_total egress=counter/totals"] >= 1
    assert found["penstock_egress_staged_rows egress=counter/totals"] == 0
    assert found["penstock_checkpoints_total outcome=complete"] >= 1
    assert found["penstock_checkpoints_total outcome=abandoned"] == 0
    assert found["penstock_checkpoint_duration_seconds_count"] == found["penstock_checkpoints_total outcome=complete"]
    assert found["penstock_checkpoint_duration_seconds_sum"] > 0
    assert found["penstock_checkpoint_age_seconds"] >= 0
    assert found["penstock_checkpoint_delta_bytes"] > 0
    assert found["penstock_state_bytes task=0"] >= 0
    assert found["penstock_epoch task=0"] >= 1
    assert found["penstock_recovery_duration_seconds"] > 0
    assert any(name.startswith("penstock_build_info") and "app=counter" in name for name in found)


def test_before_the_start_there_is_only_what_runs(tmp_path: Path) -> None:
    async def main() -> bytes:
        return Metrics(Worker(counter(), Config(directory=tmp_path / "data"))).exposition()

    assert [name.split(" ")[0] for name in samples(asyncio.run(main()))] == ["penstock_build_info"]


def test_two_workers_have_registries_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("a", "b"):
            Metrics(Worker(counter(), Config(directory=tmp_path / name)))

    asyncio.run(main())
