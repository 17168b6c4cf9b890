"""Internal topics against a real broker: created, verified, refused, given up and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import TypeVar

import msgspec
import pytest

from penstock.errors import ConfigurationError, InvalidInput, PenstockError, Refused, Unavailable
from penstock.router.kafka_admin import Admin, NewTopic, Partition, Topic
from penstock.router.kafka_admin import Cluster as Found
from penstock.router.kafka_client import connected
from penstock.router.kafka_options import KafkaOptions
from penstock.router.kafka_topics import (
    ALIVE_MS,
    DURABLE,
    INCARNATION_KEY,
    PARTS,
    SHARED,
    Ensured,
    Incarnation,
    Part,
    applications,
    default_replicas,
    destroy,
    ensure,
    group_name,
    inventory,
    is_incarnation,
    is_own,
    refuse_recreated,
    specifications,
    topic_name,
    verify,
)
from tests.kafka.broker import Cluster, temporary_cluster

pytestmark = pytest.mark.kafka

T = TypeVar("T")
ID = "application-1"
WAIT_S = 60


@pytest.fixture
def options(kafka: str) -> KafkaOptions:
    return KafkaOptions(kafka)


def made(options: KafkaOptions, app: str, *, parallelism: int = 2, application_id: str = ID) -> Ensured:
    return asyncio.run(ensure(options, app, application_id=application_id, parallelism=parallelism, replicas=1))


def refused(options: KafkaOptions, app: str, *, parallelism: int = 2, application_id: str = ID) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        made(options, app, parallelism=parallelism, application_id=application_id)
    return caught.value


def asked(options: KafkaOptions, question: Callable[[Admin], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with Admin(options) as admin:
            return await question(admin)

    return asyncio.run(ask())


def delete(options: KafkaOptions, *topics: str) -> None:
    async def gone(admin: Admin) -> None:
        assert await admin.delete(topics) == {}
        async with asyncio.timeout(WAIT_S):
            while await admin.topics(topics):  # noqa: ASYNC110  # The cluster does not call back.
                await asyncio.sleep(0.05)

    asked(options, gone)


def create(options: KafkaOptions, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
    async def there(admin: Admin) -> None:
        assert await admin.create([NewTopic(topic, partitions, 1, settings)]) == {}
        async with asyncio.timeout(WAIT_S):
            while not [each for each in (await admin.topics([topic])).values() if each.led]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    asked(options, there)


def recreate(options: KafkaOptions, app: str, part: Part, **changed: str) -> None:
    """Delete a topic, and create it again: with the right settings, but for those given (`retention_ms="1"`)."""
    spec = next(each for each in specifications(app, parallelism=2, replicas=1) if each.part == part)
    delete(options, spec.topic)
    changes = {name.replace("_", "."): value for name, value in changed.items()}
    create(options, spec.topic, spec.partitions, {**spec.settings, **changes})


def write(options: KafkaOptions, topic: str, *, key: bytes = b"key", value: bytes = b"value") -> None:
    asked(options, lambda admin: admin.append([(topic, 0, key, value)]))


# What they are called.


def test_topics_of_each_generation_are_an_application_s_own() -> None:
    first = {spec.part: spec.topic for spec in specifications("shop", parallelism=1, replicas=1)}
    third = {spec.part: spec.topic for spec in specifications("shop", parallelism=4, replicas=1, generation=3)}

    assert {part for part, name in third.items() if name == first[part]} == SHARED
    assert third["inbox"] == "shop.inbox-g3"
    assert all(is_own("shop", name) for name in (*first.values(), *third.values()))
    assert not any(is_own("shop", name) for name in ("shop.orders", "shop.orders-g3", "other.inbox-g3", "shop.inbox-g"))
    assert applications({"shop.control", "shop.deltas-g3", "bank.control"}) == ["shop"]


def test_with_the_ids_of_topics_of_a_later_generation_one_that_was_created_anew_is_known() -> None:
    with pytest.raises(Refused, match=r"PEN0751 .*shop\.inbox-g2"):
        refuse_recreated({"shop.inbox-g2": "a"}, {"shop.inbox-g2": "b"})


# What they have to be like.


def test_every_topic_is_kept_until_its_records_are_given_up() -> None:
    specs = {spec.part: spec for spec in specifications("shop", parallelism=4, replicas=3)}

    assert [spec.topic for spec in specs.values()] == [
        "shop.control",
        "shop.reports",
        "shop.inbox",
        "shop.requests",
        "shop.deltas",
        "shop.egress-marks",
        "shop.replies",
        "shop.dead",
    ]
    assert {part: spec.partitions for part, spec in specs.items()} == {
        "control": 2,
        "reports": 1,
        "inbox": 4,
        "requests": 4,
        "deltas": 4,
        "egress-marks": 4,
        "replies": 4,
        "dead": 1,
    }
    assert specs["inbox"].required() == {
        "cleanup.policy": "delete",
        "max.message.bytes": "8388608",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": "2",
        "retention.bytes": "-1",
        "retention.ms": "-1",
        "unclean.leader.election.enable": "false",
    }
    assert {part for part, spec in specs.items() if spec.settings["cleanup.policy"] == "compact"} == {"egress-marks"}
    assert {part for part, spec in specs.items() if spec.settings["retention.ms"] != "-1"} == {"replies", "reports"}


@pytest.mark.parametrize(("brokers", "replicas"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_replicas_follow_the_number_of_brokers(brokers: int, replicas: int) -> None:
    assert default_replicas(Found("", dict.fromkeys(range(brokers), ""), 0)) == replicas


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, "1"), (2, "2"), (3, "2"), (5, "3")])
def test_a_majority_has_every_record(replicas: int, in_sync: str) -> None:
    spec = specifications("shop", parallelism=1, replicas=replicas)[0]

    assert spec.settings["min.insync.replicas"] == in_sync


def test_larger_limits_are_as_good_as_those_wanted() -> None:
    spec = specifications("shop", parallelism=1, replicas=3, frame_bytes_max=1000)[0]

    assert spec.wrong_settings({**spec.settings, "min.insync.replicas": "3", "max.message.bytes": "1001"}) == {}
    assert spec.wrong_settings({**spec.settings, "max.message.bytes": "999"}) == {"max.message.bytes": ("999", "1000")}


def test_too_few_replicas_of_a_topic_that_exists_are_refused() -> None:
    spec = specifications("shop", parallelism=1, replicas=3)[0]
    topic = Topic(spec.topic, "1", (Partition(1, 3, 3), Partition(1, 1, 1)), frozenset())

    with pytest.raises(Refused) as caught:
        verify(KafkaOptions("kafka:9092"), spec, topic, spec.settings)

    assert str(caught.value) == (
        "PEN0743 Topic shop.control has 1 replica, and 3 are wanted. Add some with kafka-reassign-partitions.sh, or "
        "ask for fewer replicas."
    )


# Made and found.


def test_topics_are_created_once(options: KafkaOptions, kafka_app: str) -> None:
    first = made(options, kafka_app)
    second = made(options, kafka_app)

    assert sorted(first.created) == sorted(topic_name(kafka_app, part) for part in PARTS)
    assert second.created == []
    assert second.incarnations == first.incarnations
    assert len(set(first.incarnations.values())) == len(PARTS)


def test_created_topics_have_the_settings(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)
    specs = specifications(kafka_app, parallelism=2, replicas=1)

    settings = asked(options, lambda admin: admin.topic_settings([spec.topic for spec in specs]))

    for spec in specs:
        assert {name: settings[spec.topic][name] for name in spec.settings} == spec.settings


def test_two_workers_may_create_them_at_once(options: KafkaOptions, kafka_app: str) -> None:
    async def both() -> tuple[Ensured, Ensured]:
        one = ensure(options, kafka_app, application_id=ID, parallelism=2, replicas=1)
        other = ensure(options, kafka_app, application_id=ID, parallelism=2, replicas=1)
        return await asyncio.gather(one, other)

    one, other = asyncio.run(both())

    assert one.incarnations == other.incarnations
    assert sorted([*one.created, *other.created]) == sorted(one.incarnations)


def test_the_first_record_says_whose_the_topic_is(options: KafkaOptions, kafka_app: str) -> None:
    incarnations = made(options, kafka_app).incarnations
    inbox = topic_name(kafka_app, "inbox")

    record = asked(options, lambda admin: admin.first_records([(inbox, 0)]))[inbox, 0]

    assert record.offset == 0
    assert is_incarnation(record.key)
    assert msgspec.json.decode(record.value or b"", type=Incarnation) == Incarnation(
        application=kafka_app, application_id=ID, topic=inbox, topic_id=incarnations[inbox], partitions=2
    )


def test_a_truncated_topic_is_known_by_its_id(options: KafkaOptions, kafka_app: str) -> None:
    before = made(options, kafka_app).incarnations
    deltas = topic_name(kafka_app, "deltas")
    write(options, deltas)

    asked(options, lambda admin: admin.delete_records({(deltas, 0): 2, (deltas, 1): 0}))

    assert asked(options, lambda admin: admin.offsets([(deltas, 0), (deltas, 1)])) == {
        (deltas, 0): (2, 2),
        (deltas, 1): (0, 0),
    }
    assert made(options, kafka_app).incarnations == before


# Refused.


def test_another_parallelism_is_refused(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app, parallelism=2)

    error = refused(options, kafka_app, parallelism=4)

    assert isinstance(error, Refused)
    assert str(error) == (
        f"PEN0745 Topic {kafka_app}.inbox has 2 partitions, and needs 4: one for each task. Start it with "
        "parallelism = 2, or under another name. For another parallelism, stop it and use penstock rescale."
    )


def test_a_topic_with_a_fixed_number_of_partitions_is_no_matter_of_parallelism(
    options: KafkaOptions, kafka_app: str
) -> None:
    control = specifications(kafka_app, parallelism=2, replicas=1)[0]
    create(options, control.topic, 1, control.settings)

    assert str(refused(options, kafka_app)) == (
        f"PEN0745 Topic {kafka_app}.control has 1 partition, and needs 2. Something else created it. Delete it if it "
        "is empty, and start again."
    )


def test_settings_that_delete_records_are_refused(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)
    recreate(options, kafka_app, "inbox", retention_ms="604800000", message_timestamp_type="CreateTime")

    error = refused(options, kafka_app)

    assert isinstance(error, Refused)
    assert str(error) == (
        f"PEN0744 Topic {kafka_app}.inbox: message.timestamp.type is CreateTime instead of LogAppendTime, retention.ms "
        "is 604800000 instead of -1. Records may be gone already. If the application has not begun, or nothing is "
        f"gone, mend it: kafka-configs.sh --bootstrap-server {options.bootstrap} --alter --entity-type topics "
        f"--entity-name {kafka_app}.inbox --add-config message.timestamp.type=LogAppendTime,retention.ms=-1"
    )


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("cleanup.policy", "compact", "delete"),
        ("max.message.bytes", "1000000", "8388608"),
        ("retention.bytes", "1000000", "-1"),
        ("unclean.leader.election.enable", "true", "false"),
    ],
)
def test_a_wrong_setting_is_named(options: KafkaOptions, kafka_app: str, setting: str, value: str, wanted: str) -> None:
    spec = specifications(kafka_app, parallelism=2, replicas=1)[2]
    create(options, spec.topic, 2, {**spec.settings, setting: value})

    error = refused(options, kafka_app)

    assert error.code == "PEN0744"
    assert f"{spec.topic}: {setting} is {value} instead of {wanted}." in str(error)
    assert f"--add-config {setting}={wanted}" in str(error)


def test_too_few_brokers_are_refused(options: KafkaOptions, kafka_app: str) -> None:
    brokers = len(asked(options, Admin.cluster).brokers)

    with pytest.raises(Refused) as caught:
        asyncio.run(ensure(options, kafka_app, application_id=ID, parallelism=1, replicas=brokers + 2))

    assert str(caught.value) == (
        f"PEN0743 {brokers + 2} replicas are wanted, and the cluster has {brokers} broker"
        f"{'s' if brokers != 1 else ''}. Start more brokers, or ask for fewer replicas: then fewer brokers may be lost."
    )


def test_another_application_of_this_name_is_refused(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)

    error = refused(options, kafka_app, application_id="application-2", parallelism=4)

    assert isinstance(error, Refused)
    assert error.code == "PEN0748"
    topic = str(error).split()[2]
    assert str(error) == (
        f"PEN0748 Topic {topic} belongs to another application: to {kafka_app} with id application-1, and this is "
        f"{kafka_app} with id application-2. Give one of the two another name: --name."
    )


@pytest.mark.parametrize("part", DURABLE)
def test_a_recreated_topic_is_refused(options: KafkaOptions, kafka_app: str, part: Part) -> None:
    before = made(options, kafka_app).incarnations
    recreate(options, kafka_app, part)
    after = made(options, kafka_app).incarnations

    with pytest.raises(Refused) as caught:
        refuse_recreated(before, after)

    assert str(caught.value) == (
        f"PEN0751 This is not the topic the application was using: {kafka_app}.{part}: deleted and created again since "
        "the last checkpoint. The records it needs are gone, and it can't continue. Begin anew, under another name or "
        "after: penstock destroy."
    )


def test_a_recreated_topic_of_what_is_said_again_does_no_harm(options: KafkaOptions, kafka_app: str) -> None:
    before = made(options, kafka_app).incarnations
    recreate(options, kafka_app, "reports")

    refuse_recreated(before, made(options, kafka_app).incarnations)


def test_a_deleted_topic_is_refused_once_the_application_has_begun(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)
    write(options, topic_name(kafka_app, "control"))
    delete(options, topic_name(kafka_app, "deltas"))

    error = refused(options, kafka_app)

    assert isinstance(error, Refused)
    assert str(error) == (
        f"PEN0746 {kafka_app}.deltas is missing, while {kafka_app}.control holds records: deleted by somebody. What it "
        "held is lost, and the application can't continue. Begin anew, under another name or after: penstock destroy."
    )


def test_a_topic_missing_before_that_is_created(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)
    deltas = topic_name(kafka_app, "deltas")
    delete(options, deltas)

    assert made(options, kafka_app).created == [deltas]


def test_a_topic_that_something_else_writes_is_refused(options: KafkaOptions, kafka_app: str) -> None:
    spec = specifications(kafka_app, parallelism=2, replicas=1)[2]
    create(options, spec.topic, 2, spec.settings)
    write(options, spec.topic, key=b"order-1")

    assert str(refused(options, kafka_app)) == (
        f"PEN0751 This is not the topic the application was using: {kafka_app}.inbox: begins with a record of "
        "something else (key b'order-1', offset 0). The records it needs are gone, and it can't continue. Begin anew, "
        "under another name or after: penstock destroy."
    )


@pytest.mark.parametrize("looks", [1, 2])
def test_records_may_be_deleted_while_topics_are_looked_at(
    options: KafkaOptions, kafka_app: str, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """A leader gives up what no checkpoint needs at any moment: also while a worker starts."""
    made(options, kafka_app)
    deltas = topic_name(kafka_app, "deltas")
    write(options, deltas)
    asked(options, lambda admin: admin.delete_records({(deltas, 0): 1}))
    actual, outdated = Admin.offsets, [0] * looks

    async def offsets(self: Admin, partitions: Collection[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        found = await actual(self, partitions)
        if (deltas, 0) in found and outdated:
            found[deltas, 0] = (outdated.pop(), found[deltas, 0][1])
        return found

    monkeypatch.setattr(Admin, "offsets", offsets)
    assert made(options, kafka_app).created == []
    assert not outdated


def test_a_copy_from_another_cluster_is_refused(options: KafkaOptions, kafka_app: str) -> None:
    """Mirroring copies the first record, too; offsets differ."""
    made(options, kafka_app)
    inbox = topic_name(kafka_app, "inbox")
    recreate(options, kafka_app, "inbox")
    elsewhere = Incarnation(application=kafka_app, application_id=ID, topic=inbox, topic_id="b2c4" * 8, partitions=2)
    write(options, inbox, key=INCARNATION_KEY, value=msgspec.json.encode(elsewhere))

    error = refused(options, kafka_app)

    assert error.code == "PEN0751"
    assert f"{inbox}: a copy of another topic (of id {'b2c4' * 8})" in str(error)


def test_a_first_record_that_can_not_be_read_is_refused(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)
    recreate(options, kafka_app, "inbox")
    write(options, topic_name(kafka_app, "inbox"), key=INCARNATION_KEY, value=b"{}")

    error = refused(options, kafka_app)

    assert error.code == "PEN0751"
    assert "begins with a record that can't be read (Object missing required field `application`)" in str(error)


# Removed.


def test_what_an_application_keeps_is_listed(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)

    found = asyncio.run(inventory(options, kafka_app))

    assert [(each.kind, each.name) for each in found.holdings] == [
        ("topic", topic_name(kafka_app, part)) for part in sorted(PARTS)
    ]
    assert all(each.size_bytes for each in found.holdings)
    assert found.heard_ms is None
    assert list(found.transactional_ids) == [f"{kafka_app}-leader", f"{kafka_app}-egress-0", f"{kafka_app}-egress-1"]


def test_everything_is_removed(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)

    removed = asyncio.run(destroy(options, kafka_app, now_ms=0))

    assert len(removed.holdings) == len(PARTS)
    assert made(options, kafka_app, parallelism=4, application_id="application-2").created


def test_positions_told_to_the_group_are_removed_with_the_topics(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)

    async def tell_and_destroy() -> bool | None:
        async with connected(options) as client:
            await client.commit(group_name(kafka_app), {(topic_name(kafka_app, "dead"), 0): 1})
        removed = await destroy(options, kafka_app, now_ms=0)
        assert [each.name for each in removed.holdings if each.kind == "group"] == [kafka_app]
        async with Admin(options) as admin:
            return await admin.has_group(group_name(kafka_app))

    assert asyncio.run(tell_and_destroy()) is False


@pytest.mark.parametrize("place", ["reports", "control"])
def test_nothing_is_removed_while_it_runs(options: KafkaOptions, kafka_app: str, place: Part) -> None:
    made(options, kafka_app)
    partition = 1 if place == "control" else 0
    topic = topic_name(kafka_app, place)
    said = asked(options, lambda admin: admin.append([(topic, partition, b"worker", b"alive")]))[0]

    with pytest.raises(Refused) as caught:
        asyncio.run(destroy(options, kafka_app, now_ms=said.timestamp_ms + 2_000))

    assert str(caught.value) == (
        f"PEN0752 {kafka_app} is running: something was heard of it 2 s ago. Stop its workers, and try again 15 s "
        "later. Nothing was removed."
    )
    assert made(options, kafka_app).created == []
    asyncio.run(destroy(options, kafka_app, now_ms=said.timestamp_ms + ALIVE_MS))


def test_an_application_that_is_not_there_can_not_be_removed(options: KafkaOptions, kafka_app: str) -> None:
    made(options, kafka_app)

    with pytest.raises(InvalidInput) as caught:
        asyncio.run(inventory(options, f"{kafka_app}x"))

    assert str(caught.value).startswith(
        f"PEN0753 There is no application {kafka_app}x in the Kafka cluster at {options.bootstrap}: it has none of the "
        f"topics {kafka_app}x.*. Applications there: "
    )
    assert kafka_app in str(caught.value)


def test_applications_are_found_by_their_topics() -> None:
    assert applications(["a.control", "a.deltas", "b.control", "c.deltas", "orders"]) == ["a"]


# Not let in.


@pytest.fixture(scope="module")
def guarded(java: None) -> Iterator[Cluster]:
    """A cluster where `app` may do what it is allowed, which is nothing at first."""
    with temporary_cluster(users={"app": "secret"}) as cluster:
        yield cluster


def logged_in(cluster: Cluster, password: str = "secret", mechanism: str = "PLAIN") -> KafkaOptions:
    return KafkaOptions(
        cluster.bootstrap_sasl,
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": "app",
            "sasl.password": password,
        },
    )


def test_missing_permissions_are_named_with_what_grants_them(guarded: Cluster) -> None:
    options = logged_in(guarded)
    bootstrap = guarded.bootstrap_sasl

    assert str(refused(options, "shop")) == (
        f"PEN0742 User:app may not Describe topic shop.control. Grant it: kafka-acls.sh --bootstrap-server {bootstrap} "
        "--add --allow-principal User:app --operation Describe --topic shop.control. All that is needed: penstock "
        "doctor --kafka ... --acls User:app."
    )
    for granted, missing in (
        ("Describe", "Create"),
        ("Create", "DescribeConfigs"),
        ("DescribeConfigs", "Write"),
        ("Write", "Read"),
    ):
        guarded.allow("app", granted, topic="shop.")
        error = refused(options, "shop")
        assert isinstance(error, Refused)
        assert str(error).startswith(f"PEN0742 User:app may not {missing} topic shop.")
    guarded.allow("app", "Read", topic="shop.")
    assert made(options, "shop").incarnations
    deltas = ("shop.deltas", 0)
    with pytest.raises(Refused, match=r"PEN0742 User:app may not Delete topic shop.deltas"):
        asked(options, lambda admin: admin.delete_records({deltas: 1}))
    with pytest.raises(Refused, match=r"PEN0742 User:app may not Delete topic shop"):
        asyncio.run(destroy(options, "shop", now_ms=0))


@pytest.mark.parametrize(
    ("password", "mechanism", "why"),
    [("wrong", "PLAIN", "SaslAuthenticationFailed"), ("secret", "SCRAM-SHA-256", "UnsupportedSaslMechanism")],
)
def test_wrong_credentials_are_refused(guarded: Cluster, password: str, mechanism: str, why: str) -> None:
    error = refused(logged_in(guarded, password, mechanism), "shop")

    assert isinstance(error, ConfigurationError)
    assert str(error) == (
        f"PEN0741 The Kafka broker at {guarded.bootstrap_sasl} does not let this client in (SASL_PLAINTEXT, User:app: "
        f"{why}). Correct the user, the password, the certificates or the mechanism in the properties."
    )


def test_the_wrong_protocol_is_told(guarded: Cluster) -> None:
    error = refused(KafkaOptions(guarded.bootstrap_sasl, {"request.timeout.ms": "3000"}), "shop")

    assert isinstance(error, Unavailable)
    assert str(error) == (
        f"PEN0740 No Kafka broker can be reached: {guarded.bootstrap_sasl} accepts connections, and answers no "
        "question (KafkaConnectionError). Check the addresses, that the brokers run, and that security.protocol fits "
        "the listener (it is PLAINTEXT)."
    )


def test_brokers_that_are_too_old_are_refused(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if topics had no ids: in brokers before 2.8."""
    monkeypatch.setattr("penstock.router.kafka_admin._MetadataStruct.API_VERSION", 1_000)

    error = refused(KafkaOptions(kafka), "shop")

    assert isinstance(error, ConfigurationError)
    assert str(error) == (
        f"PEN0750 The Kafka cluster at {kafka} is too old: Metadata at broker 1 is not known there in a version that "
        "is needed. Upgrade it to 3.9 or newer."
    )


def test_no_broker_at_all_is_told_address_by_address() -> None:
    error = refused(KafkaOptions("127.0.0.1:1,127.0.0.1:2", {"request.timeout.ms": "3000"}), "shop")

    assert isinstance(error, Unavailable)
    assert str(error) == (
        "PEN0740 No Kafka broker can be reached: nothing listens on 127.0.0.1:1; nothing listens on 127.0.0.1:2. Check "
        "the addresses, that the brokers run, and that security.protocol fits the listener (it is PLAINTEXT)."
    )
