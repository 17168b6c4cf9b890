"""Subsets: who belongs to one, and who is sent there."""

from __future__ import annotations

from random import Random

from penstock.mesh.policies.settings import Weighted
from penstock.mesh.policies.split import choose_subset, members
from tests.mesh.policies.script import Endpoint

HOSTS = [Endpoint("a", "v1"), Endpoint("b", "v2", {"zone": "east"}), Endpoint("c", "v2", {"zone": "west"})]


def test_a_subset_that_nothing_defines_is_a_version() -> None:
    assert [host.name for host in members(HOSTS, "v2", {})] == ["b", "c"]


def test_a_subset_is_those_that_have_all_its_labels() -> None:
    definitions = {"west": {"version": "v2", "zone": "west"}, "v1": {}}

    assert [host.name for host in members(HOSTS, "west", definitions)] == ["c"]
    assert members(HOSTS, "v1", definitions) == HOSTS


def test_a_change_of_weights_moves_only_the_share_by_which_they_changed() -> None:
    ids = [str(number) for number in range(1000)]

    def chosen(weight: int) -> list[str]:
        split = (Weighted("v1", 100 - weight), Weighted("v2", weight))
        return [choose_subset(split, "shop/payment", id, Random(1).random) for id in ids]

    before, after = chosen(10), chosen(30)

    assert all(new == "v2" for old, new in zip(before, after, strict=True) if old == "v2")


def test_another_function_has_other_ids_in_a_subset() -> None:
    split = (Weighted("v1", 50), Weighted("v2", 50))
    ids = [str(number) for number in range(100)]

    chosen = {
        function: [choose_subset(split, function, id, Random(1).random) for id in ids] for function in ("a/b", "a/c")
    }

    assert chosen["a/b"] != chosen["a/c"]


def test_a_request_without_an_id_goes_where_chance_will() -> None:
    split = (Weighted("v1", 50), Weighted("v2", 50), Weighted("v3", 0))
    draw = Random(1).random

    assert {choose_subset(split, "a/b", "", draw) for _ in range(100)} == {"v1", "v2"}
