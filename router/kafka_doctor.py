"""Says beforehand whether an application will run in a Kafka cluster: one finding for each thing that matters.

What always holds: nothing that exists is changed; what is written is one topic of its own, deleted at the end, and one
transactional id of its own, which the cluster forgets; a check that can't be made is a finding, too, and the others go
on. What is needed here is what `penstock.router.kafka_topics` and the clients will do, so a cluster that passes does
not refuse them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple
from uuid import uuid4

from penstock.durations import format_duration
from penstock.errors import PenstockError
from penstock.router.kafka_admin import OLDEST, Admin, Cluster, NewTopic, Topic, denied
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import (
    FRAME_BYTES_MAX,
    REPLICAS,
    Specification,
    default_replicas,
    gone,
    group_name,
    refuse_too_few_brokers,
    replicas_of,
    settled,
    specifications,
    verify,
)

NAMELESS: Final = "penstock-doctor"
"""Stands for the application while it has no name."""
TRANSACTION_TIMEOUT_MS: Final = 60_000
SKEW_WARNED_MS: Final = 1_000
SKEW_MS_MAX: Final = 10_000
"""A worker counts as dead after so long: with clocks further apart, nobody could tell from a timestamp."""
_NEEDED: Final = {3: ("Metadata", 10), 21: ("DeleteRecords", 0), 22: ("InitProducerId", 0), 32: ("DescribeConfigs", 1)}
"""By number in the protocol: a request that is used, and the version it is needed in."""
_FETCH: Final = 1
_FETCH_OF_OLDEST: Final = 17
"""The version of the request for records that came with `OLDEST`. Brokers do not tell their release."""
_FOREVER: Final = "-1"

Result = Literal["pass", "warn", "fail"]


class Finding(NamedTuple):
    check: str
    result: Result
    found: str
    remedy: str = ""


class Plan(NamedTuple):
    """What is going to run."""

    app: str | None = None
    parallelism: int = 1
    generation: int = 1
    """Of its topics: it grows with every change of the parallelism."""
    replicas: int | None = None
    frame_bytes_max: int = FRAME_BYTES_MAX
    message_bytes_max: int = 1 << 20
    reads: Collection[str] = ()
    """Topics of ingresses."""
    writes: Collection[str] = ()
    """Topics of egresses."""
    retention_ms: int = 3_600_000
    """How far back one can go to a checkpoint."""
    transaction_timeout_ms: int = TRANSACTION_TIMEOUT_MS

    @property
    def name(self) -> str:
        return self.app or NAMELESS


async def examine(options: KafkaOptions, plan: Plan, clock_ms: Callable[[], int]) -> list[Finding]:
    """Every finding, in the order in which one would mend them."""
    try:
        async with Admin(options) as admin:
            return await _Examination(admin, plan, clock_ms).run()
    except PenstockError as error:
        return [_failed("connection", error)]


class _Examination:
    def __init__(self, admin: Admin, plan: Plan, clock_ms: Callable[[], int]) -> None:
        self._admin = admin
        self._plan = plan
        self._clock_ms = clock_ms
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        cluster = await self._admin.cluster()
        addresses = ", ".join(cluster.brokers.values())
        self._add("connection", "pass", f"Cluster {cluster.cluster_id} at {addresses}.")
        steps: list[tuple[str, Callable[[Cluster], Awaitable[None]]]] = [
            ("brokers", self._brokers),
            ("replicas", self._replicas),
            ("broker settings", self._broker_settings),
            ("topics", self._topics),
            ("transactions", self._transactions),
            ("probe", self._probe),
            ("ingress topics", self._ingresses),
            ("egress topics", self._egresses),
            ("group", self._group),
        ]
        for name, step in steps:
            try:
                await step(cluster)
            except PenstockError as error:
                self._findings.append(_failed(name, error))
        return self._findings

    def _add(self, check: str, result: Result, found: str, remedy: str = "") -> None:
        self._findings.append(Finding(check, result, found, remedy))

    # The cluster.

    async def _brokers(self, cluster: Cluster) -> None:
        """Each of them is talked to later, by the address it gives to its clients."""
        old = False
        for broker, address in cluster.brokers.items():
            try:
                versions = await self._admin.versions(broker)
            except PenstockError as error:
                remedy = "Start it, or correct advertised.listeners, which is what clients are told to connect to."
                self._add("brokers", "fail", f"Broker {broker} can't be reached at {address}: {error}", remedy)
                continue
            missing = [name for key, (name, version) in _NEEDED.items() if versions.get(key, (0, -1))[1] < version]
            if missing:
                found = f"Broker {broker} at {address} does not know these requests: {', '.join(missing)}."
                self._add("brokers", "fail", found, f"Upgrade it: Penstock needs Kafka {OLDEST} or newer.")
            old = old or versions[_FETCH][1] < _FETCH_OF_OLDEST
        if any(finding.check == "brokers" for finding in self._findings):
            return
        if old:
            found = f"Some are older than {OLDEST}, the oldest release that Penstock is tested with."
            self._add("brokers", "warn", found, "Upgrade them.")
        else:
            self._add("brokers", "pass", f"All {len(cluster.brokers)} answer, and know what is needed.")

    async def _replicas(self, cluster: Cluster) -> None:
        wanted = self._plan.replicas or default_replicas(cluster)
        refuse_too_few_brokers(cluster, wanted)
        if wanted >= REPLICAS:
            self._add("replicas", "pass", f"{wanted} of each record; one broker may be lost.")
            return
        loss = "The disk of one broker has the only copy." if wanted == 1 else "With one broker down, nothing goes on."
        remedy = f"Run {REPLICAS} brokers where that matters."
        self._add("replicas", "warn", f"{wanted} of each record. {loss}", remedy)

    async def _broker_settings(self, cluster: Cluster) -> None:
        before = len(self._findings)
        for broker in cluster.brokers:
            settings = await self._admin.broker_settings(broker)
            if settings is None:
                remedy = "Grant DescribeConfigs on the cluster to whoever runs the doctor, if it should look."
                self._add("broker settings", "warn", "They may not be seen by this user.", remedy)
                return
            self._findings += _check_broker(broker, settings, len(cluster.brokers), self._plan)
        if len(self._findings) == before:
            self._add("broker settings", "pass", "They leave transactions and topics alone.")

    # What the application does.

    async def _topics(self, cluster: Cluster) -> None:
        specs = self._specifications(cluster, {})
        found = await self._admin.topics(spec.topic for spec in specs)
        specs = self._specifications(cluster, found)
        settings = await self._admin.topic_settings(found)
        problems = [*self._existing(specs, found, settings), *await self._missing(specs, found)]
        self._findings += problems
        if not problems:
            missing = len(specs) - len(found)
            what = f"{len(found)} are as they have to be, and {missing} can be created." if found else "Can be created."
            self._add("topics", "pass", what)

    def _specifications(self, cluster: Cluster, found: Mapping[str, Topic]) -> list[Specification]:
        return specifications(
            self._plan.name,
            parallelism=self._plan.parallelism,
            # With too few brokers, which is a finding by itself, the rest is looked at as if fewer were wanted.
            replicas=min(self._plan.replicas or replicas_of(found.values()) or REPLICAS, len(cluster.brokers)),
            frame_bytes_max=self._plan.frame_bytes_max,
            generation=self._plan.generation,
        )

    def _existing(
        self, specs: Sequence[Specification], found: Mapping[str, Topic], settings: Mapping[str, Mapping[str, str]]
    ) -> Iterator[Finding]:
        for spec in specs:
            if spec.topic not in found:
                continue
            try:
                verify(self._admin.options, spec, found[spec.topic], settings[spec.topic])
                self._require(found[spec.topic], "Read", "Write", "Delete")
            except PenstockError as error:
                yield _failed("topics", error)

    async def _missing(self, specs: Sequence[Specification], found: Mapping[str, Topic]) -> list[Finding]:
        wanted = [
            NewTopic(spec.topic, spec.partitions, spec.replicas, spec.settings)
            for spec in specs
            if spec.topic not in found
        ]
        refused = await self._admin.create(wanted, validate_only=True) if wanted else {}
        for topic, why in refused.items():
            if why.denied:
                return [_failed("topics", denied(self._admin.options, ["Create"], "topic", topic))]
        alike: dict[str, list[str]] = {}
        for topic, why in refused.items():
            alike.setdefault(str(why), []).append(topic)
        return [
            Finding(
                "topics",
                "fail",
                f"{', '.join(topics)} can't be created: {why}",
                f"Have the rule of the cluster changed for {self._plan.name}.*, which need settings like "
                f"{_settings_of(specs, topics[0])}.",
            )
            for why, topics in alike.items()
        ]

    async def _transactions(self, cluster: Cluster) -> None:
        timeout_ms = self._plan.transaction_timeout_ms
        name = f"{self._plan.name}-doctor"
        why = await self._admin.try_transactional_id(name, timeout_ms)
        if why is None:
            text = f"Transactional ids can be used, with a timeout of {format_duration(timeout_ms)}."
            self._add("transactions", "pass", text)
        elif why.denied:
            raise denied(self._admin.options, ["Describe", "Write"], "transactional-id", name)
        elif why.name == "InvalidTransactionTimeout":
            found = f"A timeout of {format_duration(timeout_ms)} is refused."
            self._add("transactions", "fail", found, f"Set transaction.max.timeout.ms >= {timeout_ms} on the brokers.")
        else:
            remedy = (
                "See that transaction.state.log.replication.factor and transaction.state.log.min.isr are not above the "
                f"number of brokers, which is {len(cluster.brokers)}; else look at the brokers' logs."
            )
            self._add("transactions", "fail", f"Nobody looks after transactional ids: {why}.", remedy)

    async def _probe(self, cluster: Cluster) -> None:
        """Write, read and give up a record in a topic of our own, on every broker; and compare its time with ours."""
        topic = f"{self._plan.name}.doctor-{uuid4().hex[:8]}"
        common = self._specifications(cluster, {})[0]
        spec = common._replace(topic=topic, partitions=len(cluster.brokers))
        refused = await self._admin.create([NewTopic(topic, spec.partitions, spec.replicas, spec.settings)])
        if topic in refused:
            if refused[topic].denied:
                raise denied(self._admin.options, ["Create"], "topic", topic)
            self._add("probe", "fail", f"Topic {topic} can't be created: {refused[topic]}")
            return
        try:
            places = [(topic, number) for number in range(spec.partitions)]
            leaders = [each.leader for each in (await settled(self._admin, [spec]))[topic].partitions]
            skews = {
                cluster.brokers[leader]: await self._skew_ms(place)
                for leader, place in zip(leaders, places, strict=True)
            }
            await self._admin.first_records(places)
            await self._admin.delete_records(dict.fromkeys(places, 1))
            self._add("probe", "pass", f"Topic {topic} was created, written, read, truncated and deleted.")
            self._clocks(skews)
        finally:
            await self._remove(topic)

    async def _skew_ms(self, place: tuple[str, int]) -> int:
        """How far the clock of the partition's leader is ahead of ours, at least; negative when it is behind."""
        before = self._clock_ms()
        (written,) = await self._admin.append([(*place, b"doctor", b"")])
        after = self._clock_ms()
        return max(0, written.timestamp_ms - after) + min(0, written.timestamp_ms - before)

    def _clocks(self, skews: Mapping[str, int]) -> None:
        address, worst = max(skews.items(), key=lambda each: abs(each[1]))
        if abs(worst) <= SKEW_WARNED_MS:
            self._add("clocks", "pass", f"Ours and the brokers' differ by less than {format_duration(SKEW_WARNED_MS)}.")
            return
        found = f"That of {address} is {format_duration(abs(worst))} {'ahead of' if worst > 0 else 'behind'} ours."
        remedy = "Keep all machines on the same time, with NTP."
        self._add("clocks", "fail" if abs(worst) > SKEW_MS_MAX else "warn", found, remedy)

    async def _remove(self, topic: str) -> None:
        try:
            why = (await self._admin.delete([topic])).get(topic)
            if why is None:
                await gone(self._admin, [topic])
                return
        except PenstockError as error:
            self._add("probe", "fail", f"Topic {topic} is left behind: {error}", "Delete it by hand.")
            return
        self._add("probe", "fail", f"Topic {topic} is left behind: {why}.", "Delete it by hand.")

    # What it reads and writes.

    async def _ingresses(self, cluster: Cluster) -> None:
        found = await self._named(self._plan.reads, "ingress topics", "Read")
        settings = await self._admin.topic_settings(found)
        for topic in found:
            self._findings += _check_ingress(topic, settings[topic], self._plan.retention_ms)

    async def _egresses(self, cluster: Cluster) -> None:
        found = await self._named(self._plan.writes, "egress topics", "Write")
        settings = await self._admin.topic_settings(found)
        for topic in found:
            self._findings += _check_egress(topic, settings[topic], self._plan.message_bytes_max)

    async def _named(self, names: Collection[str], check: str, operation: str) -> dict[str, Topic]:
        found = await self._admin.topics(names) if names else {}
        for name in sorted(set(names) - found.keys()):
            self._add(check, "fail", f"There is no topic {name}.", "Create it, or correct its name in the application.")
        for topic in found.values():
            self._require(topic, operation)
        return found

    async def _group(self, cluster: Cluster) -> None:
        if not self._plan.reads:
            return
        group = group_name(self._plan.name)
        if await self._admin.has_group(group) is None:
            error = denied(self._admin.options, ["Read", "Describe"], "group", group)
            self._add("group", "warn", f"{error} Without it, tools show no lag; the application runs.")
        else:
            self._add("group", "pass", f"Positions are shown under group {group}.")

    def _require(self, topic: Topic, *operations: str) -> None:
        missing = [operation for operation in operations if operation not in topic.allowed]
        if missing:
            raise denied(self._admin.options, missing, "topic", topic.name)


def _failed(check: str, error: PenstockError) -> Finding:
    return Finding(check, "fail", str(error))


def _settings_of(specs: Sequence[Specification], topic: str) -> str:
    spec = next(spec for spec in specs if spec.topic == topic)
    settings = ",".join(f"{name}={value}" for name, value in spec.settings.items())
    return f"{spec.partitions} partitions, {spec.replicas} replicas, {settings}"


def _check_broker(broker: int, settings: Mapping[str, str], brokers: int, plan: Plan) -> Iterator[Finding]:
    def number(name: str) -> int:
        value = settings.get(name) or "0"
        return int(value) if value.isdecimal() else 0

    check, where = "broker settings", f"On broker {broker}, "
    if settings.get("auto.create.topics.enable") == "true":
        yield Finding(
            check,
            "warn",
            f"{where}auto.create.topics.enable is true: a topic that is deleted comes back with wrong settings.",
            "Set it to false.",
        )
    timeout_ms = number("transaction.max.timeout.ms")
    if 0 < timeout_ms < plan.transaction_timeout_ms:
        yield Finding(
            check,
            "fail",
            f"{where}transaction.max.timeout.ms is {timeout_ms}.",
            f"Set it to {plan.transaction_timeout_ms} or more.",
        )
    if number("transaction.state.log.min.isr") > brokers:
        yield Finding(
            check,
            "fail",
            f"{where}transaction.state.log.min.isr is {settings['transaction.state.log.min.isr']}, and the number "
            f"of brokers {brokers}: nothing can be committed.",
            f"Set it to {brokers} at most, or start more brokers.",
        )


def _check_ingress(topic: str, settings: Mapping[str, str], retention_ms: int) -> Iterator[Finding]:
    check = "ingress topics"
    kept, bound = settings.get("retention.ms", _FOREVER), settings.get("retention.bytes", _FOREVER)
    if "compact" in settings.get("cleanup.policy", ""):
        yield Finding(
            check,
            "warn",
            f"{topic} is compacted: records may be gone when they have to be read again after a failure.",
            "Set min.compaction.lag.ms to more than the longest outage, or read a topic that is not compacted.",
        )
    elif kept != _FOREVER and int(kept) < retention_ms:
        yield Finding(
            check,
            "warn",
            f"{topic} keeps records for {format_duration(int(kept))}, and checkpoints reach back "
            f"{format_duration(retention_ms)}: the oldest can't be replayed.",
            f"Set its retention.ms to {retention_ms} or more.",
        )
    elif bound != _FOREVER:
        yield Finding(
            check,
            "warn",
            f"{topic} keeps {int(bound):,} bytes a partition: after a long outage records may be gone unread.",
            "Set its retention.bytes to -1, or to what comes in during the longest outage.",
        )
    else:
        yield Finding(check, "pass", f"{topic} can be read, and keeps its records long enough.")


def _check_egress(topic: str, settings: Mapping[str, str], message_bytes_max: int) -> Iterator[Finding]:
    check = "egress topics"
    limit = int(settings.get("max.message.bytes", "0"))
    if limit < message_bytes_max:
        yield Finding(
            check,
            "warn",
            f"{topic} takes records up to {limit:,} bytes, and the application may emit {message_bytes_max:,}.",
            f"Set its max.message.bytes to {message_bytes_max} or more, or message_bytes_max to less.",
        )
    else:
        yield Finding(check, "pass", f"{topic} can be written.")


# Permissions.


class Grant(NamedTuple):
    """Operations that a user needs on topics, groups, transactional ids or the cluster."""

    kind: Literal["topic", "group", "transactional-id", "cluster"]
    name: str
    prefixed: bool
    operations: Sequence[str]
    purpose: str


def grants(app: str, reads: Collection[str], writes: Collection[str]) -> list[Grant]:
    """All that an application needs, and what the doctor needs to look at everything."""
    internal = ("Create", "Delete", "Describe", "DescribeConfigs", "Read", "Write")
    return [
        Grant("topic", f"{app}.", True, internal, "its own topics"),
        Grant("transactional-id", f"{app}-", True, ("Describe", "Write"), "its transactions"),
        Grant("group", group_name(app), False, ("Delete", "Describe", "Read"), "positions, for tools that show lag"),
        *(Grant("topic", name, False, ("Describe", "DescribeConfigs", "Read"), "an ingress") for name in sorted(reads)),
        *(
            Grant("topic", name, False, ("Describe", "DescribeConfigs", "Write"), "an egress")
            for name in sorted(writes)
        ),
        Grant("cluster", "", False, ("Describe", "DescribeConfigs"), "sizes and broker settings, for people"),
    ]


def command(grant: Grant, bootstrap: str, principal: str) -> str:
    """The line of `kafka-acls.sh` that grants it."""
    what = "--cluster" if grant.kind == "cluster" else f"--{grant.kind} '{grant.name}'"
    if grant.prefixed:
        what += " --resource-pattern-type prefixed"
    operations = " ".join(f"--operation {operation}" for operation in grant.operations)
    return f"kafka-acls.sh --bootstrap-server {bootstrap} --add --allow-principal '{principal}' {operations} {what}"
