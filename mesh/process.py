"""A host process: `python -m penstock.mesh.process`, with its options in the first line of its standard input.

What always holds: it tells its URL in one line on standard output once it can carry out requests, and the registry only
after that; SIGTERM has it drained; the end of its standard input, which is the end of its supervisor, as well. What it
fails with it says before it ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from penstock.errors import ConfigurationError, PenstockError
from penstock.functions.app import App
from penstock.loading import load_app
from penstock.logs import configure_logging, logger
from penstock.loops import loop_factory
from penstock.mesh.access import AccessLog
from penstock.mesh.background import Background, IngressEnded
from penstock.mesh.discovery import registry_of
from penstock.mesh.host import HostOptions
from penstock.mesh.node import Node
from penstock.mesh.options import MeshOptions, decode_options
from penstock.mesh.pages import pages_of
from penstock.mesh.policies.live import Policies
from penstock.mesh.policies.settings import PolicySet, TlsMode
from penstock.mesh.policy_watch import PolicyWatch
from penstock.mesh.protection import identity_of, scheme, tls_labels, tls_mode
from penstock.mesh.registry import Registry
from penstock.mesh.server import HostServer
from penstock.mesh.store import Store
from penstock.mesh.stores import open_store
from penstock.mesh.transport import HttpTransport
from penstock.signals import stopped_by_signals

MISCONFIGURED: Final = 2
"""The exit code of a process that would fail the same way every time."""
INPUT_FAILED: Final = 3
"""The exit code of one that was to run until all is done, and can't read an ingress to its end."""


def main() -> None:
    """Carry out requests until told to stop."""
    options = decode_options(sys.stdin.buffer.readline())
    label = f"host-{os.getpid()}"
    configure_logging(as_json=options.log_json, level=options.log_level, process=label)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run_host(options))
    except IngressEnded as error:
        logger.error("%s", error)
        sys.exit(INPUT_FAILED)
    except PenstockError as error:
        logger.error("%s", error)
        sys.exit(MISCONFIGURED if isinstance(error, ConfigurationError) else 1)


async def run_host(options: MeshOptions) -> None:
    """Be a host until a signal, or the end of standard input, stops it."""
    stopped = asyncio.Event()
    app = load_app(options.app, options.path).app
    with stopped_by_signals(stopped.set):
        async with AsyncExitStack() as stack:
            policies, watch = await stack.enter_async_context(policies_of(app, options))
            registry = await stack.enter_async_context(opened_registry(options))
            identity = await stack.enter_async_context(identity_of(options.identity_folder, policies.policy_set))
            tls = tls_mode(policies.policy_set)
            transport = HttpTransport(identity)
            stack.push_async_callback(transport.close)
            store = await stack.enter_async_context(opened_store(options))
            node = Node(
                app,
                store,
                registry,
                policies,
                transport=transport,
                identity=None if tls is TlsMode.DISABLE else identity,
                options=HostOptions(
                    message_bytes_max=options.message_bytes_max,
                    keep_answers_ms=int(options.keep_answers_s * 1000),
                    keep_promises_ms=int(options.keep_promises_s * 1000),
                ),
                only=frozenset(options.only),
                version=options.version,
                labels=options.labels | tls_labels(identity, tls),
                zone=options.zone,
            )
            await node.start()
            server = HostServer(
                node.host,
                body_bytes_max=options.message_bytes_max,
                pages=pages_of(node, watch),
                access_log=AccessLog(node.name) if options.access_log else None,
                identity=identity,
                tls=tls,
            )
            port = await server.start(options.host, options.host_port)
            url = f"{scheme(identity, tls)}://{options.advertise or reachable(options.host)}:{port}"
            await node.announce(url)
            print(url, flush=True)  # noqa: T201  # What the supervisor waits for.
            logger.info("Serves %s at %s.", ", ".join(options.only) or "all functions", url)
            stop_at_end_of_input(stopped)
            ended = _ended(node.background, stopped, until_done=options.until_done)
            await stopped.wait()
            await node.drain(options.drain_s)
            await server.close()
            await node.close()
            for each in ended:
                if each.done() and not each.cancelled():
                    each.result()


def _ended(background: Background, stopped: asyncio.Event, *, until_done: bool) -> list[asyncio.Future[None]]:
    """What ends a host from inside: the failure of its work, or that all is done. They set `stopped`."""
    ended: list[asyncio.Future[None]] = [background.failed]
    if until_done:
        ended.append(asyncio.create_task(background.wait_done()))
    for each in ended:
        each.add_done_callback(lambda _: stopped.set())
    return ended


@asynccontextmanager
async def policies_of(app: App, options: MeshOptions) -> AsyncIterator[tuple[Policies, PolicyWatch | None]]:
    """The policies of a process, which follow their file while the block runs. Raises ConfigurationError."""
    stateful = [name for name, each in app.functions.items() if each.state_codec is not None or each.storage]
    policies = Policies(PolicySet(), stateful=stateful, draw=random.random)
    if not options.policies:
        yield policies, None
        return
    path = options.path / options.policies
    watch = PolicyWatch(path, policies, functions=list(app.functions), replicas=options.replicas)
    watch.start()
    watching = asyncio.create_task(watch.run())
    try:
        yield policies, watch
    finally:
        watching.cancel()


@asynccontextmanager
async def opened_registry(options: MeshOptions) -> AsyncIterator[Registry]:
    """The registry, looked at while the block runs. Raises ConfigurationError."""
    place = options.registry_place
    if ":" not in place:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    registry = registry_of(place, os.environ)
    try:
        await registry.open()
        yield registry
    finally:
        await registry.close()


@asynccontextmanager
async def opened_store(options: MeshOptions) -> AsyncIterator[Store]:
    """The store, which is closed behind the block. Raises ConfigurationError and Unavailable."""
    store = await open_store(options.store_place, connections_max=options.store_connections)
    try:
        yield store
    finally:
        await store.close()


def reachable(host: str) -> str:
    """How others on this machine reach what listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def stop_at_end_of_input(stopped: asyncio.Event) -> None:
    """A supervisor that was killed closes our input: nobody would stop us any more."""
    if sys.stdin is None or sys.stdin.isatty():
        return
    loop = asyncio.get_running_loop()

    def look() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stopped.set()

    descriptor = sys.stdin.fileno()
    try:
        loop.add_reader(descriptor, look)
    except (OSError, PermissionError):
        return  # A file, or nothing that can be waited for: then nobody supervises.


if __name__ == "__main__":
    main()
