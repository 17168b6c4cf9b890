"""Starts host processes and the gateway before them, and replaces hosts that end.

What always holds: so many hosts run as were asked for, or are on their way; one that ends unasked is started again, at
once if it had run for some time, else after a wait that grows up to a few seconds; SIGTERM drains the hosts and ends
the gateway last; SIGHUP replaces the hosts one after the other, each stopped only when its successor serves, so that a
lone one can be replaced as well, and the gateway goes on. A successor that can't start leaves everything as it is.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Final

from penstock.errors import ConfigurationError, Fenced, Refused, Unavailable
from penstock.files import DirectoryLock
from penstock.loading import load_app
from penstock.logs import counted, logger
from penstock.mesh.access import AccessLog
from penstock.mesh.actuator import Actuator, Health, Status
from penstock.mesh.caller import Caller
from penstock.mesh.doing import Looks
from penstock.mesh.edges import Edges
from penstock.mesh.gateway import Gateway
from penstock.mesh.gateway_door import Door
from penstock.mesh.host import functions_of
from penstock.mesh.metrics import MeshMetrics
from penstock.mesh.options import MeshOptions, encode_options
from penstock.mesh.pages import actuator_pages, info_of, metrics_page, policy_health
from penstock.mesh.process import (
    INPUT_FAILED,
    MISCONFIGURED,
    opened_registry,
    opened_store,
    policies_of,
    reachable,
)
from penstock.mesh.protection import identity_of, tls_mode
from penstock.mesh.registry import Registry
from penstock.mesh.transport import HttpTransport
from penstock.signals import stopped_by_signals

LASTED_S: Final = 10.0
"""A host that has run for so long has not failed at once: it is started again without waiting."""
WAIT_S: Final = 0.5
WAIT_MAX_S: Final = 5.0
"""Doubled from the first to the longest. The only host of a mesh is an outage while it waits, and one that could not
start because of its database should be there soon after that is; a start costs half a second of a processor, so that
one that never succeeds takes a tenth of one."""


class Replica:
    """One place for a host process, and whichever stands there. `ended` is told the URL of one that has ended."""

    def __init__(self, number: int, options: MeshOptions, ended: Callable[[str], Awaitable[None]]) -> None:
        self.number = number
        self.url = ""
        """Empty while there is no host that carries out requests."""
        self.serving = asyncio.Event()
        self.restarts = 0
        self._options = options
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Have a host run here until cancelled, or until all is done if that is wanted. Raises ConfigurationError when
        none can."""
        failures, clock = 0, asyncio.get_running_loop().time
        while True:
            began_s = clock()
            code = await self._run()
            if code == 0 and self._options.until_done:
                return
            failures = 0 if clock() - began_s >= LASTED_S else failures + 1
            wait_s = restart_wait_s(failures)
            when = f" in {wait_s:g} s" if wait_s else ""
            logger.warning("Host %d has ended (%s) and is started again%s.", self.number, _ending(code), when)
            self.restarts += 1
            await asyncio.sleep(wait_s)

    async def stop(self) -> None:
        """Drain the host and wait for its end."""
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        self.url = ""
        self.serving.clear()

    async def _run(self) -> int:
        """Start a host, and wait for its end. Returns its exit code."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "penstock.mesh.process",
            cwd=self._options.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the supervisor, which drains its hosts; they end with it by their input.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode_options(self._options))
        url = (await process.stdout.readline()).decode().strip()
        if url:
            self.url = url
            self.serving.set()
        code = await process.wait()
        self.url = ""
        self.serving.clear()
        if url:
            await self._ended(url)
        if code == INPUT_FAILED:
            raise Refused(
                "PEN0828",
                f"Host {self.number} has ended, because an ingress can't be read to its end, for the reason that it "
                "has logged. Correct that and start again: what was read is kept.",
            )
        if code == MISCONFIGURED and not url:
            raise ConfigurationError(
                "PEN0807", f"Host {self.number} can't start, for the reason that it has logged. Correct that first."
            )
        return code


class Supervisor:
    """See the module."""

    def __init__(self, options: MeshOptions, *, gateway: bool = True) -> None:
        self._options = options
        self._has_gateway = gateway
        self.replicas = [Replica(number, options, self._host_ended) for number in range(1, options.replicas + 1)]
        self._keeping: dict[Replica, asyncio.Task[None]] = {}
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._registry: Registry
        self._door: Door | None = None
        self.url = ""
        """Of the gateway."""

    def stop(self) -> None:
        """End in an orderly way."""
        self._stopped.set()

    async def run(self) -> None:
        """Until told to stop. Raises ConfigurationError for what can't be started."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.enter_context(stopped_by_signals(self.stop))
            self._registry = await stack.enter_async_context(opened_registry(self._options))
            if self._has_gateway:
                await self._open_gateway(stack)
            for replica in self.replicas:
                self._keep(replica)
            stack.push_async_callback(self._leave)
            loop.add_signal_handler(signal.SIGHUP, self.replace)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    def replace(self) -> None:
        """Replace all hosts, one after the other."""
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        for index, replica in enumerate(self.replicas):
            if self._options.host_port:
                await self._end(replica)  # Two can't listen there.
            successor = Replica(replica.number, self._options, self._host_ended)
            if not await self._begin(successor):
                return
            self.replicas[index] = successor
            if replica in self._keeping:
                await self._end(replica)
        logger.info("%s replaced.", counted(len(self.replicas), "host"))

    async def _begin(self, successor: Replica) -> bool:
        """Start a host that takes the place of another. False when it does not come to serve."""
        keeping = self._keeping[successor] = asyncio.create_task(successor.keep())
        serving = asyncio.create_task(successor.serving.wait())
        try:
            await asyncio.wait([keeping, serving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
        serves = successor.serving.is_set()
        error = keeping.exception() if keeping.done() else None
        if error is not None and not serves and not self._options.host_port:
            del self._keeping[successor]
            logger.error("%s The hosts that serve go on.", error)
        else:
            keeping.add_done_callback(self._kept)
        return serves

    async def _host_ended(self, url: str) -> None:
        """Let nobody ask a host any more that is known to be dead, instead of waiting for the end of its lease."""
        for endpoint in self._registry.view().endpoints:
            if endpoint.url == url:
                with suppress(Unavailable):
                    await self._registry.forget(endpoint.name)

    def _announce(self, stack: AsyncExitStack) -> None:
        """Let the command line find the gateway by the directory, unless it finds another one there already."""
        home = self._options.home
        try:
            lock = DirectoryLock(home, command="penstock mesh", started=datetime.now(UTC).astimezone())
        except Fenced as error:
            logger.info("Ask this gateway by its URL: %s", error.message)
            return
        stack.callback(lock.release)
        lock.announce(self.url)

    def _keep(self, replica: Replica) -> None:
        task = self._keeping[replica] = asyncio.create_task(replica.keep())
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._stopped.set()
        elif all(each.done() for each in self._keeping.values()):
            self._stopped.set()

    async def _end(self, replica: Replica) -> None:
        task = self._keeping[replica]
        task.cancel()
        await asyncio.wait([task])
        await replica.stop()
        del self._keeping[replica]  # Not before: if all are to end meanwhile, this one's end is waited for as well.

    async def _leave(self) -> None:
        """Both take their time, while requests still come."""
        await asyncio.gather(self._stop_replicas(), *([] if self._door is None else [self._door.leave()]))

    async def _stop_replicas(self) -> None:
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        await asyncio.gather(*map(self._end, list(self._keeping)))

    async def _open_gateway(self, stack: AsyncExitStack) -> None:
        options, registry = self._options, self._registry
        app = load_app(options.app, options.path).app
        functions = functions_of(app, options.message_bytes_max)
        policies, watch = await stack.enter_async_context(policies_of(app, options))
        store = await stack.enter_async_context(opened_store(options))
        identity = await stack.enter_async_context(identity_of(options.identity_folder, policies.policy_set))
        transport = HttpTransport(identity)
        stack.push_async_callback(transport.close)
        edges = Edges()
        actuator = Actuator(
            liveness={"gateway": lambda: Health(Status.UP)},
            readiness={"hosts": lambda: hosts_health(registry, functions), "policies": lambda: policy_health(watch)},
            info=lambda: info_of(app.name) | {"replicas": [replica.url for replica in self.replicas]},
        )
        gateway = Gateway(
            app,
            functions,
            Caller(registry, policies, transport, edges),
            store,
            Looks(registry, functions, transport),
            host=options.host,
            token=options.token,
            message_bytes_max=options.message_bytes_max,
            ready=lambda: "" if hosts_health(registry, functions).status is Status.UP else "no host is ready",
            pages=actuator_pages(actuator) | metrics_page(MeshMetrics(app.name, edges, policies)),
            access_log=AccessLog("gateway") if options.access_log else None,
            speaks_for_others=options.replicas > 0,  # The hosts have its identity.
        )
        self._door = Door(
            app,
            gateway.messages,
            registry,
            policies,
            host=options.host,
            body_bytes_max=gateway.body_bytes_max,
            identity=identity,
            tls=tls_mode(policies.policy_set),
        )
        self.url = await gateway.start(options.port)
        stack.push_async_callback(gateway.close)
        stack.push_async_callback(self._door.close)
        await self._door.start(options.advertise or reachable(options.host))
        self._announce(stack)
        logger.info("%s: gateway at %s, %s.", app.name, self.url, counted(options.replicas, "host"))


def hosts_health(registry: Registry, functions: Collection[str]) -> Health:
    """Whether anybody can carry out requests."""
    ready = [endpoint.name for endpoint in registry.view().hosts(functions) if endpoint.ready]
    return Health(Status.UP if ready else Status.INIT, {"ready": len(ready)})


def restart_wait_s(failures: int) -> float:
    """Before a host is started again that has failed at once so often in a row."""
    return min(WAIT_S * 2 ** (failures - 1), WAIT_MAX_S) if failures else 0.0


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
