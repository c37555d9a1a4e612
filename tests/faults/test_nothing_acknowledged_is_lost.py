"""Invariant 1: acknowledged means stored safely, by every protocol, whatever is killed whenever.

Invariant 2 beside it: what is delivered twice shows once. And who was connected to what died is known to be gone.
"""

import asyncio
import json
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import aiomqtt
import asyncpg
import pytest

from clients.simulator.protocols import PORTS, PROTOCOLS, Address, Doors
from deploy.local.cluster import Cluster
from deploy.local.processes import LOOPBACK
from deploy.local.rabbitmq import RabbitMQ
from services.ingest.usecases.presence import DIED
from tests.contract.devices.driver import DeviceDriver, Reading, Refused
from tests.contract.devices.drivers import DRIVERS
from tests.faults.cable import Cable, cable_to
from tests.faults.conftest import LEASE_S, Plant
from tests.faults.lossy import lossy_network
from tests.fleet.fleet import METRICS, Entry, Fleet, Ledger, Member
from tests.waiting import until

BEFORE = 120
"""Points of every protocol acknowledged before anything breaks."""
AFTER = 240
"""Points of every protocol acknowledged after that: the platform is at work again."""

pytestmark = pytest.mark.timeout(300)


async def endure(
    plant: Plant,
    break_and_mend: Callable[[], None],
    times: int,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    within_s: float = 120,
) -> None:
    """Let all devices work while something is broken and mended; nothing may be missing at the end."""
    fleet = Fleet(plant.doors, await plant.members(protocols=protocols))
    async with fleet:
        for _ in range(times):
            await fleet.works(BEFORE, within_s=within_s)
            await asyncio.to_thread(break_and_mend)
            await fleet.works(AFTER, within_s=within_s)
    assert await fleet.ledger.verdict(plant.cluster.admin_url) == ""


def killed(cluster: Cluster, member: str) -> Callable[[], None]:
    def kill() -> None:
        cluster.kill(member)
        cluster.restart(member)

    return kill


async def test_ingest_is_killed_in_the_middle_of_batches(plant: Plant) -> None:
    await endure(plant, killed(plant.cluster, "ingest"), times=3)


async def test_the_writer_is_killed(plant: Plant) -> None:
    await endure(plant, killed(plant.cluster, "ingest-writer"), times=3)


async def test_rabbitmq_is_killed(plant: Plant) -> None:
    def kill() -> None:
        plant.cluster.rabbitmq.kill()
        plant.cluster.rabbitmq.start()

    await endure(plant, kill, times=1)


async def test_postgresql_is_killed(plant: Plant) -> None:
    def kill() -> None:
        plant.cluster.postgres.kill()
        plant.cluster.postgres.start()

    await endure(plant, kill, times=2)


async def test_while_the_broker_has_no_room_left_nothing_is_acknowledged_and_then_everything(
    plant: Plant,
) -> None:
    broker = plant.cluster.rabbitmq
    assert isinstance(broker, RabbitMQ), "the broker is killed, so it must be ours"
    # What comes by AMQP is acknowledged by a broker of its own, which has room.
    protocols = [protocol for protocol in PROTOCOLS if protocol != "amqp"]
    fleet = Fleet(plant.doors, await plant.members(protocols=protocols))
    async with fleet:
        await fleet.works(BEFORE, within_s=120)
        await asyncio.to_thread(broker.control, "set_disk_free_limit", "900GB")
        try:
            told = asyncio.get_running_loop().time()
            counted = (told, fleet.acknowledged)

            def has_stood_still() -> bool:
                # Two seconds without a single acknowledgement: what was on its way has arrived.
                nonlocal counted
                now = asyncio.get_running_loop().time()
                if fleet.acknowledged != counted[1]:
                    counted = (now, fleet.acknowledged)
                return now - counted[0] > 2

            await until(has_stood_still, "no acknowledgement by any protocol", within_s=30)
        finally:
            await asyncio.to_thread(broker.control, "set_disk_free_limit", "50MB")
        await fleet.works(AFTER, within_s=120)
    assert await fleet.ledger.verdict(plant.cluster.admin_url) == ""


async def test_connections_fall_silent_and_the_devices_begin_anew(plant: Plant) -> None:
    async with AsyncExitStack() as stack:
        doors, cables = await laid(stack, plant.doors)
        fleet = Fleet(doors, await plant.members(), patience_s=3)
        async with fleet:
            for _ in range(2):
                await fleet.works(BEFORE, within_s=120)
                assert sum(cable.freeze() for cable in cables)
                await fleet.works(AFTER, within_s=120)
        assert await fleet.ledger.verdict(plant.cluster.admin_url) == ""


async def laid(
    stack: AsyncExitStack, doors: Doors, *, near: str = LOOPBACK
) -> tuple[Doors, list[Cable]]:
    """Lay a cable to each of the doors; return where they are met then, at the address `near`."""
    cables: list[Cable] = []

    async def lay(address: Address) -> Address:
        cable = await stack.enter_async_context(cable_to(*address, listen=near))
        cables.append(cable)
        return near, cable.port

    laid_to = {name: await lay(doors.address(name)) for name in PORTS}
    _, _, port = doors.url.rpartition(":")
    host, port_there = await lay((LOOPBACK, int(port)))
    return Doors(f"http://{host}:{port_there}", laid_to), cables


@pytest.mark.parametrize("kind", DRIVERS, ids=lambda kind: kind.name)
async def test_what_comes_three_times_and_in_any_order_is_stored_once(
    plant: Plant, kind: type[DeviceDriver]
) -> None:
    identity = await plant.register(f"stutters by {kind.name}")
    now = int(datetime.now(UTC).timestamp() * 1000)
    times = [now + number for number in range(10)] * 3
    Random(now).shuffle(times)
    device = await kind.connect(plant.site(kind), identity)
    try:
        for ts in times:
            await device.send(Reading(dict.fromkeys(METRICS, float(ts % 1000)), ts))
    finally:
        await device.close()
    ledger = Ledger([Member(kind.name, identity.device_id, identity.token)])
    ledger.entries[identity.device_id] = Entry(array("q", times), array("q", times))
    assert await ledger.verdict(plant.cluster.admin_url) == ""


@pytest.mark.parametrize("kind", DRIVERS, ids=lambda kind: kind.name)
async def test_a_clock_that_is_wrong_costs_its_own_readings_and_no_others(
    plant: Plant, kind: type[DeviceDriver]
) -> None:
    identity = await plant.register("pump with a flat battery")
    device = await kind.connect(plant.site(kind), identity)
    now = int(datetime.now(UTC).timestamp() * 1000)
    try:
        for ts in (now, 86_400_000, 4_070_908_800_000, now + 1):  # 1970-01-02 and 2099-01-01
            try:
                await device.send(Reading({"temp": 1.5}, ts))
            except Refused:
                # A protocol that answers each value may say so to the device.
                assert ts not in (now, now + 1)
    finally:
        await device.close()
    ledger = Ledger([Member(kind.name, identity.device_id, identity.token)], metrics=["temp"])
    kept = array("q", [now, now + 1])
    ledger.entries[identity.device_id] = Entry(kept, kept)
    assert await ledger.verdict(plant.cluster.admin_url) == ""
    answer = await plant.http.get(
        f"/api/v1/telemetry/quarantine?device_id={identity.device_id}", headers=plant.headers
    )
    reasons = {entry["reason"] for entry in answer.json()["items"]}
    assert reasons == {"too_old", "clock_ahead"}


async def test_a_fifth_of_the_packets_is_lost(plant: Plant) -> None:
    members = await plant.members(each=2)
    ledger = Ledger(members)
    async with AsyncExitStack() as stack:
        network = stack.enter_context(lossy_network(percent=20))
        doors, _ = await laid(stack, plant.doors, near=network.near)
        told = {
            "members": [(m.protocol, str(m.device_id), m.token) for m in members],
            "url": doors.url,
            "doors": {name: doors.address(name) for name in PORTS},
            "points": BEFORE,
            "most_waiting": 4,
        }
        process = await asyncio.create_subprocess_exec(
            *network.inside(sys.executable, "-m", "tests.fleet.afar"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(json.dumps(told).encode()), 280)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        assert network.dropped() > 0
    by_id = {str(member.device_id): member.device_id for member in members}
    for line in map(json.loads, said.splitlines()):
        if "device" in line:
            ledger.entries[by_id[line["device"]]] = Entry(
                array("q", line["sent"]), array("q", line["acknowledged"])
            )
    found = await ledger.compare(plant.cluster.admin_url)
    assert {protocol: str(part) for protocol, part in found.items()} == dict.fromkeys(found, "")
    assert min(part.acknowledged for part in found.values()) >= BEFORE


async def test_devices_of_a_killed_endpoint_go_offline_unless_they_return(plant: Plant) -> None:
    cluster = plant.cluster
    registered = [await plant.register(name) for name in ("lost", "back")]
    devices = {device.device_id: device.token for device in registered}
    lost, back = devices

    def connect(device_id: UUID) -> aiomqtt.Client:
        host, port = plant.doors.address("mqtt")
        return aiomqtt.Client(
            hostname=host,
            port=port,
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
        await until(is_lost, "the device that did not return is offline", within_s=10 * LEASE_S)
        assert await status(back) == ("online", "connected by MQTT")
    await database.close()


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_ingest_is_killed_again_and_again(plant: Plant, protocol: str) -> None:
    await endure(plant, killed(plant.cluster, "ingest"), times=20, protocols=[protocol])


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_the_writer_is_killed_again_and_again(plant: Plant) -> None:
    await endure(plant, killed(plant.cluster, "ingest-writer"), times=20)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_postgresql_is_stopped_for_a_minute(plant: Plant) -> None:
    def stop() -> None:
        plant.cluster.postgres.stop()
        time.sleep(60)  # the length of the outage is the fault itself
        plant.cluster.postgres.start()

    await endure(plant, stop, times=1, within_s=180)
