"""Ingest is killed while devices publish over AMQP: what was confirmed to them is stored, and once."""

import asyncio
import json
import time
from collections.abc import Iterator
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import httpx2
import pytest

from deploy.local.cluster import INGEST, INGEST_WRITER, Cluster
from tests.database import PrincipalHeaders
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, jwks_url: str) -> Iterator[Cluster]:
    """Ingest as processes of its own, on servers of its own."""
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"),
        members=(INGEST, INGEST_WRITER),
        env={"GATEWAY_JWKS_URL": jwks_url},
        amqp=True,
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def stored(cluster: Cluster, device_id: UUID) -> list[float]:
    connection = await asyncpg.connect(cluster.admin_url)
    try:
        rows = await connection.fetch(
            "SELECT p.value FROM historian.series s JOIN historian.points p"
            " ON p.tenant = s.tenant AND p.series = s.id WHERE s.device_id = $1 ORDER BY p.ts",
            device_id,
        )
    finally:
        await connection.close()
    return [row["value"] for row in rows]


async def test_nothing_confirmed_is_lost_or_stored_twice_when_ingest_is_killed(
    cluster: Cluster, principal_headers: PrincipalHeaders
) -> None:
    broker = cluster.devices_broker
    assert broker is not None
    async with httpx2.AsyncClient(base_url=cluster.url("ingest"), timeout=30) as http:
        answer = await http.post(
            "/api/v1/devices",
            json={"name": "press", "type": "press"},
            headers=principal_headers(uuid4()),
        )
        assert answer.status_code == 201, answer.text
        made = answer.json()
    device_id, token = UUID(made["id"]), made["credentials"]["token"]
    connection = await aio_pika.connect(broker.url_of(device_id, token))
    channel = await connection.channel()
    exchange = await channel.get_exchange("devices", ensure=False)
    first_ts, confirmed, is_stopping = int(time.time() * 1000) - 3_600_000, 0, False

    async def publish() -> None:
        nonlocal confirmed
        while not is_stopping:
            reading = {"ts": first_ts + confirmed, "values": {"n": confirmed}}
            message = aio_pika.Message(
                json.dumps(reading).encode(), user_id=str(device_id), delivery_mode=2
            )
            await exchange.publish(message, f"{device_id}.telemetry")
            confirmed += 1

    publishing = asyncio.create_task(publish())
    for _ in range(2):
        # The device does not notice: it has its connection, and its confirms, from the broker.
        wanted = confirmed + 200
        await until(lambda wanted=wanted: confirmed >= wanted, "200 more", within_s=60)  # type: ignore[misc]  # bound at once
        await asyncio.to_thread(cluster.kill, "ingest")
        wanted = confirmed + 100
        await until(lambda wanted=wanted: confirmed >= wanted, "100 more", within_s=60)  # type: ignore[misc]  # bound at once
        await asyncio.to_thread(cluster.restart, "ingest")
    is_stopping = True
    await publishing
    await connection.close()

    async def all_there() -> bool:
        return len(await stored(cluster, device_id)) >= confirmed

    await until(all_there, "all that was confirmed is stored", within_s=90)
    assert await stored(cluster, device_id) == [float(n) for n in range(confirmed)]
