"""Who is online, when the process that devices are connected to is killed."""

import asyncio
from contextlib import suppress
from uuid import UUID

import aiomqtt
import asyncpg
import pytest

from deploy.local.cluster import Cluster
from services.ingest.usecases.presence import DIED
from tests.waiting import until

WITHIN_S = 60.0
"""The lease runs out, and the next process has had one of its own for as long: 20 s each."""


@pytest.mark.timeout(180)
async def test_devices_of_a_killed_endpoint_go_offline_unless_they_return(
    cluster: Cluster, devices: dict[UUID, str]
) -> None:
    lost, back = list(devices)[:2]

    def connect(device_id: UUID) -> aiomqtt.Client:
        return aiomqtt.Client(
            hostname="127.0.0.1",
            port=cluster.mqtt_port,
            identifier=str(device_id),
            username=str(device_id),
            password=devices[device_id],
            timeout=30,
        )

    database = await asyncpg.connect(cluster.admin_url)

    async def status(device_id: UUID) -> tuple[str, str]:
        row = await database.fetchrow(
            "SELECT status, status_reason FROM ingest.devices WHERE id = $1", device_id
        )
        assert row is not None
        return row["status"], row["status_reason"]

    async def are_online() -> bool:
        return {(await status(device_id))[0] for device_id in (lost, back)} == {"online"}

    async def is_lost() -> bool:
        return await status(lost) == ("offline", DIED)

    with suppress(aiomqtt.MqttError):
        async with connect(lost), connect(back):
            await until(are_online, "both are online")
            await asyncio.to_thread(cluster.kill, "ingest")
    assert await status(lost) == ("online", "connected by MQTT"), "nobody could say otherwise yet"
    await asyncio.to_thread(cluster.restart, "ingest")
    async with connect(back):
        await until(is_lost, "the device that did not return is offline", within_s=WITHIN_S)
        assert await status(back) == ("online", "connected by MQTT")
    await database.close()
