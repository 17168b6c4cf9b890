"""A data directory that was copied and restored continues as the original would have, and loses nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import App, Context, FileEgress, GeneratorIngress, Message, State
from penstock.engine.config import Config
from penstock.engine.run import run
from penstock.engine.worker import Worker

CUSTOMERS = 5


class Payment(Message):
    number: int


class Customer(State):
    payments: int = 0


def payments_app(output: Path, count: int) -> App:
    """Counts payments by customer, and writes a row for each. The input has `count` so far."""
    app = App("backup")
    rows = app.egress("backup/rows", FileEgress(str(output)))

    @app.function("backup/customer")
    def customer(ctx: Context[Customer], payment: Payment) -> None:
        ctx.state.payments += 1
        ctx.emit(rows, {"number": payment.number, "customer": ctx.id, "payments": ctx.state.payments})

    def payments(start: int) -> Iterator[Payment]:
        yield from map(Payment, range(start, count))

    app.ingress(
        GeneratorIngress(payments), to=customer, key=lambda payment: str(payment.number % CUSTOMERS), name="payments"
    )
    return app


def run_until(count: int, directory: Path, output: Path) -> Worker:
    """Process what there is, up to `count` payments in all, and stop."""
    return run(payments_app(output, count), Config(directory=directory, until_done=True, port=None))


def written(output: Path) -> Counter[tuple[int, int]]:
    """How often each row was written: number of the payment, and how many its customer had by then."""
    lines = [line for part in output.glob("*.jsonl") for line in part.read_text().splitlines()]
    return Counter((row["number"], row["payments"]) for row in map(json.loads, lines))


def each_once(first: int, count: int) -> Counter[tuple[int, int]]:
    return Counter((number, number // CUSTOMERS + 1) for number in range(first, count))


def test_a_restored_directory_continues_with_its_state_and_writes_every_row_once(tmp_path: Path) -> None:
    output = tmp_path / "rows"
    run_until(100, tmp_path / "data", output)
    shutil.copytree(tmp_path / "data", tmp_path / "restored")

    run_until(200, tmp_path / "restored", output)

    assert written(output) == each_once(0, 200)


def test_log_store_and_instance_are_all_that_is_needed(tmp_path: Path) -> None:
    output, restored = tmp_path / "rows", tmp_path / "restored"
    run_until(100, tmp_path / "data", output)
    shutil.copytree(tmp_path / "data", restored, ignore=shutil.ignore_patterns("tasks", "index", "LOCK"))

    assert sorted(path.name for path in restored.iterdir()) == ["instance", "log", "store"]
    run_until(200, restored, output)

    assert written(output) == each_once(0, 200)


def test_output_that_was_copied_and_restored_with_it_is_exactly_once_also_after_the_original_ran_on(
    tmp_path: Path,
) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    run_until(100, live / "data", live / "rows")
    shutil.copytree(live, backup)
    run_until(200, live / "data", live / "rows")

    shutil.rmtree(live)
    shutil.copytree(backup, live)
    run_until(300, live / "data", live / "rows")

    assert written(live / "rows") == each_once(0, 300)


@pytest.mark.parametrize("restarts", [1, 3])
def test_after_the_original_ran_on_only_what_followed_the_backup_is_written_again(
    tmp_path: Path, restarts: int
) -> None:
    """The markers of the original name attempts that the backup knows nothing of, and counts anew."""
    output = tmp_path / "rows"
    run_until(100, tmp_path / "data", output)
    shutil.copytree(tmp_path / "data", tmp_path / "restored")
    for restart in range(restarts):
        run_until(100 + 100 * (restart + 1) // restarts, tmp_path / "data", output)

    run_until(300, tmp_path / "restored", output)

    assert written(output) == each_once(0, 300) + each_once(100, 200)


def test_the_attempts_of_a_restored_directory_are_above_those_the_markers_name(tmp_path: Path) -> None:
    output = tmp_path / "rows"
    run_until(100, tmp_path / "data", output)
    shutil.copytree(tmp_path / "data", tmp_path / "restored")
    original = [run_until(count, tmp_path / "data", output).recovery.attempt for count in (120, 140, 160)]

    restored = run_until(200, tmp_path / "restored", output)

    assert original == [2, 3, 4]
    assert restored.recovery.attempt == 5


def test_without_its_instance_a_directory_that_stopped_in_order_goes_on_with_nothing_in_doubt(tmp_path: Path) -> None:
    output = tmp_path / "rows"
    run_until(100, tmp_path / "data", output)
    shutil.copytree(tmp_path / "data", tmp_path / "restored")
    (tmp_path / "restored" / "instance").unlink()

    run_until(200, tmp_path / "restored", output)

    assert written(output) == each_once(0, 200)
