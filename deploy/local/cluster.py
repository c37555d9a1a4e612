"""The platform as a cluster without containers: one process a service, on private servers.

`make cluster` runs it for people; the system and fault tests use `Cluster` to kill its parts and
start them again. Every process has its own port, log and database roles, as it would in a pod.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from deploy.local import servers
from deploy.local.database import PlatformDatabase
from deploy.local.devices_broker import DevicesBroker
from deploy.local.errors import ServerError
from deploy.local.processes import (
    LOOPBACK,
    Command,
    ServerProcess,
    free_from,
    is_port_free,
    keep_ports,
)
from deploy.local.state import State
from libs.common.db.roles import HISTORIAN_WRITER

ROOT = Path(__file__).resolve().parents[2]
COAP_PORT = 5683
READY_S = 120.0
"""The services import at once; on a busy machine that takes its time."""


@dataclass(frozen=True, slots=True)
class Member:
    """One process of the cluster: which service, under what name, with what of its own."""

    name: str
    service: str
    env: Mapping[str, str] = field(default_factory=dict)


# Two processes of one service: what talks to devices, and what writes the historian.
INGEST = Member("ingest", "ingest", {"INGEST_WRITER": "false"})
INGEST_WRITER = Member("ingest-writer", "ingest", {"INGEST_ENDPOINTS": "false"})

MEMBERS = (
    Member("gateway", "gateway"),
    Member("tenancy", "tenancy"),
    INGEST,
    INGEST_WRITER,
    *(Member(name, name) for name in ("rules", "analytics", "ml", "alerting", "retention")),
)
"""The whole cluster."""


class Cluster:
    """Servers and services of one directory. Blocks; from async code call it in a thread.

    `env` is given to every process; `ports` are those that must be these: by member, and "mqtt", "coap".
    `amqp`: with a broker that devices publish to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        members: Sequence[Member] = MEMBERS,
        env: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        amqp: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.postgres = servers.postgres(
            directory / "postgres", config={"max_connections": 200, "shared_buffers": "256MB"}
        )
        self.database = PlatformDatabase(self.postgres, directory / "passwords.json")
        self.rabbitmq = servers.rabbitmq(directory / "rabbitmq")
        self.redis = servers.redis(directory / "redis")
        self._directory = directory
        self._members = {member.name: member for member in members}
        self._env = dict(env or {})
        self._ports = {
            **keep_ports(directory / "ports.json", [*self._members, "mqtt", "coap"]),
            **(ports or {}),
        }
        self.devices_broker = (
            DevicesBroker(directory / "rabbitmq-devices", self._ports["ingest"]) if amqp else None
        )
        self._processes = {
            name: ServerProcess(name, log=directory / "log" / f"{name}.log")
            for name in self._members
        }

    @property
    def mqtt_port(self) -> int:
        """Where devices connect."""
        return self._ports["mqtt"]

    @property
    def coap_port(self) -> int:
        """Where devices speak CoAP, by UDP."""
        return self._ports["coap"]

    @property
    def admin_url(self) -> str:
        """The database's, as its superuser."""
        return self.database.admin_url

    def url(self, name: str) -> str:
        """Return where a process serves HTTP."""
        return f"http://{LOOPBACK}:{self._ports[name]}"

    def pid(self, name: str) -> int:
        """Return a process's id."""
        return self._processes[name].pid

    def log_tail(self, name: str, lines: int = 30) -> str:
        """Return the end of a process's log."""
        return self._processes[name].log_tail(lines)

    def start(self) -> None:
        """Start the servers, bring the database up to date, start all services; ready on return."""
        self.rabbitmq.start()
        if self.devices_broker is not None:
            self.devices_broker.start()
        self.redis.start()
        self.postgres.start()
        asyncio.run(self.database.prepare())
        # Tenancy last: when it first starts it says who the first admin is, and all must listen.
        last = [name for name, member in self._members.items() if member.service == "tenancy"]
        for names in ([name for name in self._members if name not in last], last):
            for name in names:
                self._launch(name)
            for name in names:
                self._await_ready(name)

    def stop(self) -> None:
        """End everything, the servers last."""
        for process in self._processes.values():
            process.stop()
        for server in (self.postgres, self.redis, self.devices_broker, self.rabbitmq):
            if server is not None:
                server.stop()

    def kill(self, name: str) -> None:
        """End a process with SIGKILL."""
        self._processes[name].kill()

    def restart(self, name: str) -> None:
        """Start a process that was killed; ready on return."""
        self._launch(name)
        self._await_ready(name)

    def _launch(self, name: str) -> None:
        member = self._members[name]
        self._processes[name].start(
            Command(
                [sys.executable, "-m", f"services.{member.service}"],
                env=self._environment(member),
                cwd=ROOT,
            )
        )

    def _environment(self, member: Member) -> dict[str, str]:
        prefix = member.service.upper()
        gateway = self._ports.get("gateway", 8000)
        return {
            **os.environ,
            "HOST": LOOPBACK,
            "BUS_URL": self.rabbitmq.url,
            "REDIS_URL": self.redis.url,
            "GATEWAY_JWKS_URL": f"http://{LOOPBACK}:{gateway}/.well-known/jwks.json",
            f"{prefix}_PORT": str(self._ports[member.name]),
            **{
                f"{prefix}_{name.upper()}": url
                for name, url in self.database.of_service(member.service).items()
            },
            "INGEST_HISTORIAN_WRITER_URL": self.database.url(HISTORIAN_WRITER),
            "INGEST_MQTT_HOST": LOOPBACK,
            "INGEST_MQTT_PORT": str(self._ports["mqtt"]),
            "INGEST_COAP_HOST": LOOPBACK,
            "INGEST_COAP_PORT": str(self._ports["coap"]),
            "INGEST_STATE_DIR": str(self._directory / "state" / member.name),
            **(self.devices_broker.environment if self.devices_broker is not None else {}),
            "GATEWAY_UPSTREAMS": json.dumps(
                {
                    name: self.url(name)
                    for name, member in self._members.items()
                    if name == member.service != "gateway"
                }
            ),
            **self._env,
            **member.env,
        }

    def _await_ready(self, name: str) -> None:
        self._processes[name].wait_until(
            lambda: _is_ready(f"{self.url(name)}/health/ready"), within_s=READY_S
        )


def _is_ready(url: str) -> bool:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(url, timeout=2) as answer,  # noqa: S310 - our own loopback address
    ):
        return bool(answer.status == 200)
    return False


def heed_signals() -> None:
    """Let SIGTERM end us as Ctrl-C does: the servers end too, and in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not what SIGINT does now: a shell that starts us in the background has it ignored.
        signal.signal(number, signal.default_int_handler)


def main(
    *,
    port: Annotated[int, typer.Option(help="Where the gateway serves.")] = 8000,
    mqtt_port: Annotated[int, typer.Option(help="Where devices connect, if it is free.")] = 1883,
    amqp: Annotated[
        bool, typer.Option(help="With a RabbitMQ that devices publish to, by AMQP.")
    ] = False,
    state: Annotated[Path, typer.Option(help="What is kept between starts.")] = ROOT
    / ".run"
    / "cluster",
) -> None:
    """Run the platform as one process a service, on private servers. Ctrl-C stops it."""
    if not is_port_free(port):
        print(f"Port {port} is taken. Choose another: make cluster PORT={port + 1}")
        raise SystemExit(1)
    state.mkdir(parents=True, exist_ok=True)
    admin = State.load(state / "state.json")
    cluster = Cluster(
        state,
        env={
            "TENANCY_FIRST_ADMIN_EMAIL": admin.admin_email,
            "TENANCY_FIRST_ADMIN_PASSWORD": admin.admin_password,
        },
        ports={
            "gateway": port,
            "mqtt": free_from(mqtt_port),
            "coap": free_from(COAP_PORT, socket.SOCK_DGRAM),
        },
        amqp=amqp,
    )
    heed_signals()
    try:
        print("Starting PostgreSQL, RabbitMQ, Redis and nine processes …")
        cluster.start()
        print(f"API      {cluster.url('gateway')}/api/v1/docs")
        print(f"Devices  MQTT {LOOPBACK}:{cluster.mqtt_port}")
        print(f"         CoAP {LOOPBACK}:{cluster.coap_port} (UDP)")
        if cluster.devices_broker is not None:
            print(f"         AMQP {LOOPBACK}:{cluster.devices_broker.port}")
        if cluster.mqtt_port != mqtt_port:
            print(f"         ({mqtt_port} is taken by another program)")
        print(f"Log in   {admin.admin_email}  {admin.admin_password}")
        print(f"Logs     {state / 'log'}")
        print("Ctrl-C stops it.")
        signal.pause()
    except KeyboardInterrupt:
        print("\nStopping …")
    except ServerError as error:
        print(error)
        raise SystemExit(1) from error
    finally:
        cluster.stop()


if __name__ == "__main__":
    typer.run(main)
