"""One port of a process that others of the mesh ask: plain, or protected as the policy file says.

What always holds: while it is open, what listens there is the server of the runner that it was opened for, which the
caller sets up before and cleans up afterwards.
"""

from __future__ import annotations

import socket
from typing import Final

from aiohttp import web

from penstock.mesh.identity import Identity
from penstock.mesh.listening import Listening
from penstock.mesh.policies.settings import TlsMode

BACKLOG: Final = 128


class Port:
    """See the module. Without an identity it is plain, whatever `mode` says."""

    def __init__(self, runner: web.BaseRunner, identity: Identity | None, mode: TlsMode) -> None:
        self._runner = runner
        self._identity = None if mode is TlsMode.DISABLE else identity
        self._mode = mode
        self._listening: Listening | None = None

    async def open(self, address: str, port: int) -> int:
        """Listen. Returns the port, which 0 leaves open. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=BACKLOG)
        if self._identity is None:
            await web.SockSite(self._runner, listener).start()
        else:
            assert self._runner.server is not None, "it is made by setup"
            self._listening = Listening(listener, self._runner.server, self._identity, self._mode)
            await self._listening.start()
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Accept no more. Connections that are open go on until the runner is cleaned up."""
        if self._listening is not None:
            await self._listening.close()
