"""A device that sends more than it may is told when to come again, and so are its people."""

import asyncio
import gc
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import UUID

import pytest

from tests.service.ingest.conftest import World
from tests.service.ingest.test_hostile_devices import raw, run_with
from tests.unit.ingest.mqtt import device_packets as packets
from tests.waiting import until

__all__ = ["run_with"]

RunWith = Callable[..., AbstractAsyncContextManager[World]]

TELEMETRY = "/api/v1/telemetry"
OVER = "over its quota: more than 2 messages a second"


def batch(points: int) -> list[dict[str, object]]:
    return [{"values": {"temp": n}} for n in range(points)]


def as_device(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def status_reason(world: World, device_id: UUID) -> str:
    answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
    return str(answer.json()["status_reason"])


async def test_a_batch_counts_its_points_and_what_comes_too_soon_is_told_when_to_come_again(
    run_with: RunWith,
) -> None:
    async with run_with(device_messages_per_second=2, device_burst=4) as world:
        device_id, token = await world.device()
        mine = as_device(token)
        taken = await world.http.post(TELEMETRY, json=batch(30), headers=mine)
        assert (taken.status_code, taken.headers["ratelimit-policy"]) == (202, '"device";q=4;w=2')
        assert taken.headers["ratelimit"] == '"device";r=1;t=2'
        # More than is left is taken whole, and owed.
        assert (await world.http.post(TELEMETRY, json=batch(50), headers=mine)).status_code == 202
        refused = await world.http.post(TELEMETRY, json=batch(1), headers=mine)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:iiot:problem:too-many-requests"
        assert refused.json()["detail"].startswith(OVER)
        assert refused.headers["retry-after"] in {"1", "2"}
        assert re.fullmatch(r'"device";r=0;t=[12]', refused.headers["ratelimit"])
        lines = await world.http.post(f"{TELEMETRY}/influx", content=b"m v=1", headers=mine)
        assert (lines.status_code, lines.headers["retry-after"]) == (429, "2")
        assert len(await world.until_stored(device_id, 80)) == 80

        async def is_told() -> bool:
            return await status_reason(world, device_id) == OVER

        await until(is_told, "the reason is on its status page")
        # Not slept for: so much has grown back.
        world.app.state.sources.known(device_id).quota.left = 2.0

        async def is_forgiven() -> bool:
            return await status_reason(world, device_id) == "within its quota again"

        await until(is_forgiven, "half of the burst is there again")
        assert (await world.http.post(TELEMETRY, json=batch(1), headers=mine)).status_code == 202


async def test_neighbours_of_a_device_over_its_quota_are_not_concerned(run_with: RunWith) -> None:
    async with run_with(device_messages_per_second=0.001, device_burst=1) as world:
        loud, loud_token = await world.device()
        quiet, quiet_token = await world.device()
        await world.http.post(TELEMETRY, json=batch(100), headers=as_device(loud_token))
        for device_id, token, status in ((loud, loud_token, 429), (quiet, quiet_token, 202)):
            answer = await world.http.post(TELEMETRY, json=batch(1), headers=as_device(token))
            assert answer.status_code == status
            assert int(answer.headers.get("retry-after", 0)) > 1_000 or device_id == quiet
        # Nor is one way around it that a user sends in its name, or for others beside it.
        both = [{"device_id": str(device), "values": {"temp": 1}} for device in (quiet, loud)]
        answer = await world.http.post(TELEMETRY, json=both, headers=world.headers)
        assert answer.status_code == 429
        assert len(await world.until_stored(loud, 100)) == 100
        assert len(await world.stored(quiet)) == 1


async def test_a_user_has_no_fresh_quota_with_each_request_for_a_device(run_with: RunWith) -> None:
    async with run_with(device_messages_per_second=0.001, device_burst=10) as world:
        device_id, _ = await world.device()
        body = [{"device_id": str(device_id), **reading} for reading in batch(60)]
        statuses = []
        for _ in range(5):
            answer = await world.http.post(TELEMETRY, json=body, headers=world.headers)
            statuses.append(answer.status_code)
            # Nobody but the platform's own memory holds the device between two requests.
            gc.collect()
        # The second is taken whole, and owed.
        assert statuses == [202, 202, 429, 429, 429]
        assert len(await world.until_stored(device_id, 120)) == 120


async def test_a_device_has_one_quota_for_all_its_connections_and_protocols(
    run_with: RunWith,
) -> None:
    async with run_with(device_messages_per_second=0.001, device_burst=5) as world:
        device_id, token = await world.device()
        hello = packets.connect(
            client_id=str(device_id), username=str(device_id), password=token.encode()
        )
        for packet_id in (1, 2):
            async with raw(world) as device:
                await device.send(hello)
                await device.receive(4)
                await device.send(
                    *(
                        packets.publish(packet_id=n, device=str(device_id))
                        for n in range(packet_id * 10, packet_id * 10 + 3)
                    )
                )
                await device.receive(3 * 4)
        # It has said more by two connections than it may at once.
        answer = await world.http.post(TELEMETRY, json=batch(1), headers=as_device(token))
        assert answer.status_code == 429
        assert world.app.state.sources.known(device_id).quota.left < 0


@pytest.mark.parametrize("at_once", [20])
async def test_requests_that_race_owe_no_more_than_was_taken(
    run_with: RunWith, at_once: int
) -> None:
    async with run_with(device_messages_per_second=0.001, device_burst=3) as world:
        device_id, token = await world.device()
        answers = await asyncio.gather(
            *(
                world.http.post(TELEMETRY, json=batch(20), headers=as_device(token))
                for _ in range(at_once)
            )
        )
        taken = [answer for answer in answers if answer.status_code == 202]
        assert len(taken) == 2
        assert {answer.status_code for answer in answers} == {202, 429}
        assert len(await world.until_stored(device_id, 40)) == 40
