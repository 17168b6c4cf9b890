"""A real Kafka cluster on the loopback interface, for tests and benchmarks: one node, or three of which one may fail.

    with Cluster(directory) as cluster:
        AIOKafkaProducer(bootstrap_servers=cluster.bootstrap)

Every node is broker and controller at once (KRaft). What it stores lies below the given directory and survives `kill`,
so a node can be started again on it. Everything here is synchronous and bounded in time, and no broker outlives the
thread that started it: the kernel kills it then. (On Linux. Elsewhere, leaving the `with` block has to be enough.)

To try something by hand, `python -m tests.kafka.broker` runs a broker until it is interrupted, and says where.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kafka.jars import NEWEST, jars_of

START_S = 60
"""How long a node may take to start. It takes three seconds when it has a core for itself."""
STOP_S = 30
_TOOL_S = 60
_POLL_S = 0.02

ADMINISTRATOR = "admin"
"""The user who may do everything, when a cluster has users."""
PASSWORD = "penstock"
"""Of the administrator, and of the key store of a cluster with TLS. It protects nothing."""

QUICK = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""How the virtual machine of a test runs: it starts quickly and stays small."""
FAST = ("-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")
"""How that of a benchmark runs, which is how Kafka's own start script runs it."""

# Becomes the command it is given, once the kernel has promised to kill it together with its parent. A function run
# between fork and exec could do the same, but is not safe in a process that has threads.
_TETHERED = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

_SETTINGS = {
    "auto.create.topics.enable": "false",
    # A node that was killed may join again only after it has been missed, which takes 9 s where nothing else is said.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(4 << 20),
    "num.io.threads": "4",
    "num.network.threads": "2",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
}
"""Less of what Kafka provides for large machines, and failures noticed sooner. Nothing is created unasked."""


def tethered(command: Sequence[str | Path]) -> list[str | Path]:
    """A command that is killed together with this process, in whatever way this one ends."""
    return [sys.executable, "-I", "-S", "-c", _TETHERED, str(os.getpid()), *command]


class Node:
    """One broker of a cluster. It is made, configured and formatted by its cluster."""

    def __init__(self, number: int, ports: Mapping[str, int], directory: Path, command: Sequence[str | Path]) -> None:
        self.number = number
        self.ports = ports
        self.directory = directory
        self._command = [*command, "kafka.Kafka", directory / "server.properties"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['PLAIN']}"

    @property
    def pid(self) -> int:
        """The process. Asserts that it was started and not yet stopped or killed."""
        assert self._process is not None, f"node {self.number} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process, on the data it left. `wait_ready` says when it answers."""
        assert not self.running, f"node {self.number} runs already"
        with self.log.open("ab") as log:
            # A session of its own: an interrupt from the keyboard ends the test, and the test ends the broker.
            self._process = subprocess.Popen(
                tethered(self._command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> None:
        """Start it again, and wait until it has joined the cluster."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until this node tells its clients that it is one of the cluster."""
        deadline = time.monotonic() + START_S
        while self.number not in brokers_known_to(self.address):
            assert self.running, f"node {self.number} has ended:\n{self._last_words()}"
            assert time.monotonic() < deadline, f"node {self.number} not ready in {START_S} s:\n{self._last_words()}"
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask it to shut down, and wait until it has. Killed if it does not, as when too few others are left."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: it neither finishes nor says anything. Does nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """The processor time it has used since its last start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Its resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def log(self) -> Path:
        """Its warnings and errors."""
        return self.directory / "server.log"

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


class Cluster:
    """One or three nodes with nothing stored, below an empty `directory`. Runs inside its `with` block.

    - `properties` are Kafka's own, for every node: `{"message.max.bytes": "5000"}`.
    - `users` are names and passwords. They log in with SASL/PLAIN at `bootstrap_sasl` and may do only what `allow`
      allows; `ADMINISTRATOR` is added to them and may do everything. So may whoever connects to `bootstrap`.
    - `tls` adds `bootstrap_tls`, with a certificate that is signed by itself: `certificate`.
    - `java` are options of the virtual machine: `QUICK`, or `FAST` for benchmarks.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        version: str = NEWEST,
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        java: Sequence[str] = QUICK,
    ) -> None:
        assert nodes in {1, 3}, "three is the fewest that outlive one"
        self._directory = directory
        classpath = jars_of(version) / "*"
        self._java: list[str | Path] = ["java", *java, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        self._java += ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", classpath]
        self._users = {**users, ADMINISTRATOR: PASSWORD} if users is not None else {}
        self._tls = tls
        names = ["PLAIN", "CONTROLLER", *(["SASL"] if self._users else []), *(["TLS"] if tls else [])]
        ports = iter(_free_ports(nodes * len(names)))
        self.nodes = [
            Node(number, {name: next(ports) for name in names}, directory / f"node-{number}", self._java)
            for number in range(1, nodes + 1)
        ]
        self._properties = {**_SETTINGS, **_replication(nodes), **(properties or {})}

    @property
    def bootstrap(self) -> str:
        """Where clients connect without encryption or login."""
        return self._bootstrap("PLAIN")

    @property
    def bootstrap_sasl(self) -> str:
        """Where the users log in."""
        return self._bootstrap("SASL")

    @property
    def bootstrap_tls(self) -> str:
        return self._bootstrap("TLS")

    @property
    def certificate(self) -> Path:
        """What clients have to trust to use `bootstrap_tls`, as PEM."""
        return self._directory / "certificate.pem"

    def start(self) -> None:
        """Format every node, start them, and wait until each of them answers."""
        if self._tls:
            self._make_certificate()
        self._format()
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut every node down in order: what takes a second each, and a test seldom needs."""
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        """Kill every node at once."""
        for node in self.nodes:
            node.kill()

    def allow(self, user: str, *operations: str, topic: str | None = None, group: str | None = None) -> None:
        """Let `user` do this to all topics, groups and transactional ids that begin with what is given: `Read`."""
        self._change_rights("--add", user, operations, topic, group)

    def forbid(self, user: str, *operations: str, topic: str | None = None, group: str | None = None) -> None:
        """Take back what `allow` with the same arguments has allowed."""
        self._change_rights("--remove", user, operations, topic, group)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def _bootstrap(self, listener: str) -> str:
        return ",".join(f"127.0.0.1:{node.ports[listener]}" for node in self.nodes)

    def _format(self) -> None:
        """All at once: each is a virtual machine, and most of its time is spent starting."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        under_way = []
        for node in self.nodes:
            node.directory.mkdir(parents=True)
            settings = node.directory / "server.properties"
            settings.write_text("".join(f"{name}={value}\n" for name, value in self._settings(node).items()))
            # An identifier that begins with a dash would be taken for an option.
            tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={settings}"]
            under_way.append(
                subprocess.Popen([*self._java, *tool], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        for process in under_way:
            with process:
                output, _ = process.communicate(timeout=_TOOL_S)
            assert process.returncode == 0, output

    def _settings(self, node: Node) -> dict[str, str]:
        protocols = {"PLAIN": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", "SASL": "SASL_PLAINTEXT", "TLS": "SSL"}
        voters = (f"{each.number}@127.0.0.1:{each.ports['CONTROLLER']}" for each in self.nodes)
        listeners = [f"{name}://127.0.0.1:{port}" for name, port in node.ports.items()]
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": ",".join(voters),
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(each for each in listeners if not each.startswith("CONTROLLER")),
            "listener.security.protocol.map": ",".join(f"{name}:{protocols[name]}" for name in node.ports),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "log.dirs": str(node.directory / "data"),
            **(self._sasl_settings() if self._users else {}),
            **(self._tls_settings() if self._tls else {}),
            **self._properties,
        }

    def _sasl_settings(self) -> dict[str, str]:
        users = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        return {
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Whoever does not log in is anonymous: the nodes among themselves, and the clients of `bootstrap`.
            "super.users": f"User:{ADMINISTRATOR};User:ANONYMOUS",
        }

    def _tls_settings(self) -> dict[str, str]:
        return {
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self._directory / "keys.p12"),
            "ssl.keystore.password": PASSWORD,
        }

    def _make_certificate(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        keys = ["-keystore", str(self._directory / "keys.p12"), "-storepass", PASSWORD, "-alias", "broker"]
        pair = ["-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", "-validity", "30", "-dname", "CN=localhost"]
        _run("keytool", *pair, "-ext", "san=ip:127.0.0.1,dns:localhost", *keys)
        _run("keytool", "-exportcert", "-rfc", "-file", str(self.certificate), *keys)

    def _change_rights(
        self, verb: str, user: str, operations: Sequence[str], topic: str | None, group: str | None
    ) -> None:
        assert user in self._users, f"{user} is not among the users of this cluster"
        what = [f"--operation={operation}" for operation in operations]
        what += [f"--topic={topic}"] if topic is not None else []
        what += [f"--group={group}", f"--transactional-id={group}"] if group is not None else []
        where = [f"--bootstrap-server={self.nodes[0].address}", "--resource-pattern-type=prefixed", "--force"]
        _run(*self._java, "org.apache.kafka.tools.AclCommand", *where, verb, f"--allow-principal=User:{user}", *what)


def brokers_known_to(address: str, timeout_s: float = 1) -> set[int]:
    """The nodes that take requests, as the one at `address` knows them; none if it does not answer."""
    host, _, port = address.rpartition(":")
    # Metadata, version 1, of no topics; the head has a correlation id and no client id.
    request = struct.pack(">hhihi", 3, 1, 1, -1, 0)
    try:
        with socket.create_connection((host, int(port)), timeout_s) as connection, connection.makefile("rb") as answer:
            connection.sendall(struct.pack(">i", len(request)) + request)
            _, _, count = struct.unpack(">iii", answer.read(12))
            return {_read_broker(answer.read) for _ in range(count)}
    except (OSError, struct.error):
        return set()


def _read_broker(read: Callable[[int], bytes]) -> int:
    number, host = struct.unpack(">ih", read(6))
    read(host)
    _, rack = struct.unpack(">ih", read(6))
    read(max(rack, 0))
    return int(number)


def _replication(nodes: int) -> dict[str, str]:
    """Every record is on every node; of three, two have to have it before it is acknowledged."""
    names = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
    enough = 2 if nodes == 3 else 1
    return {
        "default.replication.factor": str(nodes),
        "min.insync.replicas": str(enough),
        **{f"{name}.replication.factor": str(nodes) for name in names},
        **{f"{name}.min.isr": str(enough) for name in names if name != "offsets.topic"},
    }


def _free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to clients, so that a node finds its own free when it starts again."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


@contextmanager
def temporary_cluster(
    *,
    nodes: int = 1,
    version: str = NEWEST,
    properties: Mapping[str, str] | None = None,
    users: Mapping[str, str] | None = None,
    tls: bool = False,
    java: Sequence[str] = QUICK,
) -> Iterator[Cluster]:
    """A running `Cluster` in a directory of its own, which is deleted with everything in it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="penstock-kafka-"))
    try:
        cluster = Cluster(
            directory, nodes=nodes, version=version, properties=properties, users=users, tls=tls, java=java
        )
        with cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """A broker until it is interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with temporary_cluster(java=FAST) as cluster:
        print(f"KAFKA_BOOTSTRAP={cluster.bootstrap}", flush=True)  # noqa: T201  # For whoever started it.
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
