"""Buckets of tokens, for all or for each caller."""

from __future__ import annotations

from penstock.mesh.policies.rate_limit import RateLimiter
from penstock.mesh.policies.settings import RateLimit, TokenBucket

BUCKET = TokenBucket(max_tokens=2, tokens_per_fill=1, fill_interval_s=10)


def test_what_is_beyond_the_bucket_is_told_when_to_come_back() -> None:
    limiter = RateLimiter(RateLimit(BUCKET))

    told = [limiter.retry_after_s("shop/order", now_s) for now_s in (0.0, 0.0, 0.0, 6.5, 10.0, 10.0)]

    assert told == [0, 0, 10, 4, 0, 10]


def test_one_caller_uses_up_what_is_there_for_all_unless_each_has_a_bucket() -> None:
    shared, fair = RateLimiter(RateLimit(BUCKET)), RateLimiter(RateLimit(BUCKET, per_identity=True))
    for limiter in (shared, fair):
        for _ in range(3):
            limiter.retry_after_s("shop/greedy", 0.0)

    assert shared.retry_after_s("shop/order", 0.0) > 0
    assert fair.retry_after_s("shop/order", 0.0) == 0
    assert fair.retry_after_s("shop/greedy", 0.0) > 0


def test_callers_that_have_not_been_seen_for_long_are_forgotten() -> None:
    limiter = RateLimiter(RateLimit(BUCKET, per_identity=True))
    for number in range(5000):
        limiter.retry_after_s(str(number), now_s=float(number))

    assert len(limiter._buckets) <= 1024 + 1
