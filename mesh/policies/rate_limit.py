"""How many requests a host takes in a time: Envoy's token bucket, one for all or one for each caller.

What always holds: in any time t no more than max_tokens + tokens_per_fill * (t / fill_interval + 1) are taken; tokens
come in whole fills, so the next one comes at a time that can be told. A caller that has not been seen for so long that
its bucket is full again is forgotten.
"""

from __future__ import annotations

from math import ceil

from penstock.mesh.policies.settings import RateLimit, TokenBucket

_ROUNDING_S = 1e-6
"""What adding up times is off by must not become a second of waiting."""
_CALLERS_SWEPT = 1024
"""With so many buckets the full ones are thrown away. It bounds the memory by the callers of a short time."""


class Bucket:
    """One bucket, full at first."""

    __slots__ = ("_filled_s", "_settings", "_tokens")

    def __init__(self, settings: TokenBucket, now_s: float) -> None:
        self._settings = settings
        self._tokens = settings.max_tokens
        self._filled_s = now_s

    def take(self, now_s: float) -> float:
        """Take a token. Returns 0, or after how many seconds there will be one."""
        self._fill(now_s)
        if self._tokens:
            self._tokens -= 1
            return 0.0
        return self._filled_s + self._settings.fill_interval_s - now_s

    def is_full(self, now_s: float) -> bool:
        self._fill(now_s)
        return self._tokens == self._settings.max_tokens

    def _fill(self, now_s: float) -> None:
        fills = int((now_s - self._filled_s) / self._settings.fill_interval_s)
        if fills > 0:
            self._tokens = min(self._settings.max_tokens, self._tokens + fills * self._settings.tokens_per_fill)
            self._filled_s += fills * self._settings.fill_interval_s


class RateLimiter:
    """The buckets of one function."""

    def __init__(self, settings: RateLimit) -> None:
        self._settings = settings
        self._buckets: dict[str, Bucket] = {}
        self._swept_at = _CALLERS_SWEPT

    def retry_after_s(self, caller: str, now_s: float) -> int:
        """0 if one more request of `caller` is taken; else in how many whole seconds to ask again."""
        name = caller if self._settings.per_identity else ""
        bucket = self._buckets.get(name)
        if bucket is None:
            self._sweep(now_s)
            bucket = self._buckets[name] = Bucket(self._settings.token_bucket, now_s)
        return ceil(bucket.take(now_s) - _ROUNDING_S)

    def _sweep(self, now_s: float) -> None:
        if len(self._buckets) >= self._swept_at:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if not bucket.is_full(now_s)}
            self._swept_at = max(_CALLERS_SWEPT, 2 * len(self._buckets))
