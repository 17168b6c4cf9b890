"""SMI's TrafficSplit, HTTPRouteGroup and TrafficTarget, of *.smi-spec.io.

A backend `payment-v2` of the service `payment` is the subset `v2` of the function, and `payment` itself is all of it. A
service account is a function, or the identity of the process it runs in. What an HTTPRouteGroup says of paths is said
here of operations; a group must stand before the documents that name it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from penstock.mesh.fields import Section
from penstock.mesh.loaders.names import Head, spec_of
from penstock.mesh.policies.settings import AccessRule, Match, Route, TextMatch, Weighted
from penstock.mesh.policy_draft import HttpMatch, PolicyDraft

# ---- HTTPRouteGroup


def load_http_route_group(document: Section, draft: PolicyDraft) -> None:
    head = Head(document)
    spec = spec_of(document)
    if spec is None:
        return
    draft.http_matches[f"{head.namespace}/{head.name}"] = list(_http_matches(spec))
    spec.finish()


def _http_matches(spec: Section) -> Iterator[HttpMatch]:
    for match in spec.sections("matches"):
        found = HttpMatch(match.text("name"), _path(match), dict(_headers(match)))
        methods = match.texts("methods")
        match.finish()
        if not methods or {"*", "POST"} & set(methods):
            yield found
        else:
            match.warn("methods", "every request here is a POST, so this match never holds")


def _path(match: Section) -> TextMatch:
    if match.text("pathRegex") in ("", "/", ".*", "/.*"):
        return TextMatch()
    # A path is /OPERATION; and the expression of SMI has an anchor at the beginning only.
    return match.parsed("pathRegex", TextMatch(), _operation, "a regular expression")


def _operation(path: str) -> TextMatch:
    return TextMatch(regex=re.compile(f"(?:{path.removeprefix('^').removeprefix('/')}).*"))


def _headers(match: Section) -> Iterator[tuple[str, TextMatch]]:
    """A mapping of names to expressions, or a list of such mappings."""
    if match.is_list("headers"):
        sections = list(match.sections("headers"))
    else:
        single = match.section("headers")
        sections = [] if single is None else [single]
    for section in sections:
        for name in section.names():
            yield name.lower(), section.parsed(name, TextMatch(), _expression, "a regular expression")


def _expression(text: str) -> TextMatch:
    return TextMatch(regex=re.compile(text))


# ---- TrafficSplit


def load_traffic_split(document: Section, draft: PolicyDraft) -> None:
    head = Head(document)
    spec = spec_of(document)
    if spec is None:
        return
    service = spec.text("service")
    function = head.function(service)
    split = []
    for backend in spec.sections("backends"):
        split.append(Weighted(_subset(backend.text("service"), service), backend.count("weight", 0)))
        backend.finish()
    if not sum(part.weight for part in split):
        spec.error("backends", "expected backends with weights of which at least one is not 0")
    matches = [
        Match(TextMatch(exact=function), headers)
        for group in spec.sections("matches")
        for headers in _group_headers(group, head, draft)
    ]
    if not spec.has("matches"):
        matches = [Match(TextMatch(exact=function))]
    draft.add_route(Route(tuple(matches), tuple(split)), spec)
    spec.finish()


def _subset(backend: str, service: str) -> str:
    return "" if backend == service else backend.removeprefix(f"{service}-")


def _group_headers(reference: Section, head: Head, draft: PolicyDraft) -> Iterator[Mapping[str, TextMatch]]:
    for match in _group(reference, head, draft):
        if match.operation != TextMatch():
            reference.error("name", f"its match {match.name!r} has a pathRegex, by which nothing can be split here")
        yield match.headers
    reference.finish()


def _group(reference: Section, head: Head, draft: PolicyDraft) -> Sequence[HttpMatch]:
    """The matches of the group that a document names."""
    kind, name = reference.text("kind"), reference.text("name")
    found = draft.http_matches.get(f"{head.namespace}/{name}")
    if kind != "HTTPRouteGroup":
        reference.error("kind", f"{kind!r} is not supported: expected HTTPRouteGroup")
    elif found is None:
        reference.error("name", f"no HTTPRouteGroup {name!r} stands before this document")
    return found or ()


# ---- TrafficTarget


def load_traffic_target(document: Section, draft: PolicyDraft) -> None:
    head = Head(document)
    spec = spec_of(document)
    if spec is None:
        return
    destination = spec.section("destination")
    if destination is None:
        spec.error("destination", "it is missing")
        return
    function = _account(destination, head)
    sources = [_source(_account(source, head)) for source in spec.sections("sources")]
    operations: list[TextMatch] = []
    for rule in spec.sections("rules"):
        operations.extend(_operations(rule, head, draft))
    spec.finish()
    if operations or not spec.has("rules"):
        draft.access.append(AccessRule(TextMatch(exact=function), tuple(sources), tuple(operations)))
    else:
        # None of its rules can hold; without this one the function would be open to everybody.
        draft.access.append(AccessRule(TextMatch(exact=function), ()))


def _account(section: Section, head: Head) -> str:
    kind = section.text("kind", "ServiceAccount")
    if kind != "ServiceAccount":
        section.error("kind", f"{kind!r} is not supported: expected ServiceAccount")
    name = section.text("name")
    namespace = section.text("namespace", head.namespace)
    section.finish()
    return name if "/" in name else f"{namespace}/{name}"


def _source(function: str) -> TextMatch:
    """The function itself, or the identity of a process that runs as it, in any trust domain."""
    namespace, _, name = function.rpartition("/")
    identity = f"spiffe://[^/]+/ns/{re.escape(namespace)}/sa/{re.escape(name)}"
    return TextMatch(regex=re.compile(f"{re.escape(function)}|{identity}"))


def _operations(rule: Section, head: Head, draft: PolicyDraft) -> Iterator[TextMatch]:
    matches = _group(rule, head, draft)
    wanted = rule.texts("matches")
    known = {match.name for match in matches}
    for name in wanted:
        if name not in known:
            rule.error("matches", f"the group has no match {name!r}")
    for match in matches:
        if not wanted or match.name in wanted:
            if match.headers:
                rule.error("matches", f"the match {match.name!r} is about headers, which any caller can write")
            yield match.operation
    rule.finish()


LOADERS: Final[dict[tuple[str, str], Callable[[Section, PolicyDraft], None]]] = {
    ("access.smi-spec.io", "TrafficTarget"): load_traffic_target,
    ("specs.smi-spec.io", "HTTPRouteGroup"): load_http_route_group,
    ("split.smi-spec.io", "TrafficSplit"): load_traffic_split,
}
