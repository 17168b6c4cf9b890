"""The choice of an endpoint."""

from __future__ import annotations

from collections import Counter
from math import e
from random import Random

import pytest

from penstock.mesh.policies.balance import FULL_SCAN_MAX, Balancer
from penstock.mesh.policies.ring import Ring
from penstock.mesh.policies.settings import Balance, LoadBalancing
from tests.mesh.policies.script import Endpoint, endpoints


def balancer(policy: Balance, **settings: int) -> Balancer:
    return Balancer(LoadBalancing(policy, **settings), Random(1).random)


def chosen(balancer: Balancer, hosts: list[Endpoint], *ids: str) -> list[str]:
    return [balancer.choose(hosts, hosts, id, 0.0).name for id in ids]


def test_round_robin_takes_one_after_the_other() -> None:
    hosts = endpoints(3)

    names = chosen(balancer(Balance.ROUND_ROBIN), hosts, *"123456")

    assert names == [host.name for host in hosts] * 2


def test_random_takes_all_of_them() -> None:
    assert len(set(chosen(balancer(Balance.RANDOM), endpoints(3), *map(str, range(50))))) == 3


@pytest.mark.parametrize("count", range(2, FULL_SCAN_MAX + 1))
def test_of_a_few_the_least_loaded_is_always_taken(count: int) -> None:
    hosts, found = endpoints(count), balancer(Balance.LEAST_REQUEST)
    for host in hosts[1:]:
        found.load(host.name).active = 1

    assert set(chosen(found, hosts, *map(str, range(50)))) == {hosts[0].name}


def test_with_equal_loads_all_are_taken() -> None:
    found = chosen(balancer(Balance.LEAST_REQUEST), endpoints(3), *map(str, range(300)))

    assert min(Counter(found).values()) > 60


def test_of_many_the_most_loaded_is_never_taken() -> None:
    hosts, found = endpoints(10), balancer(Balance.LEAST_REQUEST)
    found.load(hosts[4].name).active = 5

    assert hosts[4].name not in chosen(found, hosts, *map(str, range(300)))


def test_peak_ewma_avoids_the_one_that_was_slow_until_that_is_long_ago() -> None:
    hosts, found = endpoints(2), balancer(Balance.PEAK_EWMA)
    found.load(hosts[0].name).observe(1.0, now_s=0.0)
    found.load(hosts[1].name).observe(0.1, now_s=0.0)
    found.load(hosts[1].name).active = 2

    assert found.choose(hosts, hosts, "", 0.0) is hosts[1]
    found.load(hosts[1].name).observe(0.1, now_s=60.0)
    assert found.choose(hosts, hosts, "", 60.0) is hosts[0]


def test_a_peak_counts_at_once_and_what_is_better_slowly() -> None:
    load = balancer(Balance.PEAK_EWMA).load("a")
    load.observe(0.1, now_s=0.0)
    load.observe(1.0, now_s=0.0)
    assert load.cost(0.0) == 1.0

    load.observe(0.1, now_s=1.0)

    assert 0.9 < load.cost(1.0) < 1.0
    assert load.cost(11.0) == pytest.approx(load.cost(1.0) / e)


def test_a_bounded_owner_passes_on_what_is_beyond_its_share() -> None:
    hosts, found = endpoints(3), balancer(Balance.RING_HASH, hash_balance_factor=150)
    seen: Counter[str] = Counter()
    for _ in range(30):
        host = found.choose(hosts, hosts, "one-id", 0.0)
        found.load(host.name).active += 1
        seen[host.name] += 1

    assert max(seen.values()) <= 15
    assert min(seen.values()) > 0


def test_an_owner_that_was_avoided_owns_the_same_ids_when_it_is_back() -> None:
    hosts, found = endpoints(3), balancer(Balance.RING_HASH)
    ids = [str(number) for number in range(100)]
    before = chosen(found, hosts, *ids)

    without = [found.choose(hosts[1:], hosts, id, 0.0).name for id in ids]

    assert all(new == old for old, new in zip(before, without, strict=True) if old != hosts[0].name)
    assert chosen(found, hosts, *ids) == before


def test_what_is_known_of_an_endpoint_that_is_gone_is_forgotten_unless_it_is_at_work() -> None:
    found = balancer(Balance.LEAST_REQUEST)
    busy, idle = found.load("busy"), found.load("idle")
    busy.active = idle.active = 1
    idle.active = 0

    found.keep_only(frozenset())

    assert found.load("busy") is busy
    assert found.load("idle") is not idle


def test_rings_of_many_sets_of_endpoints_are_not_all_kept() -> None:
    found = balancer(Balance.RING_HASH, minimum_ring_size=8)
    for number in range(20):
        hosts = [Endpoint(f"{number}-{other}") for other in range(2)]
        found.choose(hosts, hosts, "1", 0.0)

    assert len(found._rings) <= 8


def test_a_ring_of_another_size_takes_the_place_of_the_one_before() -> None:
    hosts, found, ids = endpoints(3), balancer(Balance.RING_HASH, minimum_ring_size=8), [*map(str, range(200))]
    before = chosen(found, hosts, *ids)

    found.change(LoadBalancing(Balance.RING_HASH, minimum_ring_size=4096))

    assert chosen(found, hosts, *ids) == chosen(balancer(Balance.RING_HASH, minimum_ring_size=4096), hosts, *ids)
    assert chosen(found, hosts, *ids) != before


def test_the_ring_is_the_same_in_whatever_order_endpoints_are_named() -> None:
    names = ["a", "b", "c", "d"]

    orders = {tuple(Ring(Random(seed).sample(names, 4), 1024).order("7")) for seed in range(5)}

    assert len(orders) == 1
    assert sorted(orders.pop()) == names
