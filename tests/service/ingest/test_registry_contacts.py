"""What is known of a device's being there: last seen, by what, online, silent."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.common.clock import SystemClock
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.settings import Settings
from services.ingest.usecases.reception import Reception
from tests.service.ingest.conftest import World
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"contacts_every": timedelta(milliseconds=50)})


async def shown(world: World, device_id: UUID) -> dict[str, Any]:
    answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
    body: dict[str, Any] = answer.json()
    return body


async def until_status(world: World, device_id: UUID, status: str) -> dict[str, Any]:
    async def is_so() -> bool:
        return bool((await shown(world, device_id))["status"] == status)

    await until(is_so, f"{device_id} is {status}")
    return await shown(world, device_id)


async def statuses(world: World, device_id: UUID) -> list[str]:
    rows = await world.query(
        "SELECT convert_from(body, 'UTF8') AS body FROM bus.log"
        " WHERE type = 'device.status_changed.v1' AND tenant_id = $1 ORDER BY position",
        world.tenant_id,
    )
    return [
        status
        for row in rows
        for status in ("online", "offline")
        if str(device_id) in row["body"] and f'"{status}"' in row["body"]
    ]


async def move_time(world: World, by: timedelta) -> None:
    clock: SystemClock = world.app.state.clock
    clock.offset = by
    await world.query("UPDATE sec.clock SET shift = $1", by)


async def test_a_device_without_a_connection_is_online_when_heard_and_offline_when_silent(
    world: World,
) -> None:
    profile = await world.http.post(
        "/api/v1/device-profiles",
        json={"name": "meter", "offline_after": 120},
        headers=world.headers,
    )
    device_id, token = await world.device()
    await world.http.patch(
        f"/api/v1/devices/{device_id}",
        json={"profile_id": profile.json()["id"]},
        headers=world.headers,
    )
    assert (await shown(world, device_id))["last_seen_at"] is None
    source = await world.app.state.sources.login(token)
    reception: Reception = world.app.state.reception
    reception.met(source, Protocol.COAP, PayloadFormat.CBOR)
    seen = await until_status(world, device_id, "online")
    assert (seen["protocol"], seen["payload_format"]) == ("coap", "cbor")
    assert seen["status_reason"] == "heard by coap"
    assert seen["last_seen_at"] is not None
    try:
        await move_time(world, timedelta(seconds=60))
        reception.met(source, Protocol.COAP)
        await until(lambda: not reception.heard, "it was written down")

        async def is_written() -> bool:
            return bool((await shown(world, device_id))["last_seen_at"] != seen["last_seen_at"])

        await until(is_written, "the new time is written")
        # 130 s after the first word, 70 s after the last: it is there still.
        await move_time(world, timedelta(seconds=130))
        await world.app.state.silence()
        assert (await shown(world, device_id))["status"] == "online"
        await move_time(world, timedelta(seconds=200))
        silent = await until_status(world, device_id, "offline")
        assert silent["status_reason"].startswith("silent for ")
        reception.met(source, Protocol.COAP)
        await until_status(world, device_id, "online")
    finally:
        await move_time(world, timedelta())
    assert await statuses(world, device_id) == ["online", "offline", "online"]


async def test_a_device_that_holds_a_connection_is_online_however_silent(world: World) -> None:
    device_id, token = await world.device()
    source = await world.app.state.sources.login(token)
    reception: Reception = world.app.state.reception
    reception.presence.came(source, world, "connected")
    online = await until_status(world, device_id, "online")
    assert online["status_reason"] == "connected"
    reception.met(source, Protocol.MQTT, PayloadFormat.JSON)

    async def is_seen() -> bool:
        return bool((await shown(world, device_id))["protocol"] == "mqtt")

    await until(is_seen, "it was written down")
    (row,) = await world.query(
        "SELECT offline_due_at FROM ingest.contacts WHERE device_id = $1", device_id
    )
    assert row["offline_due_at"] is None
    reception.presence.went(source, world, "disconnected")
    await until_status(world, device_id, "offline")
    # Its last word was before it went.
    reception.heard.add(source)
    await until(lambda: not reception.heard, "it was written down")
    assert (await shown(world, device_id))["status"] == "offline"


async def test_what_http_brings_is_seen(world: World) -> None:
    device_id, token = await world.device()
    answer = await world.http.patch(
        "/api/v1/devices/me/attributes",
        json={"firmware": "1.2.3"},
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 204, answer.text
    seen = await until_status(world, device_id, "online")
    assert seen["protocol"] == "http"


async def test_devices_of_many_tenants_are_written_in_one_go_and_removed_ones_are_left_out(
    world: World,
) -> None:
    gone, token = await world.device()
    source = await world.app.state.sources.login(token)
    answer = await world.http.delete(f"/api/v1/devices/{gone}", headers=world.headers)
    assert answer.status_code == 204
    stays, other = await world.device()
    reception: Reception = world.app.state.reception
    reception.met(source, Protocol.COAP)
    reception.met(await world.app.state.sources.login(other), Protocol.AMQP)
    await until_status(world, stays, "online")
    (row,) = await world.query("SELECT protocol FROM ingest.contacts WHERE device_id = $1", gone)
    assert row["protocol"] is None
