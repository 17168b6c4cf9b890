"""The topics an application keeps for itself: their names and settings, made when missing and verified when there.

What always holds: after `ensure`, every internal topic exists with as many partitions, as many replicas and such
settings as the guarantees need, and is the application's own; a topic that is not is refused with the command that
mends it, and never changed, because its records may be gone already. Two workers may do this at the same time.

A topic that was deleted and created again has lost records, though everything about it looks right. `ensure` returns
the id that the cluster gave to each topic; whoever knows the ids from before compares them with `refuse_recreated`.
The first record of partition 0 of each topic says whose it is, so that two applications, or a copy from another
cluster, are never taken for one another; a topic that was truncated since is known by its id alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import msgspec

from penstock.errors import ConfigurationError, InvalidInput, PenstockError, Refused, Unavailable
from penstock.router.kafka_admin import TOPIC_EXISTS, UNKNOWN_TOPIC, Admin, Cluster, NewTopic, Topic, denied
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_records import Fetched

REPLICAS: Final = 3
"""Where the cluster has as many brokers: any one may be lost for good without losing a record."""
FRAME_BYTES_MAX: Final = 8 << 20
SEGMENT_BYTES: Final = 64 << 20
"""A broker frees the disk in whole segments: what was truncated costs at most one per partition, instead of 1 GiB."""
SMALL_SEGMENT_BYTES: Final = 16 << 20
"""Of topics that are compacted or expire, which happens only to segments that are not written any more."""
EXPIRY_MS: Final = 3_600_000
ALIVE_MS: Final = 15_000
"""Workers report every few seconds: one that was heard of so recently may live."""
SETTLE_S: Final = 0.1
INCARNATION_KEY: Final = b"penstock/incarnation/"
"""What the keys of incarnation records begin with. Each ends differently, so that compaction never removes the first
one for a later one, of a worker that started at the same time."""

Part = Literal["control", "reports", "inbox", "requests", "deltas", "egress-marks", "replies", "dead"]
PARTS: Final[tuple[Part, ...]] = (
    "control",
    "reports",
    "inbox",
    "requests",
    "deltas",
    "egress-marks",
    "replies",
    "dead",
)
DURABLE: Final[tuple[Part, ...]] = ("control", "inbox", "requests", "deltas", "egress-marks")
"""Those without which the application can't continue. What stands in the others is said again, or is a copy."""
SHARED: Final[frozenset[Part]] = frozenset({"control", "dead"})
"""Those that stay when the parallelism changes. Of the others there are new ones then, with another generation in their
names: whoever still works with those before reads and writes nothing that counts."""
_GENERATION: Final = re.compile(r"-g[0-9]+$")
_PER_TASK: Final = frozenset({"inbox", "requests", "deltas", "egress-marks", "replies"})
_CONTROL_PARTITIONS: Final = 2
"""Decisions, and hints."""
_AT_LEAST: Final = frozenset({"min.insync.replicas", "max.message.bytes"})
_LOSSES: Final = frozenset({"cleanup.policy", "retention.bytes", "retention.ms"})
_LOSING: Final = "Records may be gone already. If the application has not begun, or nothing is gone, mend"
_TUNING: Final = frozenset({"compression.type", "segment.bytes", "min.cleanable.dirty.ratio"})
"""Set when a topic is created, and left to its owner: no guarantee depends on them."""


def topic_name(app: str, part: Part, generation: int = 1) -> str:
    return f"{app}.{part}" if generation == 1 or part in SHARED else f"{app}.{part}-g{generation}"


def is_own(app: str, topic: str) -> bool:
    """Whether it is an internal topic of `app`, of any generation."""
    owner, _, part = _GENERATION.sub("", topic).rpartition(".")
    return owner == app and part in PARTS


def leader_id(app: str) -> str:
    """The transactional id of the leader."""
    return f"{app}-leader"


def egress_id(app: str, task: int) -> str:
    """The transactional id under which a task commits what it emits."""
    return f"{app}-egress-{task}"


def group_name(app: str) -> str:
    """The group under which positions in ingress topics are committed, for tools that show lag."""
    return app


class Specification(NamedTuple):
    """What an internal topic has to be like."""

    topic: str
    part: Part
    partitions: int
    replicas: int
    settings: Mapping[str, str]

    def required(self) -> dict[str, str]:
        return {name: value for name, value in self.settings.items() if name not in _TUNING}

    def wrong_settings(self, found: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """By setting: what it is, and what it has to be."""
        wrong = {}
        for name, wanted in self.required().items():
            value = found.get(name, "")
            fits = value.isdecimal() and int(value) >= int(wanted) if name in _AT_LEAST else value == wanted
            if not fits:
                wrong[name] = (value, wanted)
        return wrong


def specifications(
    app: str, *, parallelism: int, replicas: int, frame_bytes_max: int = FRAME_BYTES_MAX, generation: int = 1
) -> list[Specification]:
    """Every internal topic of `app`, in this generation."""
    common = {
        "cleanup.policy": "delete",
        "compression.type": "producer",
        "max.message.bytes": str(frame_bytes_max),
        # Records carry the time of what they tell about: by such times a broker would delete them as they come.
        "message.timestamp.type": "LogAppendTime",
        # A majority, so that no record that was acknowledged is lost with one broker.
        "min.insync.replicas": str(replicas // 2 + 1),
        "retention.bytes": "-1",
        "retention.ms": "-1",
        "segment.bytes": str(SEGMENT_BYTES),
        "unclean.leader.election.enable": "false",
    }
    special: Mapping[str, Mapping[str, str]] = {
        "egress-marks": {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.1",
            "segment.bytes": str(SMALL_SEGMENT_BYTES),
        },
        # Whom an answer was for is long gone when it is an hour old.
        "replies": {"retention.ms": str(EXPIRY_MS), "segment.bytes": str(SMALL_SEGMENT_BYTES)},
        "reports": {"retention.ms": str(EXPIRY_MS), "segment.bytes": str(SMALL_SEGMENT_BYTES)},
    }
    return [
        Specification(
            topic_name(app, part, generation),
            part,
            parallelism if part in _PER_TASK else _CONTROL_PARTITIONS if part == "control" else 1,
            replicas,
            {**common, **special.get(part, {})},
        )
        for part in PARTS
    ]


class Incarnation(msgspec.Struct, frozen=True, kw_only=True):
    """The first record of partition 0 of an internal topic."""

    application: str
    application_id: str
    topic: str
    topic_id: str
    """Tells a copy, as mirroring tools make it, from the topic itself: offsets in a copy mean something else."""
    partitions: int
    version: int = 1


class Owner(NamedTuple):
    """Whose a topic is."""

    application: str
    application_id: str


class Ensured(NamedTuple):
    """What there is after `ensure`."""

    incarnations: Mapping[str, str]
    """The id of each internal topic. See `refuse_recreated`."""
    created: Sequence[str]
    replicas: int


# Making sure.


async def ensure(
    options: KafkaOptions,
    app: str,
    *,
    application_id: str,
    parallelism: int,
    replicas: int | None = None,
    frame_bytes_max: int = FRAME_BYTES_MAX,
    generation: int = 1,
    beginning: bool = False,
) -> Ensured:
    """Create the internal topics that are missing, and verify those there are.

    `application_id` tells two applications of one name apart. `beginning`: topics of this `generation` are missing
    because it is only being made, beside those of the one before. Without `replicas`, topics that exist keep what they
    have, and new ones get as many as there are brokers, at most `REPLICAS`. Raises Refused or ConfigurationError when
    a person has to mend something first, and Unavailable.
    """
    async with Admin(options) as admin:
        cluster = await admin.cluster()
        before = await admin.topics(topic_name(app, part, generation) for part in PARTS)
        copies = replicas or replicas_of(before.values()) or default_replicas(cluster)
        specs = specifications(
            app, parallelism=parallelism, replicas=copies, frame_bytes_max=frame_bytes_max, generation=generation
        )
        missing = [spec for spec in specs if spec.topic not in before]
        if not beginning:
            await _refuse_deleted(admin, before, missing)
        created = await _create(admin, cluster, missing)
        found = await settled(admin, specs)
        ours = Owner(app, application_id)
        unclaimed = await _check_owner(admin, ours, found.values())
        settings = await admin.topic_settings(found)
        for spec in specs:
            verify(options, spec, found[spec.topic], settings[spec.topic])
        await _claim(admin, ours, unclaimed)
    return Ensured({name: topic.topic_id for name, topic in found.items()}, created, copies)


def refuse_recreated(known: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise Refused when a topic whose records matter is another one than it was. Both map topics to ids."""
    changed = sorted(topic for topic, was in known.items() if _is_durable(topic) and found.get(topic, was) != was)
    if changed:
        raise _recreated(f"{_listed(changed)}: deleted and created again since the last checkpoint")


def default_replicas(cluster: Cluster) -> int:
    return min(REPLICAS, len(cluster.brokers))


def replicas_of(topics: Iterable[Topic]) -> int | None:
    """The fewest that any partition has."""
    return min((partition.replicas for topic in topics for partition in topic.partitions), default=None)


def refuse_too_few_brokers(cluster: Cluster, replicas: int) -> None:
    """Raise Refused when topics with so many replicas can't be created."""
    brokers = len(cluster.brokers)
    if replicas > brokers:
        raise Refused(
            "PEN0743",
            f"{replicas} replicas are wanted, and the cluster has {brokers} broker{'s' if brokers != 1 else ''}. "
            "Start more brokers, or ask for fewer replicas: then fewer brokers may be lost.",
        )


def verify(options: KafkaOptions, spec: Specification, topic: Topic, settings: Mapping[str, str]) -> None:
    """Raise Refused unless the topic is as it has to be."""
    if len(topic.partitions) != spec.partitions:
        raise _wrong_partitions(spec, len(topic.partitions))
    fewest = replicas_of([topic])
    if fewest is not None and fewest < spec.replicas:
        raise Refused(
            "PEN0743",
            f"Topic {spec.topic} has {fewest} replica{'s' if fewest != 1 else ''}, and {spec.replicas} are wanted. "
            "Add some with kafka-reassign-partitions.sh, or ask for fewer replicas.",
        )
    wrong = spec.wrong_settings(settings)
    if wrong:
        said = ", ".join(f"{name} is {was or 'not known'} instead of {wanted}" for name, (was, wanted) in wrong.items())
        changes = ",".join(f"{name}={wanted}" for name, (_, wanted) in wrong.items())
        raise Refused(
            "PEN0744",
            f"Topic {spec.topic}: {said}. {_LOSING if wrong.keys() & _LOSSES else 'Mend'} it: kafka-configs.sh "
            f"--bootstrap-server {options.bootstrap} --alter --entity-type topics --entity-name "
            f"{spec.topic} --add-config {changes}",
        )


def _wrong_partitions(spec: Specification, found: int) -> Refused:
    has = f"Topic {spec.topic} has {found} partition{'s' if found != 1 else ''}, and needs {spec.partitions}"
    if spec.part in _PER_TASK:
        return Refused(
            "PEN0745",
            f"{has}: one for each task. Start it with parallelism = {found}, or under another name. For another "
            "parallelism, stop it and use penstock rescale.",
        )
    return Refused("PEN0745", f"{has}. Something else created it. Delete it if it is empty, and start again.")


async def _refuse_deleted(admin: Admin, found: Mapping[str, Topic], missing: Sequence[Specification]) -> None:
    """An application that has begun has all its topics, so one that is missing was deleted, with its records."""
    lost = [spec.topic for spec in missing if spec.part in DURABLE]
    if not lost or not found:
        return
    partitions = [
        (name, number) for name, topic in found.items() if _is_durable(name) for number in range(len(topic.partitions))
    ]
    offsets = await admin.offsets(partitions)
    # The record that says whose it is comes first in partition 0, before the application begins.
    begun = sorted({topic for (topic, number), (_, end) in offsets.items() if end > (number == 0)})
    if begun:
        raise Refused(
            "PEN0746",
            f"{_listed(lost)} {'is' if len(lost) == 1 else 'are'} missing, while {begun[0]} holds records: deleted by "
            f"somebody. What {'it' if len(lost) == 1 else 'they'} held is lost, and the application can't continue. "
            "Begin anew, under another name or after: penstock destroy.",
        )


async def _create(admin: Admin, cluster: Cluster, missing: Sequence[Specification]) -> list[str]:
    """Create topics. Those that another worker creates at the same time are as welcome."""
    if not missing:
        return []
    refuse_too_few_brokers(cluster, missing[0].replicas)
    wanted = [NewTopic(spec.topic, spec.partitions, spec.replicas, spec.settings) for spec in missing]
    refused = await admin.create(wanted)
    for topic, why in refused.items():
        if why.denied:
            raise denied(admin.options, ["Create"], "topic", topic)
        if why.code != TOPIC_EXISTS:
            raise ConfigurationError(
                "PEN0747",
                f"The Kafka cluster does not create topic {topic}: {why}. Change the rule of the cluster that forbids "
                "it; penstock doctor --kafka shows which settings are needed.",
            )
    return [spec.topic for spec in missing if spec.topic not in refused]


async def ensure_marks(options: KafkaOptions, app: str, *, parallelism: int, generation: int = 1) -> None:
    """Create the topic of markers alone, on a cluster that the application only writes to, and verify it."""
    async with Admin(options) as admin:
        cluster = await admin.cluster()
        found = await admin.topics([topic_name(app, "egress-marks", generation)])
        copies = replicas_of(found.values()) or default_replicas(cluster)
        specs = [
            spec
            for spec in specifications(app, parallelism=parallelism, replicas=copies, generation=generation)
            if spec.part == "egress-marks"
        ]
        await _create(admin, cluster, [spec for spec in specs if spec.topic not in found])
        there = await settled(admin, specs)
        settings = await admin.topic_settings(there)
        for spec in specs:
            verify(options, spec, there[spec.topic], settings[spec.topic])


async def settled(admin: Admin, specs: Sequence[Specification]) -> dict[str, Topic]:
    """The topics, once every partition has a leader: a moment after their creation."""
    deadline = asyncio.get_running_loop().time() + admin.options.request_timeout_s
    while True:
        found = await admin.topics(spec.topic for spec in specs)
        waiting = [spec.topic for spec in specs if spec.topic not in found or not found[spec.topic].led]
        if not waiting:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(
                "PEN0749",
                f"{_listed(waiting)} {'has' if len(waiting) == 1 else 'have'} partitions without a leader: brokers are "
                "missing. Start them; the topics go on by themselves.",
            )
        await asyncio.sleep(SETTLE_S)


async def _check_owner(admin: Admin, ours: Owner, topics: Iterable[Topic]) -> list[Topic]:
    """Raise Refused for a topic that is not ours. Returns those that nobody has written to."""
    named = {(topic.name, 0): topic for topic in topics}
    offsets = await admin.offsets(named)
    first = await admin.first_records([place for place, (start, end) in offsets.items() if start == 0 < end])
    for place, record in first.items():
        if record.offset == 0:  # It is not where records were deleted in between: they were of the application.
            _check_first(record, ours, named[place])
    return [named[place] for place, (_, end) in offsets.items() if end == 0]


async def _claim(admin: Admin, ours: Owner, topics: Sequence[Topic]) -> None:
    """Say in each topic whose it is. Where two do so at once, the first one counts."""
    if not topics:
        return
    records = []
    for topic in topics:
        mine = Incarnation(
            application=ours.application,
            application_id=ours.application_id,
            topic=topic.name,
            topic_id=topic.topic_id,
            partitions=len(topic.partitions),
        )
        records.append((topic.name, 0, INCARNATION_KEY + uuid4().hex.encode(), msgspec.json.encode(mine)))
    await admin.append(records)
    await _check_owner(admin, ours, topics)


def _check_first(record: Fetched, ours: Owner, topic: Topic) -> None:
    if not is_incarnation(record.key):
        raise _recreated(
            f"{topic.name}: begins with a record of something else (key {_shown(record.key)}, offset {record.offset})"
        )
    try:
        incarnation = msgspec.json.decode(record.value or b"", type=Incarnation)
    except msgspec.DecodeError as error:
        raise _recreated(f"{topic.name}: begins with a record that can't be read ({error})") from error
    theirs = Owner(incarnation.application, incarnation.application_id)
    if theirs != ours:
        raise Refused(
            "PEN0748",
            f"Topic {topic.name} belongs to another application: to {theirs.application} with id "
            f"{theirs.application_id}, and this is {ours.application} with id {ours.application_id}. Give one of the "
            "two another name: --name.",
        )
    if incarnation.topic_id != topic.topic_id:
        raise _recreated(f"{topic.name}: a copy of another topic (of id {incarnation.topic_id})")


def is_incarnation(key: bytes | None) -> bool:
    """Whether a record of an internal topic only says whose the topic is. Readers pass over it."""
    return key is not None and key.startswith(INCARNATION_KEY)


def _recreated(what: str) -> Refused:
    return Refused(
        "PEN0751",
        f"This is not the topic the application was using: {what}. The records it needs are gone, and it can't "
        "continue. Begin anew, under another name or after: penstock destroy.",
    )


def _is_durable(topic: str) -> bool:
    return _GENERATION.sub("", topic).rpartition(".")[2] in DURABLE


# Doing away with them.


async def remove_generation(options: KafkaOptions, app: str, generation: int) -> None:
    """Remove the topics of a generation that nobody works with, as far as they are there."""
    names = [topic_name(app, part, generation) for part in PARTS if part not in SHARED]
    async with Admin(options) as admin:
        for topic, why in (await admin.delete(names)).items():
            if why.denied:
                raise denied(options, ["Delete"], "topic", topic)
            if why.code != UNKNOWN_TOPIC:
                raise _not_removed(f"topic {topic}: {why}")
        await gone(admin, names)


class Holding(NamedTuple):
    """Something of an application that lies in the cluster."""

    kind: Literal["topic", "group"]
    name: str
    partitions: int | None
    size_bytes: int | None
    """On the disks of all brokers; None when not known."""


class Inventory(NamedTuple):
    """All that an application keeps in a cluster."""

    app: str
    holdings: Sequence[Holding]
    heard_ms: int | None
    """When a worker or the leader was heard of last."""
    transactional_ids: Sequence[str]
    """Can't be removed; the cluster forgets them after `transactional.id.expiration.ms`."""


async def inventory(options: KafkaOptions, app: str) -> Inventory:
    """What there is of `app`. Raises InvalidInput when there is nothing."""
    async with Admin(options) as admin:
        return await _inventory(admin, app)


async def destroy(options: KafkaOptions, app: str, now_ms: int) -> Inventory:
    """Remove all of `app`; returns what was removed. Raises Refused while a worker may be alive."""
    async with Admin(options) as admin:
        found = await _inventory(admin, app)
        refuse_alive(found, now_ms)
        refused = await admin.delete([each.name for each in found.holdings if each.kind == "topic"])
        for topic, why in refused.items():
            if why.denied:
                raise denied(options, ["Delete"], "topic", topic)
            if why.code != UNKNOWN_TOPIC:
                raise _not_removed(f"topic {topic}: {why}")
        await gone(admin, [each.name for each in found.holdings if each.kind == "topic"])
        for group in (each.name for each in found.holdings if each.kind == "group"):
            problem = await admin.delete_group(group)
            if problem is not None and problem.denied:
                raise denied(options, ["Delete"], "group", group)
            if problem is not None:
                raise _not_removed(f"group {group}: {problem}")
    return found


async def gone(admin: Admin, topics: Collection[str]) -> None:
    """Wait until no topic is there any more, a moment after its deletion: then the name may be used again."""
    deadline = asyncio.get_running_loop().time() + admin.options.request_timeout_s
    while left := await admin.topics(topics):
        if asyncio.get_running_loop().time() > deadline:
            raise _not_removed(f"topic {next(iter(left))}, which is there still")
        await asyncio.sleep(SETTLE_S)


def refuse_alive(found: Inventory, now_ms: int) -> None:
    """Raise Refused when a worker was heard of a moment ago."""
    if found.heard_ms is not None and now_ms - found.heard_ms < ALIVE_MS:
        ago_s = max(0, now_ms - found.heard_ms) / 1000
        raise Refused(
            "PEN0752",
            f"{found.app} is running: something was heard of it {ago_s:.0f} s ago. Stop its workers, and try again "
            f"{ALIVE_MS // 1000} s later. Nothing was removed.",
        )


async def refuse_absent(options: KafkaOptions, app: str) -> None:
    """Raise InvalidInput unless `app` was started in this cluster."""
    async with Admin(options) as admin:
        if not await admin.topics([topic_name(app, "control")]):
            raise await _not_there(admin, app)


async def _not_there(admin: Admin, app: str) -> InvalidInput:
    return InvalidInput(
        "PEN0753",
        f"There is no application {app} in the Kafka cluster at {admin.options.bootstrap}: it has none of the "
        f"topics {app}.*. Applications there: {_listed(applications(await admin.topics(None))) or 'none'}.",
    )


async def _inventory(admin: Admin, app: str) -> Inventory:
    topics = {name: topic for name, topic in (await admin.topics(None)).items() if is_own(app, name)}
    if not topics:
        raise await _not_there(admin, app)
    sizes = await admin.sizes(topics)
    reports, inbox = topic_name(app, "reports"), topic_name(app, "inbox")
    heard_at = {name: 0 for name in topics if name.startswith(reports)} | {topic_name(app, "control"): 1}
    newest = await admin.last_records(
        [
            (name, number)
            for name, number in heard_at.items()
            if name in topics and number < len(topics[name].partitions)
        ]
    )
    tasks = max((len(topic.partitions) for name, topic in topics.items() if name.startswith(inbox)), default=0)
    return Inventory(
        app,
        [
            *(
                Holding("topic", name, len(topic.partitions), None if sizes is None else sizes[name])
                for name, topic in sorted(topics.items())
            ),
            *([Holding("group", group_name(app), None, None)] if await admin.has_group(group_name(app)) else []),
        ],
        max((record.timestamp_ms for record in newest.values() if not is_incarnation(record.key)), default=None),
        [leader_id(app), *(egress_id(app, task) for task in range(tasks))],
    )


def applications(topics: Collection[str]) -> list[str]:
    """The names of the applications that keep topics among these."""
    suffixes = {name.removesuffix(".control") for name in topics if name.endswith(".control")}
    deltas = {_GENERATION.sub("", name) for name in topics}
    return sorted(app for app in suffixes if topic_name(app, "deltas") in deltas)


def _not_removed(what: str) -> PenstockError:
    return Unavailable(
        "PEN0749", f"The Kafka cluster did not remove {what}. Run penstock destroy again: it goes on with what is left."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(key: bytes | None) -> str:
    return "none" if key is None else repr(key[:40])
