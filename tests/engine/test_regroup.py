"""What a new task takes over of old ones, on stores in memory."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.delays import Delays
from penstock.engine.pending import Pending
from penstock.engine.regroup import NewTask, OldTask, fill, old_tasks_of, positions_of
from penstock.functions.context import Delayed
from penstock.ids import Address, key_group
from penstock.records import Envelope, EpochFrame, Meta, TaskMeta
from penstock.state import keys
from penstock.state.memory import MemoryBackend
from penstock.state.overlay import Overlay, decode_queued


class Target:
    typename = "test/to"


def old_task(task: int, tasks: int, ids: list[str], **fields: object) -> OldTask:
    """A task with a value, a delayed message with a token, and a held message for each of its ids."""
    store = MemoryBackend()
    overlay = Overlay(store)
    delays, pending = Delays(overlay), Pending(overlay)
    for number, id in enumerate(id for id in ids if key_group(id) % tasks == task):
        store.write([(keys.encode_value_key(key_group(id), "test/from", id), id.encode())])
        delayed = Delayed(10 - number % 3, Target(), id, b"", "token")  # type: ignore[arg-type]
        delays.schedule(Address("test/from", id), delayed, number, 0)
        pending.hold({}, "test/from", (id, b"", number, None, None), attempt=2)
    _, rows = overlay.take_batch()
    store.write(rows.items())
    numbers = {"timer": delays.next_number, "pending": pending.next_number, "dead": 1}
    return OldTask(task, store, TaskMeta(clock_ms=task, numbers=numbers), {}, (), ())._replace(**fields)  # type: ignore[arg-type]


def regrouped(olds: list[OldTask], tasks: int) -> list[tuple[MemoryBackend, TaskMeta]]:
    found = []
    for task in range(tasks):
        store = MemoryBackend()
        first = olds[task % len(olds)].store
        store.write(list(first.scan(b"", b"\xff")))
        found.append((store, fill(store, NewTask(task, tasks, 7, 9), olds, mark=(1, 2))))
    return found


def test_the_old_tasks_of_a_new_one_have_the_same_remainder() -> None:
    assert [list(old_tasks_of(task, tasks=2, tasks_before=8)) for task in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [list(old_tasks_of(task, tasks=8, tasks_before=2)) for task in (0, 3, 7)] == [[0], [1], [1]]


@given(
    ids=st.lists(st.text(min_size=1, max_size=8), max_size=30, unique=True),
    before=st.sampled_from([1, 2, 4, 8]),
    after=st.sampled_from([1, 2, 4, 8]),
)
def test_every_row_goes_to_the_task_that_owns_it_and_names_what_it_named(
    ids: list[str], before: int, after: int
) -> None:
    found = regrouped([old_task(task, before, ids) for task in range(before)], after)

    seen = []
    for task, (store, meta) in enumerate(found):
        own = {id for id in ids if key_group(id) % after == task}
        values = store.scan(b"", bytes((keys.META,)))
        seen += [keys.address_of(key)[1] for key, _ in values if key[1] == keys.VALUE]
        assert {id for id in own if store.get(keys.encode_value_key(key_group(id), "test/from", id))} == own
        timers = dict(store.scan(*keys.task_kind_range(keys.TIMER)))
        assert len(timers) == len(own)
        for id in own:
            named = store.get(keys.encode_token_key(key_group(id), id, "token"))
            assert named in timers
        assert all(keys.decode_timer_key(key).number < meta.numbers["timer"] for key in timers)
        held = [keys.decode_pending_key(key) for key, _ in store.scan(*keys.task_kind_range(keys.PENDING))]
        assert len(held) == len(own)
        assert all(number < meta.numbers["pending"] for number in held)
        assert (meta.inbox_position, meta.ingress_positions) == (7, {"requests": 9})
        assert meta.clock_ms == before - 1
    assert sorted(seen) == sorted(ids)


def test_messages_under_way_keep_their_order_and_come_before_requests() -> None:
    def message(id: str, number: int) -> Envelope:
        return Envelope("test/to", id, bytes((number,)), 0, None, None)

    operation = message("a", 9)._replace(meta=Meta(operation="state.set"))
    olds = [old_task(task, 2, []) for task in range(2)]
    task = key_group("a") % 2
    olds[task] = olds[task]._replace(
        queues={"test/to": [message("a", 0)[1:]]},
        inbox=[EpochFrame(1, 1, 0, 1, [message("a", 1), message("a", 2)])],
        requests=[message("a", 3), operation, message("a", 4)],
    )

    ((store, meta),) = regrouped(olds, 1)

    rows = [decode_queued(value) for _, value in store.scan(*keys.task_kind_range(keys.QUEUE))]
    assert [row[1] for row in rows] == [bytes((number,)) for number in range(5)]
    assert meta.queues == {"test/to": (0, 5)}


def test_a_message_without_an_id_waits_for_the_task_to_bury_it() -> None:
    nobody = Envelope("test/to", "", b"", 0, None, None)
    olds = [old_task(0, 1, [], inbox=[EpochFrame(1, 1, 0, 1, [nobody])])]

    found = regrouped(olds, 4)

    waiting = [list(store.scan(*keys.task_kind_range(keys.PENDING))) for store, _ in found]
    assert [len(rows) for rows in waiting] == [int(task == key_group("") % 4) for task in range(4)]


def test_letters_lie_where_their_number_says_and_new_ones_are_numbered_above() -> None:
    olds = []
    for task in range(4):
        store = MemoryBackend()
        store.write([(keys.encode_dead_key(n * 4 + task), b"letter") for n in range(1, 4)])
        olds.append(OldTask(task, store, TaskMeta(numbers={"dead": 4}), {}, (), ()))

    for tasks in (1, 2, 4, 8):
        found = []
        for task, (store, meta) in enumerate(regrouped(olds, tasks)):
            numbers = [keys.decode_dead_key(key) for key, _ in store.scan(*keys.task_kind_range(keys.DEAD))]
            assert all(number % tasks == task for number in numbers)
            assert meta.numbers["dead"] * tasks + task > max(numbers, default=0)
            found += numbers
        assert sorted(found) == list(range(4, 16))


def positions(before: list[Mapping[str, object]], tasks: int) -> list[dict[str, object]]:
    return [positions_of(task, tasks, before) for task in range(tasks)]


def test_partitions_are_read_by_number_and_other_inputs_by_name() -> None:
    owner = key_group("file") % 2
    before: list[dict[str, object]] = [{"in": {"t": 4}, "in/t/0": [5], "in/t/2": [7], "requests": 1}, {}]
    before[1] = {"in": {"t": 4}, "in/t/1": [6], "in/t/3": [8], "inbox": 3}
    before[owner]["file"] = 12

    four = positions(list(before), 4)

    assert [each.get(f"in/t/{task}") for task, each in enumerate(four)] == [[5], [6], [7], [8]]
    assert [sum(name.startswith("in/") for name in each) for each in four] == [1, 1, 1, 1]
    assert all(each["in"] == {"t": 4} for each in four)
    assert [each.get("file") for each in four].count(12) == 1
    assert four[key_group("file") % 4]["file"] == 12
    (one,) = positions(list(four), 1)
    assert one == {"in": {"t": 4}, "in/t/0": [5], "in/t/1": [6], "in/t/2": [7], "in/t/3": [8], "file": 12}


def test_an_input_of_one_task_goes_on_from_where_its_owner_stood() -> None:
    """What every old task knows every new one knows, and the owner alone keeps it up to date."""
    four = positions([{"file": 1}], 4)
    owner = key_group("file") % 4
    four[owner]["file"] = 2

    assert positions(list(four), 1) == [{"file": 2}]
