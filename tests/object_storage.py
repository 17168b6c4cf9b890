"""Services that speak as S3 does, for tests, on free ports of the loopback interface: moto's, which stores, and one
that has a single answer for everything, or none."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen
from uuid import uuid4

_RUNNING = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
_REQUEST = re.compile(r'"([A-Z]+) (\S+) HTTP')


class Moto:
    """A running server, which tells what it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._requests: list[tuple[str, str]] = []
        self._more = threading.Condition()
        assert process.stderr is not None
        self.endpoint = next(found[1] for line in process.stderr if (found := _RUNNING.search(line)))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def create_bucket(self, name: str) -> None:
        urlopen(Request(f"{self.endpoint}/{name}", method="PUT"), timeout=30).close()

    def requests(self) -> list[tuple[str, str]]:
        """Method and path of each that was answered."""
        mark = f"/moto-api/?mark={uuid4().hex}"
        urlopen(self.endpoint + mark, timeout=30).close()
        with self._more:
            # What it writes of a request comes here on a way of its own, in order.
            assert self._more.wait_for(lambda: ("GET", mark) in self._requests, timeout=30)
            return self._requests[: self._requests.index(("GET", mark))]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := _REQUEST.search(line):
                with self._more:
                    self._requests.append((found[1], found[2]))
                    self._more.notify_all()


@contextmanager
def running_moto() -> Iterator[Moto]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        moto = Moto(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield moto
    finally:
        moto.close()


@contextmanager
def answering(status: int, code: str, message: str) -> Iterator[str]:
    """The endpoint of a service that answers everything with this error."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815  # Names of http.server.

        def log_message(self, format: str, *args: object) -> None:
            """Not into the output of the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silent() -> Iterator[tuple[str, socket.socket]]:
    """The endpoint of a service that takes connections and says nothing, and the socket they come to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", listening


def unused_endpoint() -> str:
    """One where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
