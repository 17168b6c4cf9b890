"""`penstock mesh` under certificates: who may ask, and what a rotation costs, with real processes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from penstock.mesh.identity import load_credentials
from tests.mesh.authorities import authority, identity
from tests.mesh.processes import Mesh, under_load

SHOP = "spiffe://demo.local/ns/default/sa/shop"
POLICIES = f"""
tls: {{mode: STRICT, trust_domain: demo.local}}
access:
  - {{destination: t/tell, sources: ["spiffe://demo.local/ns/default/sa/somebody-else"]}}
  - {{destination: t/count, sources: ["{SHOP}"]}}
"""


class Protected(Mesh):
    """Two hosts and a gateway, all under one identity."""

    def __init__(self, folder: Path) -> None:
        self.authority = authority(folder / "ca")
        self.identity = identity(self.authority, folder / "id")
        (folder / "mesh.yaml").write_text(POLICIES)
        super().__init__(folder, "--replicas", "2", "--identity", "id", "--policies", "mesh.yaml")

    def renew(self) -> None:
        """Issue another certificate into the same folder, and wait until all three processes use it."""
        seen = sum("was replaced; new connections use it" in line for line in self.lines)
        identity(self.authority, self.identity)
        self.wait_for("was replaced; new connections use it", times=seen + 3)

    def host_url(self) -> str:
        found = re.search(r"Serves all functions at (\S+)\.", self.wait_for("Serves all functions"))
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    made = Protected(tmp_path_factory.mktemp("protected"))
    try:
        made.wait_ready(2)
        yield made
    finally:
        made.end()


def refusal(ask: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(HTTPError) as raised:
        ask()
    with raised.value as response:
        return response.status or 0, json.load(response)["code"]


def test_certificates_are_renewed_under_load_without_an_error(mesh: Protected) -> None:
    load = asyncio.run(under_load(mesh.url, [mesh.renew, mesh.renew], 0.4))

    assert load.errors == []
    assert load.done > 0


def test_a_host_takes_no_request_without_a_certificate(mesh: Protected) -> None:
    """Whatever it claims about itself."""
    url = f"{mesh.host_url()}/invoke/t/count/1"
    plain = Request(url.replace("https", "http"), data=b"\x01", headers={"penstock-caller": "t/count/7"})

    assert url.startswith("https://")
    assert refusal(lambda: urlopen(plain, timeout=10)) == (403, "PEN0875")
    with urlopen(Request(url, data=b"\x01"), timeout=10, context=load_credentials(mesh.identity).client) as response:
        assert response.status == 200


@contextmanager
def beside(mesh: Protected, name: str) -> Iterator[str]:
    """The URL of a sidecar under an identity of that name. What is beside it asks, and is not asked."""
    own = identity(mesh.authority, mesh.folder / name, name)
    command = "from penstock.engine.cli import main; main()"
    places = ["--registry", "data/registry.sqlite", "--data", name, "--identity", str(own)]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = str(closed.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-c", command, "sidecar", "--app-id", name, "--app-port", nobody, "--port", "0", *places],
        cwd=mesh.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"listens at (\S+)\.", line) for line in process.stderr)))
        yield f"http://{found[1]}"
    finally:
        process.terminate()
        process.communicate()


def test_an_application_beside_a_sidecar_asks_under_its_own_identity(mesh: Protected) -> None:
    """The handler it asks asks others under that of its host."""

    def asking(path: str, data: bytes) -> Request:
        return Request(f"{url}{path}", data=data, headers={"dapr-app-id": "counters"})

    with beside(mesh, "somebody-else") as url:
        with urlopen(asking("/call/t/tell/1", b'"beside"'), timeout=30) as response:
            assert json.load(response) == 1
        assert refusal(lambda: urlopen(asking("/call/t/count/beside", b"1"), timeout=30)) == (403, "PEN0846")


def test_what_is_for_another_identity_is_denied(mesh: Protected) -> None:
    ask = Request(f"{mesh.url}/call/t/tell/1", data=b'"x"')

    assert refusal(lambda: urlopen(ask, timeout=10)) == (403, "PEN0846")
