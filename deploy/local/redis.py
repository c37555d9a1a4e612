"""A private Redis (or Valkey): its own directory and loopback port."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local.errors import ServerMissing
from deploy.local.private import PrivateServer
from deploy.local.processes import (
    LOOPBACK,
    USUAL_PLACES,
    Account,
    Command,
    answers,
    find_program,
    own_directory,
)


def find_redis(places: Sequence[Path] = USUAL_PLACES) -> Path:
    """Return the server's program. Raises ServerMissing with one line when there is none."""
    found = find_program("redis-server", places) or find_program("valkey-server", places)
    if found is None:
        message = "Redis is missing: apt-get install redis-server (or set REDIS_URL)"
        raise ServerMissing(message)
    return found


class Redis(PrivateServer):
    """A private Redis server with an append-only file: a restart keeps what was written.

    `kill()` may lose the last second, as Redis promises (`appendfsync everysec`).
    """

    name = "Redis"

    def __init__(
        self, directory: Path, program: Path, *, config: Mapping[str, str | int] | None = None
    ) -> None:
        """`config`: directives of redis.conf, such as {"maxmemory": "64mb"}."""
        super().__init__(directory)
        self._program = program
        self._config = dict(config or {})

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def _start(self, within_s: float) -> None:
        account = Account.for_directory(self._data)
        own_directory(self._data, account)
        port = self._take_ports("port")["port"]
        settings: dict[str, str | int] = {
            "bind": LOOPBACK,
            "port": port,
            "dir": str(self._data),
            "daemonize": "no",
            "appendonly": "yes",
            "save": "",
            **self._config,
        }
        words = [str(self._program)]
        for name, value in settings.items():
            words += [f"--{name}", str(value)]
        self._process.start(Command(words, account, reaches=[self._data], cwd=self._data))
        self._process.wait_until(lambda: answers(port, b"PING\r\n", b"+PONG"), within_s=within_s)
