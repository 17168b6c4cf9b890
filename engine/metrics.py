"""What Prometheus may ask of a running application.

What always holds: figures are read when they are asked for, from counters that the engine keeps anyway, so a message
costs nothing here; names begin with `penstock_`, units are seconds and bytes; labels are bounded (function, ingress,
egress, task, outcome), and never an id. Figures that nobody measures are not exported. Uses a registry of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from penstock.engine.serving import Served
from penstock.exposition import CounterMetricFamily, Exposition, GaugeMetricFamily, Metric, SummaryMetricFamily
from penstock.functions.saga import SagaFunction
from penstock.functions.saga_record import SagaRecord
from penstock.saga_figures import saga_figures, sagas_of

SAGAS_READ_MAX: Final = 10_000
"""Of one function and task: how far a saga is stands in its state, and so many are read in a tenth of a second."""


class Metrics(Exposition):
    """The metrics of one worker."""

    def __init__(self, worker: Served, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(worker.app.name)
        self._worker = worker
        self._clock = clock

    def figures(self) -> Iterator[Metric]:
        if self._worker.ready:
            yield from self._messages()
            yield from self._edges()
            yield from self._checkpoints()
            yield from self._state()
            yield from self._sagas()
            yield from self._sharing()

    def _messages(self) -> Iterator[Metric]:
        totals = self._worker.totals()
        messages = CounterMetricFamily(
            "penstock_messages_total", "Messages taken from the queue of a function, each once.", labels=["function"]
        )
        retries = CounterMetricFamily("penstock_retries_total", "Repeated tries of messages.", labels=["task"])
        dead = CounterMetricFamily("penstock_dead_letters_total", "Messages given up.", labels=["task"])
        queue = GaugeMetricFamily(
            "penstock_queue_messages", "Messages admitted and not done, waiting or suspended.", labels=["task"]
        )
        waiting = GaugeMetricFamily(
            "penstock_invocations_waiting", "Handlers that have begun and wait for something.", labels=["task"]
        )
        parked = GaugeMetricFamily(
            "penstock_invocations_parked", "Handlers that can't go on with the code there is.", labels=["task"]
        )
        late = CounterMetricFamily(
            "penstock_late_answers_total", "Results of calls that nobody waited for any more.", labels=["task"]
        )
        for unit in self._worker.units:
            statistics = unit.core.statistics()
            waiting.add_metric([str(unit.task)], unit.core.suspended)
            parked.add_metric([str(unit.task)], unit.core.parked)
            late.add_metric([str(unit.task)], unit.core.late_answers)
            retries.add_metric([str(unit.task)], statistics.retries)
            dead.add_metric([str(unit.task)], statistics.dead_letters)
            queue.add_metric([str(unit.task)], statistics.queued + statistics.pending)
        for typename in self._worker.app.functions:
            messages.add_metric([typename], totals.messages[typename])
        yield from (messages, retries, dead, queue, waiting, parked, late)
        yield GaugeMetricFamily(
            "penstock_calls_in_flight", "Callers who wait for an answer.", value=self._worker.requests.in_flight
        )

    def _edges(self) -> Iterator[Metric]:
        read = CounterMetricFamily("penstock_ingress_records_total", "Records read.", labels=["ingress"])
        totals = self._worker.totals()
        for name in self._worker.app.ingresses:
            read.add_metric([name], totals.read[name])
        behind = GaugeMetricFamily(
            "penstock_ingress_lag_records", "Records that are there and not read yet.", labels=["ingress"]
        )
        lags: dict[str, int] = {}
        for feed in self._worker.ingresses:
            if feed.lag is not None:
                lags[feed.name] = lags.get(feed.name, 0) + feed.lag
        for name, records in lags.items():
            behind.add_metric([name], records)
        written = CounterMetricFamily("penstock_egress_records_total", "Rows made visible.", labels=["egress"])
        commits = CounterMetricFamily(
            "penstock_egress_commits_total", "Commits of rows: of Kafka, transactions.", labels=["egress"]
        )
        staged = GaugeMetricFamily(
            "penstock_egress_staged_rows", "Rows emitted here that are not visible yet.", labels=["egress"]
        )
        for name in self._worker.app.egresses:
            written.add_metric([name], totals.committed[name])
            commits.add_metric([name], totals.commits[name])
            staged.add_metric([name], sum(unit.sinks[name].unwritten for unit in self._worker.units))
        yield from (read, behind, written, commits, staged)

    def _checkpoints(self) -> Iterator[Metric]:
        worker, checkpoints = self._worker, self._worker.checkpoint_statistics()
        outcomes = CounterMetricFamily("penstock_checkpoints_total", "Checkpoints tried.", labels=["outcome"])
        outcomes.add_metric(["complete"], checkpoints.completed)
        outcomes.add_metric(["abandoned"], checkpoints.abandoned)
        yield outcomes
        yield SummaryMetricFamily(
            "penstock_checkpoint_duration_seconds",
            "From the freeze of the tasks until the checkpoint is durable.",
            count_value=checkpoints.measured,
            sum_value=checkpoints.duration_ms_sum / 1000,
        )
        if worker.last_checkpoint is not None:
            yield GaugeMetricFamily(
                "penstock_checkpoint_age_seconds",
                "Since the last complete checkpoint. It grows while nothing changes, too.",
                value=max(0.0, self._clock() - worker.last_checkpoint_ms / 1000),
            )
            yield GaugeMetricFamily(
                "penstock_checkpoint_delta_bytes",
                "What the last checkpoint added.",
                value=worker.last_checkpoint.delta_bytes,
            )

    def _sharing(self) -> Iterator[Metric]:
        """Of a worker that shares the tasks with others."""
        shared = self._worker.shared
        if shared is None:
            return
        lag = GaugeMetricFamily(
            "penstock_topic_lag_records",
            "Records of the application's own topics that the tasks here have not taken yet.",
            labels=["topic"],
        )
        for topic, records in shared.lag.items():
            lag.add_metric([topic], records)
        handed = CounterMetricFamily("penstock_handoffs_total", "Tasks that changed hands.", labels=["direction"])
        handed.add_metric(["adopted"], shared.adopted)
        handed.add_metric(["given"], shared.given)
        yield from (lag, handed)
        for name, about, count in (
            ("penstock_rollbacks_total", "New attempts that took tasks here back to a checkpoint.", shared.rollbacks),
            (
                "penstock_frames_dropped_total",
                "Frames of attempts that are over, which were not processed.",
                self._worker.totals().frames_dropped,
            ),
            ("penstock_kafka_read_records_total", "Records taken from topics.", shared.records_read),
            ("penstock_kafka_written_records_total", "Records that brokers acknowledged.", shared.records_written),
            ("penstock_decisions_total", "Transactions of the leader, while it was this worker.", shared.decisions),
        ):
            yield CounterMetricFamily(name, about, value=count)
        for name, about, value in (
            ("penstock_kafka_unflushed_bytes", "What brokers have not acknowledged yet.", shared.unflushed_bytes),
            ("penstock_tasks", "Tasks that this worker has.", len(shared.tasks)),
            ("penstock_leader", "1 while this worker leads, else 0.", int(shared.leads)),
            (
                "penstock_leader_silence_seconds",
                "Since a leader was last heard: a second or two while there is one.",
                shared.leader_silent_s,
            ),
            ("penstock_backpressure", "1 while tasks here take in nothing new, else 0.", int(shared.paused)),
        ):
            yield GaugeMetricFamily(name, about, value=value)

    def _state(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("penstock_state_bytes", "Size of the stored files of a task.", labels=["task"])
        epoch = GaugeMetricFamily("penstock_epoch", "The last cut a task has passed.", labels=["task"])
        for unit in self._worker.units:
            size.add_metric([str(unit.task)], unit.overlay.backend.statistics().disk_bytes)
            epoch.add_metric([str(unit.task)], unit.snapshot.epoch)
        yield from (size, epoch)
        yield GaugeMetricFamily(
            "penstock_recovery_duration_seconds",
            "What the last start took to restore.",
            value=self._worker.recovery.took_s,
        )

    def _sagas(self) -> Iterator[Metric]:
        sagas = sagas_of(self._worker.app.functions)
        if sagas:
            yield from saga_figures(((saga, self._under_way(saga)) for saga in sagas), int(self._clock() * 1000))

    def _under_way(self, saga: SagaFunction) -> Iterator[SagaRecord]:
        """What is kept of the sagas that have begun and not ended; those in line have no record."""
        for unit in self._worker.units:
            (task,) = unit.core.view().tasks
            entry = task.entries[saga.typename]
            for id in islice(task.held().get(saga.typename, ()), SAGAS_READ_MAX):
                data = entry.plain_state(entry.raw(id))
                yield entry.decode_state(data) if data else SagaRecord()
