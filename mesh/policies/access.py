"""Who may ask what of whom: SMI's TrafficTarget, with the two actions of Istio's AuthorizationPolicy.

What always holds: a function that no ALLOW rule names is open to everybody who is not denied; as soon as one names it,
only those it lets in are; a DENY rule comes before every ALLOW rule. Decided at the side of the target, where the
identity of the caller is known and not only claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.mesh.policies.settings import AccessRule, Action


def is_allowed(rules: Sequence[AccessRule], operation: str, caller: str) -> bool:
    """Whether `rules`, which are those that name the target, let `caller` do `operation`."""
    matching = [rule.action for rule in rules if _covers(rule, operation, caller)]
    if Action.DENY in matching:
        return False
    return Action.ALLOW in matching or all(rule.action is Action.DENY for rule in rules)


def _covers(rule: AccessRule, operation: str, caller: str) -> bool:
    return any(source.matches(caller) for source in rule.sources) and (
        not rule.operations or any(name.matches(operation) for name in rule.operations)
    )
