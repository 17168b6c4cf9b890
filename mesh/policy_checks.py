"""What is allowed in a policy file and yet won't do what it seems to say, with the arithmetic.

Each check gives texts for people: nothing is refused here, because with more endpoints, or other requests, it may well
be what is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from math import ceil, floor
from typing import Final

from penstock.durations import format_duration
from penstock.mesh.policies.access import SPIFFE
from penstock.mesh.policies.outlier import fits
from penstock.mesh.policies.settings import Match, OutlierDetection, PolicySet, Retries, Route, TextMatch

_UNSURE: Final = {"5xx", "gateway-error", "reset", "timeout"}
"""Conditions under which the request may have been processed."""
_OTHERS: Final = ("app/", "actor/", SPIFFE)
"""What names begin with that are those of others than functions."""
_NEAR: Final = 0.75
"""Names of one namespace are alike by that alone: what is meant is a letter or two away."""
STATUSES_SHOWN: Final = 3
SMALL_MESH: Final = 4
"""While nobody says how many endpoints there are, a cap under which fewer than so many eject none is worth a word."""


def ejection_warnings(detection: OutlierDetection, panic_threshold: float, replicas: int) -> Iterator[str]:
    """About a cap that ejects nothing, and a panic that takes back what was ejected. `replicas` is 0 if not known."""
    if not fits(detection, 0, replicas or SMALL_MESH - 1):
        yield _too_small_a_cap(detection.max_ejection_percent, replicas)
    if replicas:
        yield from _panic(detection, panic_threshold, replicas)


def _too_small_a_cap(percent: int, replicas: int) -> str:
    if not percent:
        return "0 % of any number is none: nothing is ever ejected"
    if replicas:
        share, least = 100 / replicas, ceil(100 / replicas)
        return (
            f"one of {replicas} endpoints is {share:.1f} % of them, more than {percent} %: none is ever ejected. "
            f"Set {least} or more, or always_eject_one_host: true"
        )
    needed = ceil(100 / percent)
    return (
        f"one of fewer than {needed} endpoints is more than {percent} % of them: with so few, none is ever ejected. "
        "Set 50 or more for two endpoints, 34 for three, or always_eject_one_host: true"
    )


def _panic(detection: OutlierDetection, panic_threshold: float, replicas: int) -> Iterator[str]:
    most = 0
    while most < replicas and fits(detection, most, replicas):
        most += 1
    for ejected in range(1, most + 1):
        healthy = (replicas - ejected) * 100 / replicas
        if healthy < panic_threshold:
            yield (
                f"with {ejected} of {replicas} endpoints ejected {floor(healthy)} % are healthy, less than the panic "
                f"threshold of {panic_threshold:g} %: from then on the ejected ones are used as well. Set "
                "panic_threshold: 0 to have requests refused instead"
            )
            return


def retry_warnings(timeout_s: float, retries: Retries) -> Iterator[str]:
    """About retries that never come, and those that may do a thing twice."""
    if retries.attempts and timeout_s and retries.per_try_timeout_s >= timeout_s:
        yield (
            f"per_try_timeout {_shown(retries.per_try_timeout_s)} is no shorter than the timeout of the whole call, "
            f"{_shown(timeout_s)}: no time is left to try again"
        )
    statuses = sorted(name for name in retries.retry_on if name.isdecimal() and name.startswith("5"))
    shown = statuses if len(statuses) <= STATUSES_SHOWN else [f"statuses from {statuses[0]} to {statuses[-1]}"]
    unsure = [*sorted(_UNSURE & retries.retry_on), *shown]
    if retries.attempts and unsure:
        yield (
            f"it has {', '.join(unsure)}, under which a request may have been processed: without "
            "an idempotency key it may be done twice. retry_on_keyed is for requests that have one"
        )


def unknown_functions(policies: PolicySet, functions: Collection[str]) -> Iterator[str]:
    """About names that an application does not have, for which everything that is said does nothing. What is said of
    applications behind sidecars, in the same file, is for those."""
    about = {
        "functions": [TextMatch(exact=name) for name in policies.functions],
        "routes": [match.function for route in policies.routes for match in route.matches],
        "access": [rule.destination for rule in policies.access],
    }
    for where, names in about.items():
        yield from (f"{where}: {told}, so nothing is done for it" for told in _unknown(names, functions))
    callers = {
        "routes, caller": [match.caller for route in policies.routes for match in route.matches],
        "access, sources": [source for rule in policies.access for source in rule.sources],
    }
    for where, names in callers.items():
        yield from (f"{where}: {told}, so nobody asks under that name" for told in _unknown(names, functions))


def _unknown(names: Iterable[TextMatch], functions: Collection[str]) -> Iterator[str]:
    """Those that are no pattern, which may well be meant for functions to come."""
    for name in dict.fromkeys(each.exact for each in names):
        if not name or name in functions or name.startswith(_OTHERS):
            continue
        near = get_close_matches(name, functions, 1, _NEAR)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(functions)) or 'none'}"
        yield f"{name} is no function of this application ({hint})"


def unreachable(routes: Sequence[Route], route: Route) -> bool:
    """Whether an earlier route takes everything that `route` could."""
    return all(any(_takes_all(earlier, match) for earlier in routes) for match in route.matches)


def _takes_all(route: Route, match: Match) -> bool:
    return any(
        not earlier.headers
        and not earlier.without_headers
        and earlier.caller in (TextMatch(), match.caller)
        and earlier.function in (TextMatch(), match.function)
        for earlier in route.matches
    )


def _shown(seconds: float) -> str:
    return format_duration(round(seconds * 1000))
