"""Addresses, key groups and causes: what must never change once state was stored under it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigurationError
from penstock.ids import KEY_GROUPS_MAX, Address, cause_of, check_typename, key_group, murmur2, output_cause


def signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
        ("", 275_646_681),
    ],
)
def test_the_hash_is_the_one_of_kafka(text: str, expected: int) -> None:
    assert signed(murmur2(text.encode())) == expected


@given(st.binary(max_size=40))
def test_the_hash_has_32_bits(data: bytes) -> None:
    assert 0 <= murmur2(data) < 1 << 32


@pytest.mark.parametrize(("id", "group"), [("21", 108), ("abc", 27), ("JFK", 85), ("Zürich", 49), ("東京", 43)])
def test_the_key_group_of_an_id_never_changes(id: str, group: int) -> None:
    assert key_group(id) == group


def test_all_key_groups_are_in_use() -> None:
    assert {key_group(str(n)) for n in range(5_000)} == set(range(KEY_GROUPS_MAX))


def test_an_address_reads_as_its_parts() -> None:
    assert str(Address("shop/cart", "7")) == "shop/cart/7"


@pytest.mark.parametrize("typename", ["shop/cart", "a/b/c", "com.example/greeter"])
def test_a_typename_is_a_namespace_and_a_name(typename: str) -> None:
    assert check_typename(typename) == typename


@pytest.mark.parametrize("typename", ["", "cart", "/cart", "shop/"])
def test_what_is_no_typename_is_refused(typename: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_typename(typename)

    assert str(caught.value) == (
        f"PEN0101 {typename!r} is not a typename. Write it as 'namespace/name', for example 'shop/cart'."
    )


def test_causes_are_64_bits_and_differ() -> None:
    causes = {cause_of(f"topic/{partition}") for partition in range(100)}
    causes |= {output_cause(cause, index) for cause in list(causes) for index in range(1, 21)}
    causes |= {output_cause(cause, index) for cause in list(causes) for index in range(1, 4)}

    assert len(causes) == 2_100 + 20 * 100 * 3
    assert all(0 <= cause < 1 << 64 for cause in causes)


def test_the_order_of_steps_matters_to_a_cause() -> None:
    assert output_cause(output_cause(7, 1), 2) != output_cause(output_cause(7, 2), 1)


def test_a_cause_never_changes() -> None:
    assert (cause_of("flights/departures/0"), output_cause(1, 2)) == (0xBDEB796C7FD101A6, 0xC79DAEB7903A9607)
