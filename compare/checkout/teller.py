"""Asks the bank, over HTTP: the steps that handlers run outside.

Each request has a connection of its own, so that what a relay does to one request it does to no other.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import aiohttp

from penstock.compare.checkout.bank import Asked


class Teller(NamedTuple):
    """Of the bank at `url`."""

    url: str
    timeout_s: float

    async def ask(self, asked: Asked, *, idempotency_key: str) -> bool:
        """Whether it is as was asked for; False when it can't be any more. Its key is that of the step, unless it has
        one that lasts longer. Raises what aiohttp raises when nobody knows."""
        key = asked.key or idempotency_key
        body = {"order": asked.order, "user": asked.user, "amount": asked.amount}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.url}/{asked.what}", json=body, headers={"Idempotency-Key": key}) as response,
        ):
            if response.status == HTTPStatus.CONFLICT:
                return False
            response.raise_for_status()
            return True
