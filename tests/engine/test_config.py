"""The configuration is checked as a whole, and its shares of the memory add up."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.engine.config import Config
from penstock.errors import ConfigurationError


def test_the_defaults_are_a_configuration() -> None:
    config = Config()

    assert (config.parallelism, config.interval_ms, config.host) == (1, 200, "127.0.0.1")
    shares = [config.cache_bytes, config.store_bytes, config.pending_bytes]
    assert 0.99 * config.memory_bytes < sum(shares) <= config.memory_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallelism": 3}, "PEN0130 parallelism = 3: give a power of two from 1 to 128, so key groups split evenly."),
        ({"parallelism": 0}, "PEN0130 parallelism = 0: give a power of two from 1 to 128, so key groups split evenly."),
        (
            {"parallelism": 256},
            "PEN0130 parallelism = 256: give a power of two from 1 to 128, so key groups split evenly.",
        ),
        (
            {"memory_bytes": 1_000_000},
            "PEN0130 memory = 1,000,000 bytes is too little: give at least 64MB (--memory 64MB).",
        ),
        (
            {"interval_ms": 500, "checkpoint_timeout_ms": 500},
            (
                "PEN0130 interval = 500 ms must be at least 1 ms and below the checkpoint timeout of 500 ms, or no "
                "checkpoint could ever complete."
            ),
        ),
        (
            {"from_checkpoint": 7, "fresh": True},
            "PEN0130 --from N and --from none exclude one another. Keep one.",
        ),
        (
            {"host": "0.0.0.0"},
            (
                "PEN0602 Refused to listen on 0.0.0.0 without a token: everyone who reaches it could read and change "
                "state. Set PENSTOCK_TOKEN (or token in the configuration), or listen on 127.0.0.1."
            ),
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config(**settings)

    assert str(caught.value) == message


@pytest.mark.parametrize("settings", [{"token": "secret"}, {"port": None}])
def test_another_host_needs_a_token_or_no_port(settings: dict[str, Any]) -> None:
    assert Config(host="0.0.0.0", **settings).host == "0.0.0.0"


def test_the_token_is_never_shown() -> None:
    assert "secret" not in repr(Config(token="secret"))
