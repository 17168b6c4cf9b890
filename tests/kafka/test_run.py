"""`penstock run --kafka`, in real processes against a real broker: started, killed, stopped, and gone back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from penstock.engine.cli_status import page
from tests.kafka.plainly import create_topic, records_of

pytestmark = pytest.mark.kafka

PENSTOCK = (sys.executable, "-c", "from penstock.engine.cli import main; main()")
PATIENCE_S = 60
"""Of everything that is waited for. A machine that runs all tests at once may take long to start four processes."""
ORPHANS_S = 10

COUNTING = """
import os
import time
from collections.abc import Iterator

from penstock import App, Context, FileEgress, GeneratorIngress, State

app = App("counting")
rows = app.egress("counting/rows", FileEgress("out"))
COUNT, RATE = int(os.environ["COUNT"]), float(os.environ["RATE"])


class Count(State):
    count: int = 0


@app.function("counting/first")
def first(ctx: Context[Count], number: int) -> int:
    ctx.state.count += 1
    ctx.send(second, f"s{ctx.id}", number)
    return ctx.state.count


@app.function("counting/second", attempts=1, on_failure="halt")
def second(ctx: Context[Count], number: int) -> None:
    if number < 0:
        raise ValueError("below zero")
    ctx.state.count += 1
    ctx.emit(rows, {"id": ctx.id, "count": ctx.state.count})


def numbers(start: int) -> Iterator[int]:
    for number in range(start, COUNT):
        if number % 100 == 0:
            time.sleep(100 / RATE)
        yield number


app.ingress(GeneratorIngress(numbers), to=first, key=lambda number: f"{number % 97}", name="numbers")
"""


class Run:
    """A command that runs, and what it logs."""

    def __init__(self, folder: Path, bootstrap: str, app: str, *arguments: str, count: int, rate: float) -> None:
        self._log = folder / f"log-{time.monotonic_ns()}"
        verb, *flags = arguments
        flags += ["--kafka", bootstrap, "--name", app, "--property", "client.id=test"]
        if "--parallelism" not in flags:
            flags += ["--parallelism", "4"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PENSTOCK, verb, *flags],
                cwd=folder,
                env={**os.environ, "COUNT": str(count), "RATE": str(rate), "PENSTOCK_PORT": "0"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_log(self, pattern: str) -> re.Match[str]:
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self.log)
            return found is not None

        self.wait_until(look, f"{pattern!r} in the log")
        assert found is not None
        return found

    def wait_until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert self.process.poll() is None, f"ended before {what}:\n{self.log}"
            assert time.monotonic() < deadline, f"not {what}:\n{self.log}"
            time.sleep(0.02)

    def wait_end(self, code: int = 0) -> None:
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended:\n{self.log}") from None
        assert self.process.returncode == code, self.log

    def wait_working(self) -> None:
        self.wait_log("all 2 workers have their tasks")

    def get(self, path: str) -> Any:
        url = self.wait_log(r"interface +(http\S+)")[1]
        with urlopen(f"{url}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: bytes) -> Any:
        url = self.wait_log(r"interface +(http\S+)")[1]
        with urlopen(Request(f"{url}{path}", data=body, method="POST"), timeout=20) as answer:
            return json.loads(answer.read())

    def wait_ready(self) -> None:
        self.wait_until(self._ready, "ready")

    def _ready(self) -> bool:
        with suppress(HTTPError):
            return bool(self.get("/readyz")["ready"])
        return False

    def wait_tasks(self, count: int) -> None:
        """Of a worker that shares them with others."""
        self.wait_until(lambda: len(self.get("/admin/status")["shared"]["tasks"]) == count, f"{count} tasks")

    def wait_checkpoints(self, count: int) -> None:
        self.wait_until(lambda: (self.get("/admin/status")["checkpoint"]["completed"] or 0) >= count, "checkpoints")


Start = Callable[..., Run]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(COUNTING)
    return tmp_path


@pytest.fixture
def start(folder: Path, kafka: str, kafka_app: str) -> Iterator[Start]:
    """Starts a verb: `start("run", "--workers", "2")`."""
    runs: list[Run] = []

    def begin(*arguments: str, count: int = 6_000, rate: float = 1e9, port: str = "0") -> Run:
        run = Run(folder, kafka, kafka_app, *arguments, "--port", port, count=count, rate=rate)
        runs.append(run)
        return run

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()


def check_rows(folder: Path, count: int | None) -> None:
    """Each id counts from one without a gap or a repetition, over all files; `count` in all."""
    counts = defaultdict(list)
    for path in sorted((folder / "out").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            counts[row["id"]].append(row["count"])
    for id, found in counts.items():
        assert sorted(found) == list(range(1, len(found) + 1)), f"{id}: {found}"
    if count is not None:
        assert sum(map(len, counts.values())) == count


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def test_two_workers_run_until_all_is_done_although_each_process_is_killed_once(start: Start, folder: Path) -> None:
    run = start("run", "--workers", "2", "--until-done", count=8_000, rate=1_000)
    run.wait_working()
    run.wait_checkpoints(3)
    status = run.get("/admin/status")
    attempt = status["attempt"]

    os.kill(status["leader"]["pid"], signal.SIGKILL)
    run.wait_log("leader was killed by SIGKILL; it is started again in 0.1 s")
    run.wait_until(lambda: run.get("/admin/status")["leader"]["pid"] != status["leader"]["pid"], "a new leader")
    run.wait_checkpoints(run.get("/admin/status")["checkpoint"]["completed"] + 2)
    assert run.get("/admin/status")["attempt"] == attempt, "nothing was rolled back"

    for worker in status["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
        run.wait_log(f"{worker['worker']} was killed by SIGKILL; it is started again in 0.1 s")
        run.wait_ready()
    run.wait_end()

    check_rows(folder, 8_000)
    assert "Traceback" not in run.log


def test_the_front_answers_for_all_workers(start: Start) -> None:
    run = start("run", "--workers", "2", count=100)
    run.wait_working()
    run.wait_ready()

    answers = [run.post("/call/counting/first/ada", b"1") for _ in range(4)]
    url = run.wait_log(r"interface +(http\S+)")[1]
    metrics = urlopen(f"{url}/metrics", timeout=10).read().decode()
    status = run.get("/admin/status")

    assert answers == [1, 2, 3, 4]
    assert {f'worker="{name}"' in metrics for name in ("worker-0", "worker-1")} == {True}
    assert "\npenstock_workers 2\n" in metrics
    assert run.get("/startupz")["started"]
    assert sorted(task for worker in status["workers"] for task in worker["tasks"]) == [0, 1, 2, 3]
    assert (status["lag"].keys(), status["paused"]) == ({"inbox", "requests"}, [])
    shown = page(status | {"url": url, "not_ready": ""})
    assert re.search(
        r"\nworkers     worker-0 has tasks [0-3, ]+; worker-1 has tasks [0-3, ]+\nnot taken   0 inbox  0 req", shown
    )
    run.process.terminate()
    run.wait_end()


def test_a_signal_stops_all_in_order_and_the_next_run_continues(start: Start, folder: Path) -> None:
    run = start("run", "--workers", "2", count=4_000, rate=1_000)
    run.wait_working()
    run.wait_checkpoints(2)

    run.process.terminate()
    run.wait_end()

    assert "PEN0604" not in run.log
    assert "started again" not in run.log
    check_rows(folder, None)
    following = start("run", "--workers", "2", "--until-done", count=4_000)
    following.wait_end()
    check_rows(folder, 4_000)
    assert re.search("continued from checkpoint [1-9]", following.log)


def test_processes_end_by_themselves_when_their_supervisor_is_killed(start: Start) -> None:
    run = start("run", "--workers", "2", rate=100)
    run.wait_working()
    found = children(run.process.pid)

    run.process.kill()
    run.process.wait()

    assert len(found) == 3
    deadline = time.monotonic() + ORPHANS_S
    while any(is_alive(pid) for pid in found):
        assert time.monotonic() < deadline, "orphans are left"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_handler_that_wants_it_halts_everything_with_its_message(start: Start) -> None:
    run = start("run", "--workers", "2", count=0)
    run.wait_working()
    run.wait_ready()

    with suppress(HTTPError, OSError):
        run.post("/send/counting/first/ada", b"-1")
    run.wait_end(1)

    assert run.log.rstrip().splitlines()[-1] == (
        "PEN0211 counting/second/sada failed after 1 attempts, and on_failure is 'halt', so the application stops. "
        "PEN0210 Handler raised ValueError: below zero. Correct the handler and start again: the message is processed "
        "once more."
    )
    assert "started again" not in run.log


def test_it_goes_back_to_a_checkpoint_while_nobody_runs(start: Start, folder: Path) -> None:
    run = start("run", "--workers", "2", count=2_000, rate=1_000)
    run.wait_working()
    run.wait_checkpoints(2)
    checkpoint = str(run.get("/admin/status")["checkpoint"]["last"])

    refused = start("replay", "--from", checkpoint, "--yes", "--dir", "other", count=2_000)
    refused.wait_end(4)
    assert re.fullmatch(
        r"PEN0626 \S+ runs: process \d+ on \S+, process \d+ on \S+\. Stop all its workers before it continues from "
        r"another checkpoint\.",
        refused.log.strip().splitlines()[-1],
    )
    run.process.terminate()
    run.wait_end()

    preview = start("replay", "--from", checkpoint, count=2_000)
    preview.wait_end()
    assert f"would continue from checkpoint {int(checkpoint):,} (" in preview.log
    replay = start("replay", "--from", checkpoint, "--yes", "--workers", "2", "--until-done", count=2_000)
    replay.wait_end()
    assert f"continued from checkpoint {checkpoint}," in replay.log


PASSING = """
import os

from penstock import App, Context, GeneratorIngress, KafkaEgress

app = App("passing")
rows = app.egress("passing/rows", KafkaEgress(os.environ["TOPIC"]))


@app.function("passing/pass")
def pass_(ctx: Context[None], number: int) -> None:
    ctx.emit(rows, number)


app.ingress(
    GeneratorIngress(lambda start: iter(range(start, int(os.environ["COUNT"])))), to=pass_, key=str, name="numbers"
)
"""


def test_records_of_a_replay_say_so(
    start: Start, folder: Path, kafka: str, kafka_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{kafka_app}-rows"
    monkeypatch.setenv("TOPIC", topic)
    asyncio.run(create_topic(kafka, topic))
    (folder / "app.py").write_text(PASSING)
    start("run", "--until-done", count=1).wait_end()
    first = start("run", "--until-done", count=2)
    checkpoint = first.wait_log(r"continued from checkpoint (\d+),")[1]
    first.wait_end()
    start("replay", "--from", checkpoint, "--yes", "--until-done", count=2).wait_end()
    start("run", "--until-done", count=3).wait_end()

    records = asyncio.run(records_of(kafka, topic))

    # The third attempt is the replay, and the fourth goes on with it.
    assert [(record.value, dict(record.headers)) for record in records] == [
        (b"0", {}),
        (b"1", {}),
        (b"1", {"penstock-replay": b"3"}),
        (b"2", {"penstock-replay": b"3"}),
    ]


def test_workers_of_their_own_share_the_work_and_one_of_them_leads(start: Start, folder: Path) -> None:
    store = ("--store", str(folder / "store"))
    first = start("run", "--dir", "first", *store, count=6_000, rate=1_000)
    second = start("run", "--dir", "second", *store, count=6_000, rate=1_000)
    for run in (first, second):
        run.wait_tasks(2)

    first.process.terminate()
    first.wait_end()
    second.wait_tasks(4)
    second.process.terminate()
    second.wait_end()
    last = start("run", "--dir", "first", *store, "--until-done", count=6_000)
    last.wait_end()

    check_rows(folder, 6_000)


# What can't be meant.


def refused(folder: Path, *arguments: str) -> str:
    """What is said to such a command, which changes nothing."""
    done = subprocess.run(
        [*PENSTOCK, "run", *arguments],
        cwd=folder,
        env={**os.environ, "COUNT": "0", "RATE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode in (2, 3), done.stderr
    return done.stderr.strip()


def test_what_is_for_kafka_is_refused_without_brokers(folder: Path) -> None:
    assert refused(folder, "--workers", "2") == (
        "PEN0773 --workers is for an application that runs on Kafka, and no brokers are named. Name them with --kafka "
        "HOST:PORT, or leave out --workers."
    )


def test_more_workers_than_tasks_are_refused(folder: Path) -> None:
    assert refused(folder, "--kafka", "localhost:1", "--workers", "9") == (
        "PEN0774 workers = 9 are more than the tasks there are to share: parallelism = 8. Ask for fewer workers, or "
        "set parallelism before the first start."
    )


def test_a_session_too_short_for_a_heartbeat_is_refused(folder: Path) -> None:
    assert refused(folder, "--kafka", "localhost:1", "--session-timeout", "200ms") == (
        "PEN0774 session_timeout = 200ms is too short for a worker to be heard of in between. Give at least 1s."
    )


def test_a_name_that_no_topic_can_have_is_refused(folder: Path) -> None:
    assert refused(folder, "--kafka", "localhost:1", "--name", "My App") == (
        "PEN0100 App('My App'): a name is 1 to 64 lower-case letters, digits, '-' and '_', because directories and "
        "topics are named after it."
    )


def test_a_directory_and_the_options_of_a_bucket_are_refused(folder: Path, kafka: str, kafka_app: str) -> None:
    (folder / "penstock.toml").write_text('store_region = "eu-central-1"\n')

    told = refused(
        folder, "--kafka", kafka, "--name", kafka_app, "--workers", "1", "--port", "none", "--store", "bases"
    )

    assert told.splitlines()[-1] == (
        "PEN0417 The checkpoint store 'bases' can't be used: options of buckets, such as the endpoint, mean nothing to "
        "a directory. Name a directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."
    )


def test_a_store_that_can_not_be_used_is_refused(folder: Path, kafka: str, kafka_app: str) -> None:
    run = Run(folder, kafka, kafka_app, "run", "--workers", "2", "--store", "/proc/none", count=0, rate=1)

    run.wait_end(3)
    assert "PEN0412 Storing failed at /proc/none" in run.log


def test_a_cluster_that_does_not_answer_ends_the_run_at_once(folder: Path) -> None:
    told = refused(folder, "--kafka", "127.0.0.1:1", "--workers", "2", "--port", "none")

    assert told.splitlines()[-1] == (
        "PEN0740 No Kafka broker can be reached: nothing listens on 127.0.0.1:1. Check the addresses, that the brokers "
        "run, and that security.protocol fits the listener (it is PLAINTEXT)."
    )
