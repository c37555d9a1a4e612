"""A cluster whose parts may be killed, and devices of every protocol."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import pytest

from clients.simulator.protocols import PROTOCOLS, Doors
from deploy.local.cluster import INGEST, INGEST_WRITER, Cluster
from deploy.local.processes import LOOPBACK
from tests.contract.devices.driver import DeviceDriver, Identity, Site
from tests.database import PrincipalHeaders
from tests.fleet.doors import free_doors, settings_of
from tests.fleet.fleet import Member

DEVICES_EACH = 4
"""Devices of each protocol."""
REGISTERED_S = 60.0
LEASE_S = 4
"""How long an endpoint may be silent before its devices are offline: a fifth of what is usual, so that
nobody has to wait for it."""


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """A port for every door of ingest's own."""
    return free_doors("amqp")


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, jwks_url: str, ports: dict[str, int]
) -> Iterator[Cluster]:
    """A cluster of its own: tests kill what it is made of."""
    directory: Path = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(
        directory,
        members=(INGEST, INGEST_WRITER),
        env={
            "GATEWAY_JWKS_URL": jwks_url,
            "INGEST_PRESENCE_LEASE": f"PT{LEASE_S}S",
            **settings_of(ports),
        },
        amqp=True,
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@dataclass(frozen=True, slots=True)
class Plant:
    """A tenant's devices of every protocol, at the doors of a running ingest."""

    cluster: Cluster
    http: httpx2.AsyncClient
    headers: dict[str, str]
    doors: Doors

    def site(self, kind: type[DeviceDriver]) -> Site:
        """Return where a driver of the contract suite finds its door."""
        if kind.name == "http":
            host, _, port = self.doors.url.removeprefix("http://").rpartition(":")
            return Site(host, int(port), self.http, self.headers)
        return Site(*self.doors.address(kind.name), self.http, self.headers)

    async def register(self, name: str) -> Identity:
        """Register a device."""
        async with asyncio.timeout(REGISTERED_S):
            while True:
                answer = await self.http.post(
                    "/api/v1/devices", json={"name": name, "type": "pump"}, headers=self.headers
                )
                if answer.status_code != 503:
                    break
                # What was broken before has just been mended.
                await asyncio.sleep(float(answer.headers["retry-after"]))
        assert answer.status_code == 201, answer.text + self.cluster.log_tail("ingest")
        body = answer.json()
        return Identity(UUID(body["id"]), body["credentials"]["token"])

    async def members(
        self, each: int = DEVICES_EACH, protocols: Sequence[str] = PROTOCOLS
    ) -> list[Member]:
        """Register so many devices of every protocol."""
        named = [(protocol, number) for protocol in protocols for number in range(each)]
        devices = await asyncio.gather(*(self.register(f"{p} {number}") for p, number in named))
        return [
            Member(protocol, device.device_id, device.token)
            for (protocol, _), device in zip(named, devices, strict=True)
        ]


@pytest.fixture
async def plant(
    cluster: Cluster, ports: dict[str, int], principal_headers: PrincipalHeaders
) -> AsyncIterator[Plant]:
    """A plant of a tenant of the test's own, which allows plain CoAP."""
    url = cluster.url("ingest")
    headers = principal_headers(uuid4())
    assert cluster.devices_broker is not None
    there = {**ports, "amqp": cluster.devices_broker.port}
    doors = Doors(url, {name: (LOOPBACK, port) for name, port in there.items()})
    async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
        allowed = await http.put(
            "/api/v1/devices/policy", json={"plain_coap": True}, headers=headers
        )
        assert allowed.status_code == 200, allowed.text
        yield Plant(cluster, http, headers, doors)
