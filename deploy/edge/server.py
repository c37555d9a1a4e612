"""An HTTP server inside a process that is someone else's: it leaves signals alone."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from libs.common.http.bounds import Bounds
from libs.common.http.server import Server, ServerConfig


class EmbeddedServer:
    """Serves an app on a socket that listens already. The app's lifespan is its owner's business."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        bounds: Bounds | None = None,
        *,
        drain_s: int = 1,
    ) -> None:
        self._listening = listening
        self._server = _QuietServer(
            ServerConfig(app, bounds or Bounds(), lifespan="off", drain_s=drain_s)
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listening]))

    async def stop(self) -> None:
        """Finish the requests under way, within the time given, and close."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None


class _QuietServer(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
