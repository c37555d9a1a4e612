"""The platform as a bench runs it: private, started by the bench, gone with it."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg

from deploy.edge.__main__ import POSTGRES_CONFIG
from deploy.edge.platform import SERVICES
from deploy.local import servers
from deploy.local.cluster import MEMBERS, Cluster
from deploy.local.database import PlatformDatabase
from deploy.local.private import PrivateServer
from deploy.local.processes import LOOPBACK, Command, ServerProcess, free_port
from deploy.local.rabbitmq import RabbitMQ
from libs.common.bus.rabbit_topology import UNROUTED
from libs.common.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
MODES = ("cluster", "edge")
PROCESSES = tuple(member.name for member in MEMBERS)
ADMIN_EMAIL, ADMIN_PASSWORD = "admin@localhost", "a bench needs no secret"
READY_S = 60.0

SETTINGS = {
    "LOG_LEVEL": "warning",
    # Rules are put into the database past the service, so nobody tells it of them.
    "RULES_REFRESH_EVERY": "PT1S",
    # The live connection stays open for as long as the longest run.
    "GATEWAY_ACCESS_LIFETIME": "P7D",
    "TENANCY_FIRST_ADMIN_EMAIL": ADMIN_EMAIL,
    "TENANCY_FIRST_ADMIN_PASSWORD": ADMIN_PASSWORD,
}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the bus holds: messages that somebody has yet to read, and those nobody could handle."""

    waiting: int
    dead: int


class Stack(Protocol):
    """A running platform."""

    @property
    def mqtt_port(self) -> int: ...
    @property
    def admin_url(self) -> str:
        """The database's, as its superuser."""
        ...

    @property
    def gateway_url(self) -> str | None:
        """Where people come in; None if this stack has no gateway."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """The names of the processes, or of the services that are one process."""
        ...

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pids(self) -> Mapping[str, int]:
        """Return the first process of each part, servers included."""
        ...

    async def backlog(self) -> Backlog | None:
        """Return what the bus holds now; None of a broker that cannot be asked."""
        ...


class ClusterStack:
    """A process a service, on private PostgreSQL, RabbitMQ and Redis."""

    def __init__(
        self,
        directory: Path,
        processes: Sequence[str],
        shards: int,
        env: Mapping[str, str] | None = None,
        *,
        amqp: bool = False,
    ) -> None:
        self._members = [member for member in MEMBERS if member.name in processes]
        env = {**SETTINGS, "TELEMETRY_SHARDS": str(shards), **(env or {})}
        self._cluster = Cluster(directory, members=self._members, env=env, amqp=amqp)

    @property
    def mqtt_port(self) -> int:
        return self._cluster.mqtt_port

    @property
    def amqp_port(self) -> int | None:
        """Where devices publish by AMQP; None without a broker for them."""
        broker = self._cluster.devices_broker
        return broker.port if broker is not None else None

    @property
    def admin_url(self) -> str:
        return self._cluster.admin_url

    @property
    def gateway_url(self) -> str | None:
        return self._cluster.url("gateway") if "gateway" in self.parts else None

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(member.name for member in self._members)

    def start(self) -> None:
        self._cluster.start()

    def stop(self) -> None:
        self._cluster.stop()

    def url(self, name: str) -> str:
        """Return where one of the processes serves HTTP."""
        return self._cluster.url(name)

    def pids(self) -> Mapping[str, int]:
        cluster = self._cluster
        private = {
            "postgres": cluster.postgres,
            "rabbitmq": cluster.rabbitmq,
            "redis": cluster.redis,
        }
        if cluster.devices_broker is not None:
            private["rabbitmq-devices"] = cluster.devices_broker.server
        return {
            # Of a server that the environment gave there is no process to measure.
            **{n: s.pid for n, s in private.items() if isinstance(s, PrivateServer)},
            **{member.name: cluster.pid(member.name) for member in self._members},
        }

    async def backlog(self) -> Backlog | None:
        broker = self._cluster.rabbitmq
        if not isinstance(broker, RabbitMQ):
            return None
        said = await asyncio.to_thread(
            broker.control, "list_queues", "name", "messages", "--formatter", "json"
        )
        # What nobody subscribes to is kept apart, and read by nobody.
        depths = {q["name"]: q["messages"] for q in json.loads(said) if q["name"] != UNROUTED}
        dead = sum(depth for name, depth in depths.items() if name.endswith(".dead"))
        return Backlog(sum(depths.values()) - dead, dead)


class EdgeStack:
    """All services in one process, on a PostgreSQL as `make run` has it."""

    parts = frozenset({*SERVICES, "gateway"})

    def __init__(self, directory: Path, shards: int) -> None:
        self._directory = directory
        self._postgres = servers.postgres(
            directory / "postgres", config=POSTGRES_CONFIG, wheel_first=True
        )
        self._database = PlatformDatabase(self._postgres, directory / "passwords.json")
        self._edge = ServerProcess("edge", log=directory / "log" / "edge.log")
        self._shards = shards
        self.mqtt_port, self._port = free_port(), free_port()

    @property
    def admin_url(self) -> str:
        return self._database.admin_url

    @property
    def gateway_url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def start(self) -> None:
        self._postgres.start()
        asyncio.run(self._database.prepare())
        ready = self._directory / "ready"
        words = [str(self._directory), str(self._port), str(self.mqtt_port)]
        self._edge.start(
            Command(
                [sys.executable, "-m", "tests.bench.edge", *words],
                env={
                    **os.environ,
                    **SETTINGS,
                    "TELEMETRY_SHARDS": str(self._shards),
                    "POSTGRES_URL": self.admin_url,
                },
                cwd=ROOT,
            )
        )
        self._edge.wait_until(ready.exists, within_s=READY_S)

    def stop(self) -> None:
        self._edge.stop()
        self._postgres.stop()

    def pids(self) -> Mapping[str, int]:
        of_server = self._postgres
        given = {"postgres": of_server.pid} if isinstance(of_server, PrivateServer) else {}
        return {**given, "edge": self._edge.pid}

    async def backlog(self) -> Backlog | None:
        database = await asyncpg.connect(self.admin_url)
        try:
            # A place in the log is saved some seconds after it was reached, so this may be high.
            [row] = await database.fetch(
                """
                SELECT greatest(0, (SELECT coalesce(max(position), 0) FROM bus.log)
                         - (SELECT coalesce(min(position), 0) FROM bus.subscribers))
                       + (SELECT count(*) FROM bus.retries) AS waiting,
                       (SELECT count(*) FROM bus.dead_letters) AS dead
                """
            )
        finally:
            await database.close()
        return Backlog(row["waiting"], row["dead"])


def make_stack(
    mode: str, directory: Path, *, processes: Sequence[str] = PROCESSES, shards: int | None = None
) -> Stack:
    """Return the platform in this mode, not yet started.

    `processes` are those of the cluster that take part; the edge always has all services.
    """
    count = shards or default_shards()
    return (
        EdgeStack(directory, count) if mode == "edge" else ClusterStack(directory, processes, count)
    )


def default_shards() -> int:
    """Return how many shards the platform has unless it is told otherwise."""
    shards: int = ServiceSettings.model_fields["telemetry_shards"].default
    return shards
