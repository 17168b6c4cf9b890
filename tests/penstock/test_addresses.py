"""Which function and which id an address names."""

from __future__ import annotations

import pytest

from penstock.addresses import find_address
from penstock.ids import Address

TYPENAMES = ["a/b", "a/b/c"]
"""The short one first: the order in which functions are declared decides nothing."""


@pytest.mark.parametrize(
    ("segments", "typename", "id"),
    [
        (["a", "b", "7"], "a/b", "7"),
        (["a", "b", "c", "7"], "a/b/c", "7"),
        (["a", "b", "c"], "a/b", "c"),  # a/b/c is a function too, but leaves no id.
        (["a", "b", "x", "", "y"], "a/b", "x//y"),
        (["a", "b", "c/7"], "a/b", "c/7"),
        (["a", "b", "50%25"], "a/b", "50%25"),
    ],
)
def test_the_longest_function_that_leaves_an_id_is_meant(segments: list[str], typename: str, id: str) -> None:
    assert find_address(segments, TYPENAMES) == Address(typename, id)


@pytest.mark.parametrize("segments", [["a", "b"], ["a", "b", ""]])
def test_a_function_without_an_id_is_found(segments: list[str]) -> None:
    assert find_address(segments, TYPENAMES) == Address("a/b", "")


@pytest.mark.parametrize("segments", [["a"], ["a", "x", "7"], ["a/b", "7"], [""]])
def test_what_names_no_function_is_nothing(segments: list[str]) -> None:
    assert find_address(segments, TYPENAMES) is None
