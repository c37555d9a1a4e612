"""The platform as a bench runs it: private, started by the bench, gone with it."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from deploy.local.cluster import MEMBERS, Cluster, Member
from deploy.local.private import PrivateServer

MODES = ("cluster", "edge")

TAKES_PART = ("ingest", "ingest-writer", "rules", "alerting")
"""What a point passes on its way, as far as it is there; the rest would only share the machine."""


class Stack(Protocol):
    """A running platform."""

    @property
    def mqtt_port(self) -> int: ...
    @property
    def admin_url(self) -> str:
        """The database's, as its superuser."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """The names of the services that run."""
        ...

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pids(self) -> Mapping[str, int]:
        """Return the first process of each part, servers included."""
        ...


class ClusterStack:
    """A process a service, on private PostgreSQL, RabbitMQ and Redis."""

    def __init__(self, directory: Path) -> None:
        self._members = _members()
        # Rules are put into the database past the service, so nobody tells it of them.
        env = {"LOG_LEVEL": "warning", "RULES_REFRESH_EVERY": "PT1S"}
        self._cluster = Cluster(directory, members=self._members, env=env)

    @property
    def mqtt_port(self) -> int:
        return self._cluster.mqtt_port

    @property
    def admin_url(self) -> str:
        return self._cluster.admin_url

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(member.name for member in self._members)

    def start(self) -> None:
        self._cluster.start()

    def stop(self) -> None:
        self._cluster.stop()

    def pids(self) -> Mapping[str, int]:
        cluster = self._cluster
        servers = {
            "postgres": cluster.postgres,
            "rabbitmq": cluster.rabbitmq,
            "redis": cluster.redis,
        }
        return {
            # Of a server that the environment gave there is no process to measure.
            **{n: s.pid for n, s in servers.items() if isinstance(s, PrivateServer)},
            **{member.name: cluster.pid(member.name) for member in self._members},
        }


def make_stack(mode: str, directory: Path) -> Stack:
    """Return the platform in this mode, not yet started. Raises SystemExit if there is none such."""
    if mode == "cluster":
        return ClusterStack(directory)
    raise SystemExit(f"--mode {mode}: this cannot be measured yet")


def _members() -> list[Member]:
    """Return what takes part, as the cluster has it; what it does not run yet, if it is written."""
    known = {member.name: member for member in MEMBERS}
    return [
        known.get(name, Member(name, name))
        for name in TAKES_PART
        if name in known or find_spec(f"services.{name}.app") is not None
    ]
