"""What happens again and again is not said each time."""

from __future__ import annotations

import pytest

from penstock.logs import SAY_AGAIN_S, Repeated


def test_it_is_said_once_in_a_while_and_how_often_it_was_not(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    repeated = Repeated(lambda: now_s)
    for _ in range(3):
        repeated.warn("shop/cart", "no host")
    repeated.warn("shop/order", "no host either")
    now_s = SAY_AGAIN_S
    repeated.warn("shop/cart", "still no host")

    assert caplog.messages == ["no host", "no host either", "still no host (2 times more before this.)"]
