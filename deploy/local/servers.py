"""The servers of this run: given by the environment, or private ones from this machine's binaries.

`python -m deploy.local.servers` says what would be used; `--install` first installs what is
missing, where it may, and so it does with programs that are named: `--install mosquitto_pub`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from deploy.local import apt
from deploy.local.errors import ServerError, ServerMissing
from deploy.local.mosquitto import Mosquitto, find_mosquitto
from deploy.local.postgres import (
    MACHINE_PLACES,
    Postgres,
    choose_installation,
)
from deploy.local.processes import USUAL_PLACES, find_program
from deploy.local.rabbitmq import EPMD_PLACES, SCRIPT_PLACES, RabbitMQ, find_rabbitmq
from deploy.local.redis import Redis, find_redis


class Server(Protocol):
    """A server that can be started and ended, on the same data and address each time."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def is_running(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def restart(self) -> None: ...


class DatabaseServer(Server, Protocol):
    """A PostgreSQL server."""

    def url_of(self, database: str) -> str: ...


class GivenServer:
    """A server that someone else runs and the environment names: starting and stopping do nothing."""

    is_running = True

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def url_of(self, database: str) -> str:
        """Return the URL of another database (or virtual host) of the same server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))

    def start(self) -> None:
        """It runs already."""

    def stop(self) -> None:
        """It is not ours to stop."""

    def kill(self) -> None:
        """Raise ServerError: it is not ours to kill."""
        message = f"{self.name} was given by the environment and is not ours to kill"
        raise ServerError(message)

    def restart(self) -> None:
        """Raise ServerError: it is not ours to restart."""
        self.kill()


@dataclass(frozen=True, slots=True)
class Places:
    """Where binaries are looked for besides the PATH."""

    programs: Sequence[Path] = USUAL_PLACES
    postgres: Sequence[Path] = MACHINE_PLACES
    rabbitmq: Sequence[Path] = SCRIPT_PLACES
    epmd: Sequence[Path] = EPMD_PLACES


THIS_MACHINE = Places()


def postgres(
    directory: Path,
    *,
    config: Mapping[str, str | int] | None = None,
    wheel_first: bool = False,
    places: Places = THIS_MACHINE,
) -> DatabaseServer:
    """Return POSTGRES_URL's server, else a private one in `directory`, not yet started."""
    if url := os.environ.get("POSTGRES_URL"):
        return GivenServer("PostgreSQL", url)
    installation = choose_installation(directory, wheel_first=wheel_first, places=places.postgres)
    return Postgres(directory, installation, config=config)


def rabbitmq(
    directory: Path,
    *,
    plugins: Sequence[str] = (),
    config: Mapping[str, str | int] | None = None,
    places: Places = THIS_MACHINE,
) -> Server:
    """Return RABBITMQ_URL's server, else a private one in `directory`, not yet started."""
    if url := os.environ.get("RABBITMQ_URL"):
        return GivenServer("RabbitMQ", url)
    programs = find_rabbitmq(places.rabbitmq, places.epmd)
    return RabbitMQ(directory, programs, plugins=plugins, config=config)


def redis(
    directory: Path,
    *,
    config: Mapping[str, str | int] | None = None,
    places: Places = THIS_MACHINE,
) -> Server:
    """Return REDIS_URL's server, else a private one in `directory`, not yet started."""
    if url := os.environ.get("REDIS_URL"):
        return GivenServer("Redis", url)
    return Redis(directory, find_redis(places.programs), config=config)


def mosquitto(
    directory: Path, *, config: Sequence[str] = (), places: Places = THIS_MACHINE
) -> Server:
    """Return MOSQUITTO_URL's server, else a private one in `directory`, not yet started."""
    if url := os.environ.get("MOSQUITTO_URL"):
        return GivenServer("Mosquitto", url)
    return Mosquitto(directory, find_mosquitto(places.programs), config=config)


_PACKAGES = {
    "PostgreSQL": "postgresql",
    "RabbitMQ": "rabbitmq-server",
    "Redis": "redis-server",
    "Mosquitto": "mosquitto",
}

_PROGRAMS = {
    "amqp-consume": "amqp-tools",
    "coap-client-gnutls": "libcoap3-bin",
    "coap-client-notls": "libcoap3-bin",
    "coap-client-openssl": "libcoap3-bin",
    "ip": "iproute2",
    "mosquitto_pub": "mosquitto-clients",
    "nft": "nftables",
    "slapd": "slapd",
    "wrk": "wrk",
}
"""Programs that only the tests, or a benchmark, talk to a server with, or break a network with."""

_NOWHERE = Path("/nonexistent")


def missing_packages(programs: Sequence[str] = (), places: Places = THIS_MACHINE) -> list[str]:
    """Return the Debian packages of the servers and programs that this machine lacks, in order."""
    makers: dict[str, Callable[[], Server]] = {
        "PostgreSQL": lambda: postgres(_NOWHERE, places=places),
        "RabbitMQ": lambda: rabbitmq(_NOWHERE, places=places),
        "Redis": lambda: redis(_NOWHERE, places=places),
        "Mosquitto": lambda: mosquitto(_NOWHERE, places=places),
    }
    missing = []
    for name, make in makers.items():
        try:
            make()
        except ServerMissing:
            missing.append(_PACKAGES[name])
    missing += [_PROGRAMS[p] for p in programs if find_program(p, places.programs) is None]
    return list(dict.fromkeys(missing))  # several programs may be of one package


def install_missing(programs: Sequence[str] = (), places: Places = THIS_MACHINE) -> list[str]:
    """Install the packages of the missing servers and programs; return them.

    Raises ServerMissing with one line that says what to install, where apt cannot be used.
    """
    packages = missing_packages(programs, places)
    if packages and not apt.may_install():
        message = (
            f"missing: apt-get install {' '.join(packages)} (or set POSTGRES_URL, RABBITMQ_URL, "
            "REDIS_URL, MOSQUITTO_URL)"
        )
        raise ServerMissing(message)
    if packages:
        apt.install(packages)
    return packages


def _report() -> None:
    for make in (postgres, rabbitmq, redis, mosquitto):
        try:
            server = make(_NOWHERE)
        except ServerMissing as missing:
            print(missing)
            continue
        given = isinstance(server, GivenServer)
        print(
            f"{server.name}: {'given by the environment' if given else 'private, on this machine'}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.servers", description=__doc__)
    parser.add_argument(
        "--install",
        nargs="*",
        choices=sorted(_PROGRAMS),
        metavar="PROGRAM",
        help="install what is missing, by apt; the programs too",
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.install is not None:
            installed = install_missing(chosen.install)
            print(f"installed {' '.join(installed)}" if installed else "all servers are here")
        else:
            _report()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
