"""Who may ask what of whom: SMI's TrafficTarget, with the two actions of Istio's AuthorizationPolicy.

What always holds: a function that no ALLOW rule names is open to everybody who is not denied; as soon as one names it,
only those it lets in are; a DENY rule comes before every ALLOW rule; an identity, `spiffe://...`, is believed only of a
certificate, whatever a caller says of itself. Decided at the side of the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from penstock.mesh.policies.settings import AccessRule, Action

SPIFFE: Final = "spiffe://"


class Peer(NamedTuple):
    """Who asks."""

    function: str = ""
    """The function it says it is, which any process can say. Empty: none, such as a client from outside."""
    identity: str = ""
    """The SPIFFE id that its certificate has proven. Empty: none was shown."""

    @property
    def names(self) -> tuple[str, ...]:
        """What rules may call it."""
        claimed = "" if self.function.startswith(SPIFFE) else self.function
        return (claimed, self.identity) if self.identity else (claimed,)

    def __str__(self) -> str:
        return " of ".join(name for name in (self.function, self.identity) if name) or "somebody unknown"


def is_allowed(rules: Sequence[AccessRule], operation: str, peer: Peer) -> bool:
    """Whether `rules`, which are those that name the target, let `peer` do `operation`."""
    matching = [rule.action for rule in rules if _covers(rule, operation, peer)]
    if Action.DENY in matching:
        return False
    return Action.ALLOW in matching or all(rule.action is Action.DENY for rule in rules)


def _covers(rule: AccessRule, operation: str, peer: Peer) -> bool:
    return any(source.matches(name) for source in rule.sources for name in peer.names) and (
        not rule.operations or any(name.matches(operation) for name in rule.operations)
    )
