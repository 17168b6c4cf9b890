"""`penstock status`: is it healthy, and what is it doing?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from penstock.durations import format_duration
from penstock.engine.cli_common import Where, where_options
from penstock.engine.client import Client
from penstock.output import aligned, output_options, print_json, text_of

WATCH_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Show it anew every second, with rates, until interrupted.")
@where_options
@output_options
def status(where: Where, watch: bool, as_json: bool) -> None:
    """Say how a running application is doing."""
    client = where.need_running("its status")
    if watch:
        _watch(client, as_json=as_json)
        return
    found = _ask(client)
    if as_json:
        print_json(found)
    else:
        click.echo(page(found))


def _ask(client: Client) -> dict[str, Any]:
    return client.status() | {"url": client.url, "not_ready": client.ready()}


def _watch(client: Client, *, as_json: bool) -> None:
    before: Mapping[str, Any] = {}
    while True:
        found = _ask(client)
        if as_json:
            print_json(found)
        else:
            click.clear()
            click.echo(page(found, before))
        before = found
        time.sleep(WATCH_S)


def page(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """The status for people. With the one `before`, messages a second are shown, too."""
    checkpoint = found["checkpoint"]
    uptime = format_duration(int(found["uptime_s"]) * 1000)
    lines = [
        f"{found['app']}  {found['not_ready'] or 'ready'}  up {uptime}  process {found['pid']}  {found['url']}",
        *([f"checkpoint  {_checkpoint(checkpoint)}"] if checkpoint is not None else []),
        *(_hosts(found["hosts"]) if "hosts" in found else []),
        f"letters     {found['dead_letters']:,} dead" + ("   <- penstock dead list" if found["dead_letters"] else ""),
        *_waiting(found),
        *(_shared(found["shared"]) if found["shared"] is not None else []),
        *(_supervised(found) if "workers" in found else []),
        "",
    ]
    headings = ["FUNCTION", "MESSAGES", "FAILED", "QUEUED"]
    rows = [[each["function"], *_texts(each, "messages", "failures", "queued")] for each in found["functions"]]
    if before:
        headings.append("PER S")
        earlier = {each["function"]: each["messages"] for each in before["functions"]}
        for row, each in zip(rows, found["functions"], strict=True):
            row.append(text_of(each["messages"] - earlier.get(each["function"], 0)))
    lines += aligned(headings, rows)
    if found["ingresses"]:
        headings = ["INGRESS", "RECORDS", "BEHIND", "STATE"]
        lines += ["", *aligned(headings, [_ingress(each) for each in found["ingresses"]])]
    if found["egresses"]:
        headings = ["EGRESS", "COMMITTED", "STAGED", "DELIVERY"]
        lines += ["", *aligned(headings, [_egress(each) for each in found["egresses"]])]
    return "\n".join(lines)


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    if checkpoint["last"] is None:
        return "none since the start"
    took = "" if checkpoint["duration_ms"] is None else f"  took {checkpoint['duration_ms']} ms"
    retained = "" if checkpoint["retained"] is None else f"  {checkpoint['retained']:,} retained"
    return f"{checkpoint['last']:,}  {checkpoint['age_s']:.1f} s ago{took}{retained}"


def _waiting(found: Mapping[str, Any]) -> list[str]:
    """Of handlers that await, if there are any."""
    if not (found["waiting"] or found["parked"]):
        return []
    parked = f"  {found['parked']:,} parked   <- penstock calls list --parked" if found["parked"] else ""
    return [f"handlers    {found['waiting']:,} waiting{parked}"]


def _hosts(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of a mesh."""
    told = [f"{each['url']}{'' if each['ready'] else ' (not ready)'}" for each in hosts]
    return [f"hosts       {'  '.join(told) or 'none'}"]


def _shared(shared: Mapping[str, Any]) -> list[str]:
    """Of a worker that shares the tasks with others."""
    leader = "this worker leads" if shared["leads"] else f"led by {shared['leader'] or 'nobody'}"
    tasks = f"tasks {', '.join(map(str, shared['tasks']))}" if shared["tasks"] else "no tasks"
    lines = [
        f"worker      {shared['worker']}  {tasks}  {leader}, {shared['leader_silent_s']:.1f} s ago",
        f"members     {len(shared['members']):,}  "
        + "  ".join(each["url"] or f"process {each['pid']} on {each['host']}" for each in shared["members"]),
        _not_taken(shared["lag"]),
    ]
    if shared["paused"]:
        lines.append("paused      memory is full, so nothing new is taken in")
    return lines


def _supervised(found: Mapping[str, Any]) -> list[str]:
    """Of all workers of a supervisor."""
    workers = [
        f"{each['worker']} {'has tasks ' + ', '.join(map(str, each['tasks'])) if each['tasks'] else 'has no tasks'}"
        for each in found["workers"]
    ]
    lines = ["workers     " + "; ".join(workers), _not_taken(found["lag"])]
    if found["paused"]:
        lines.append(f"paused      {', '.join(found['paused'])}: memory is full, so nothing new is taken in")
    return lines


def _not_taken(lag: Mapping[str, int]) -> str:
    return "not taken   " + "  ".join(f"{records:,} {name}" for name, records in lag.items())


def _ingress(each: Mapping[str, Any]) -> list[str]:
    return [each["ingress"], *_texts(each, "records", "lag"), "ended" if each["done"] else "reading"]


def _egress(each: Mapping[str, Any]) -> list[str]:
    tail = f"  {each['problem']}" if each["problem"] else ""
    return [each["egress"], *_texts(each, "committed", "staged"), each["delivery"] + tail]


def _texts(each: Mapping[str, Any], *names: str) -> list[str]:
    return [text_of(each[name]) for name in names]
