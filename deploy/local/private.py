"""What all private servers have in common."""

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from deploy.local.errors import ServerFailed
from deploy.local.processes import ServerProcess, keep_ports


class PrivateServer(ABC):
    """A server in a directory of its own, on loopback ports that stay the same between starts.

    In the directory: `log`, `port.json`, `data/`. All methods block: from async code call them
    through `asyncio.to_thread`. The server ends with this process, however that ends (on Linux).
    """

    name: ClassVar[str]

    def __init__(self, directory: Path, *, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        self.directory = directory.absolute()
        self._data = self.directory / "data"
        self._process = ServerProcess(
            self.name, log=self.directory / "log", stop_signal=stop_signal
        )
        self._ports: dict[str, int] = {}

    @property
    @abstractmethod
    def url(self) -> str:
        """How clients reach it. Known once it was started."""

    @property
    def port(self) -> int:
        """The port that `url` names."""
        return self._port_of("port")

    @property
    def pid(self) -> int:
        """Its first process; others may stand below it, so use `kill` to kill."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    def start(self, *, within_s: float = 60.0) -> None:
        """Start it and return when it serves. Running already: nothing.

        Raises ServerFailed with the end of its log when it does not become ready.
        """
        if self.is_running:
            return
        try:
            self._start(within_s)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it cleanly; what it holds is on disk."""
        self._process.stop(within_s=30.0)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL to every one of its processes."""
        self._process.kill()

    def restart(self) -> None:
        """Stop and start it, on the same data and address."""
        self.stop()
        self.start()

    @abstractmethod
    def _start(self, within_s: float) -> None: ...

    def _take_ports(self, *uses: str) -> dict[str, int]:
        self._ports = keep_ports(self.directory / "port.json", uses)
        return self._ports

    def _port_of(self, use: str) -> int:
        if use not in self._ports:
            message = f"{self.name} in {self.directory} was not started"
            raise ServerFailed(message)
        return self._ports[use]
