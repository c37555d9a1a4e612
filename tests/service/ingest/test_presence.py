"""Who is online, noted by endpoints that come, die, hang and stop, on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import asyncpg
import pytest

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.presence import after
from services.ingest.store.connections import Connections, Noting
from services.ingest.store.store import IngestStore
from services.ingest.usecases import presence as usecase
from services.ingest.usecases.presence import DIED, STOPPED, Presence
from services.ingest.usecases.reports import Reports
from tests.alarms import shift_clock
from tests.database import DatabaseUrls
from tests.waiting import until

LEASE = timedelta(hours=1)
"""Longer than any test: what ends in one was ended by it."""
LINE = object()
"""The connection of devices that have one."""


class Site:
    """Endpoints of one installation, and the devices of some tenants."""

    def __init__(self, urls: DatabaseUrls, bus: LocalBus, admin: asyncpg.Connection) -> None:
        self.urls = urls
        self.bus = bus
        self.admin = admin
        self.clock = SystemClock()
        self.database = Database(urls.rw("ingest"))
        self.engine = Database(urls.engine("ingest"), across_tenants=True)
        self.outbox = bus.outbox("ingest")
        self.endpoints: list[Presence] = []

    async def endpoint(self) -> Presence:
        """Start an endpoint; return it when it has its lease."""
        connections = Connections(self.database, self.engine, self.outbox, LEASE)
        presence = Presence(connections, self.clock, LEASE)
        presence.start()
        self.endpoints.append(presence)
        await until(lambda: presence._endpoint_id is not None, "a lease")
        return presence

    async def kill(self, presence: Presence) -> None:
        """End an endpoint as SIGKILL does: it says nothing to anybody."""
        self.endpoints.remove(presence)
        for task in (presence._writer, presence._ticker._task):
            assert task is not None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def devices(self, count: int, tenants: int = 1) -> list[Source]:
        """Register devices, by turns of several tenants."""
        owners = [uuid4() for _ in range(tenants)]
        sources = [Source(uuid4(), owners[n % tenants], 1, 0, {}) for n in range(count)]
        await self.admin.execute(
            "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
            " SELECT t, d, d::text, 'pump', now(), now() FROM unnest($1::uuid[], $2::uuid[]) u(t, d)",
            [source.tenant_id for source in sources],
            [source.device_id for source in sources],
        )
        return sources

    async def status(self, source: Source) -> tuple[str, str]:
        """Return a device's status and the reason."""
        row = await self.admin.fetchrow(
            "SELECT status, status_reason FROM ingest.devices WHERE id = $1", source.device_id
        )
        assert row is not None
        return row["status"], row["status_reason"]

    async def holder(self, source: Source) -> UUID | None:
        """Return the endpoint that a device is connected to."""
        holder: UUID | None = await self.admin.fetchval(
            "SELECT endpoint_id FROM ingest.devices WHERE id = $1", source.device_id
        )
        return holder

    async def until_status(self, source: Source, status: str, reason: str) -> None:
        async def holds() -> bool:
            return await self.status(source) == (status, reason)

        await until(holds, f"{status}: {reason}")

    async def said(self, *sources: Source) -> dict[UUID, list[str]]:
        """Return what was said of the devices' status on the bus, in order."""
        rows = await self.admin.fetch(
            "SELECT convert_from(body, 'utf-8') AS body FROM bus.log"
            " WHERE type = 'device.status_changed.v1' AND tenant_id = ANY($1) ORDER BY position",
            list({source.tenant_id for source in sources}),
        )
        said: dict[UUID, list[str]] = {source.device_id: [] for source in sources}
        for event in map(json.loads, (row["body"] for row in rows)):
            said[UUID(event["device_id"])].append(event["status"])
        return said

    async def pass_time(self, by: timedelta) -> None:
        """Move PostgreSQL's clock to so long after the true time."""
        await shift_clock(self.urls, f"{by.total_seconds()} seconds")

    async def leases(self) -> set[UUID]:
        return {row["id"] for row in await self.admin.fetch("SELECT id FROM ingest.endpoints")}


@pytest.fixture
async def site(database_urls: DatabaseUrls, bus: LocalBus) -> AsyncIterator[Site]:
    admin = await asyncpg.connect(database_urls.admin)
    await admin.execute("UPDATE ingest.devices SET endpoint_id = NULL")
    await admin.execute("DELETE FROM ingest.endpoints")
    site = Site(database_urls, bus, admin)
    yield site
    for presence in site.endpoints:
        await presence.stop()
    await shift_clock(database_urls, "0 seconds")
    await admin.close()
    await site.database.close()
    await site.engine.close()


@pytest.fixture
def transactions(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many devices each transaction noted."""
    counts: list[int] = []
    save = Noting.save

    async def count(noting: Noting, changed: dict[object, object]) -> None:
        counts.append(len(changed))
        await save(noting, changed)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(Noting, "save", count)
    return counts


async def test_two_thousand_devices_of_many_tenants_that_come_at_once_are_noted_together(
    site: Site, transactions: list[int]
) -> None:
    endpoint = await site.endpoint()
    devices = await site.devices(2_000, tenants=50)
    for device in devices:
        endpoint.came(device, LINE, "connected")

    async def all_online() -> bool:
        rows = await site.admin.fetch(
            "SELECT FROM ingest.devices WHERE status = 'online' AND id = ANY($1)",
            [device.device_id for device in devices],
        )
        return len(rows) == 2_000

    await until(all_online, "2,000 devices online")
    assert transactions == [1_000, 1_000]
    assert set(map(tuple, (await site.said(*devices)).values())) == {("online",)}


async def test_a_device_that_comes_and_goes_again_and_again_ends_as_it_was_last_seen(
    site: Site,
) -> None:
    endpoint = await site.endpoint()
    stays, leaves = await site.devices(2, tenants=2)
    for _ in range(20):
        endpoint.came(stays, LINE, "connected")
        endpoint.came(leaves, LINE, "connected")
        await asyncio.sleep(0)
        endpoint.went(stays, LINE, "gone")
        endpoint.went(leaves, LINE, "gone")
    endpoint.came(stays, LINE, "connected")
    await site.until_status(stays, "online", "connected")
    await site.until_status(leaves, "offline", "gone")
    said = await site.said(stays, leaves)
    for changes in said.values():
        assert all(one != other for one, other in pairwise(changes))


async def test_one_device_s_trouble_stops_no_other_ones_status(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await site.endpoint()
    devices = await site.devices(9)
    bad = devices[4]

    def fail_for_one(noted: object, seen: object, endpoint_id: object) -> object:
        if seen.device_id == bad.device_id:  # type: ignore[attr-defined]  # a Seen
            raise RuntimeError("a fault")
        return after(noted, seen, endpoint_id)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(usecase, "after", fail_for_one)
    for device in devices:
        endpoint.came(device, LINE, "connected")
    for device in devices:
        if device is not bad:
            await site.until_status(device, "online", "connected")
    assert await site.status(bad) == ("unknown", "")


async def test_what_cannot_be_written_now_is_written_later_and_in_order(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await site.endpoint()
    monkeypatch.setattr(usecase, "PAUSE_S", 0.01)
    first, second = await site.devices(2)
    is_away, tries = True, 0
    noted = Noting.noted

    async def be_away(noting: Noting, devices: object) -> object:
        nonlocal tries
        tries += 1
        if tries == 2:
            endpoint.went(first, LINE, "gone")  # while what is older is being written
        if is_away:
            raise ConnectionError("the database is away")
        return await noted(noting, devices)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(Noting, "noted", be_away)
    endpoint.came(first, LINE, "connected")
    endpoint.came(second, LINE, "connected")
    await until(lambda: tries > 3, "some tries")
    is_away = False
    await site.until_status(first, "offline", "gone")
    await site.until_status(second, "online", "connected")


async def test_a_fault_in_taking_a_lease_stops_nothing_for_good(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usecase, "PAUSE_S", 0.01)
    endpoint = await site.endpoint()
    (device,) = await site.devices(1)
    endpoint._endpoint_id = None
    take, tries = Connections.open, 0

    async def fail_at_first(connections: Connections, endpoint_id: UUID) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise RuntimeError("a fault")
        await take(connections, endpoint_id)

    monkeypatch.setattr(Connections, "open", fail_at_first)
    endpoint.came(device, LINE, "connected")
    await site.until_status(device, "online", "connected")


async def test_an_endpoint_that_cannot_say_goodbye_ends_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = await site.endpoint()

    async def fail(*_: object) -> None:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(Connections, "expire", fail)
    site.endpoints.remove(endpoint)
    held = endpoint._endpoint_id
    await endpoint.stop()
    assert await site.leases() == {held}, "it runs out by itself"


async def test_an_endpoint_that_dies_without_a_word_leaves_its_devices_offline(site: Site) -> None:
    dying, living = await site.endpoint(), await site.endpoint()
    lost, moved, other = await site.devices(3, tenants=3)
    dying.came(lost, LINE, "connected")
    dying.came(moved, LINE, "connected")
    living.came(other, LINE, "connected")
    for device in (lost, moved, other):
        await site.until_status(device, "online", "connected")
    await site.kill(dying)
    living.came(moved, LINE, "connected")

    await site.pass_time(LEASE - timedelta(minutes=5))
    await living.look_around()
    assert await site.status(lost) == ("online", "connected"), "its lease runs still"

    await site.pass_time(LEASE + timedelta(minutes=5))
    await living.look_around()
    assert await site.status(lost) == ("offline", DIED)
    assert await site.status(moved) == ("online", "connected")
    assert await site.status(other) == ("online", "connected")
    assert await site.leases() == {living._endpoint_id}
    said = await site.said(lost, moved, other)
    assert said[lost.device_id] == ["online", "offline"]
    assert said[moved.device_id] == said[other.device_id] == ["online"]


async def test_two_endpoints_that_find_a_dead_one_say_so_once(site: Site) -> None:
    dying, one, other = [await site.endpoint() for _ in range(3)]
    devices = await site.devices(1_500, tenants=10)
    for device in devices:
        dying.came(device, LINE, "connected")
    await site.until_status(devices[-1], "online", "connected")
    await site.kill(dying)
    await site.pass_time(LEASE - timedelta(minutes=5))
    await asyncio.gather(one.look_around(), other.look_around())
    await site.pass_time(LEASE + timedelta(minutes=5))

    async def all_cleared() -> bool:
        await asyncio.gather(one.look_around(), other.look_around())
        return await site.leases() == {one._endpoint_id, other._endpoint_id}

    await until(all_cleared, "the dead endpoint is forgotten")
    assert set(map(tuple, (await site.said(*devices)).values())) == {("online", "offline")}


async def test_an_endpoint_that_was_taken_for_dead_says_anew_who_is_there(site: Site) -> None:
    slow, living = await site.endpoint(), await site.endpoint()
    (device,) = await site.devices(1)
    slow.came(device, LINE, "connected")
    await site.until_status(device, "online", "connected")
    await site.pass_time(LEASE - timedelta(minutes=5))
    await living.look_around()
    await site.pass_time(LEASE + timedelta(minutes=5))
    await living.look_around()
    await site.until_status(device, "offline", DIED)
    was = slow._endpoint_id

    await slow.look_around()
    await site.until_status(device, "online", "connected")
    assert slow._endpoint_id != was
    assert slow._endpoint_id in await site.leases()


async def test_a_word_for_a_lease_that_has_ended_takes_another_first(site: Site) -> None:
    slow, living = await site.endpoint(), await site.endpoint()
    here, late = await site.devices(2)
    slow.came(here, LINE, "connected")
    await site.until_status(here, "online", "connected")
    await site.pass_time(LEASE - timedelta(minutes=5))
    await living.look_around()
    await site.pass_time(LEASE + timedelta(minutes=5))
    await living.look_around()
    slow.came(late, LINE, "connected")
    await site.until_status(late, "online", "connected")
    await site.until_status(here, "online", "connected")


async def test_after_an_absence_of_the_database_nobody_is_taken_for_dead(site: Site) -> None:
    """Then all leases have ended, and whoever comes back first must not judge the others by that."""
    one, other = await site.endpoint(), await site.endpoint()
    (device,) = await site.devices(1)
    one.came(device, LINE, "connected")
    await site.until_status(device, "online", "connected")
    await site.pass_time(3 * LEASE)
    await other.look_around()
    assert await site.status(device) == ("online", "connected")
    await one.look_around()
    held = one._endpoint_id

    async def is_held() -> bool:
        return await site.holder(device) == held

    await until(is_held, "the device belongs to the new lease")
    await site.pass_time(4 * LEASE - timedelta(minutes=5))
    await asyncio.gather(one.look_around(), other.look_around())
    await site.pass_time(4 * LEASE + timedelta(minutes=5))
    await asyncio.gather(one.look_around(), other.look_around())
    assert await site.status(device) == ("online", "connected")
    assert await site.said(device) == {device.device_id: ["online"]}


async def test_an_endpoint_that_stops_leaves_nobody_online_and_no_lease(site: Site) -> None:
    endpoint = await site.endpoint()
    told, forgotten = await site.devices(2)
    endpoint.came(told, LINE, "connected")
    endpoint.came(forgotten, LINE, "connected")
    await site.until_status(forgotten, "online", "connected")
    site.endpoints.remove(endpoint)
    endpoint.went(told, LINE, "gone")
    await endpoint.stop()
    assert await site.status(told) == ("offline", "gone")
    assert await site.status(forgotten) == ("offline", STOPPED)
    assert await site.leases() == set()


async def test_the_end_of_an_older_connection_elsewhere_does_not_hide_the_newer_one(
    site: Site,
) -> None:
    old, new = await site.endpoint(), await site.endpoint()
    (device,) = await site.devices(1)
    old.came(device, LINE, "connected")
    await site.until_status(device, "online", "connected")
    new.came(device, LINE, "connected anew")
    await site.until_status(device, "online", "connected anew")
    marker, _ = await site.devices(2)
    old.went(device, LINE, "no sign of life")
    old.came(marker, LINE, "connected")
    await site.until_status(marker, "online", "connected")
    assert await site.status(device) == ("online", "connected anew")


async def test_a_device_s_own_word_is_not_overwritten_by_one_that_is_older(site: Site) -> None:
    endpoint = await site.endpoint()
    (device,) = await site.devices(1)
    reports = Reports(Transactions(site.database, site.outbox, IngestStore), 30)
    soon = site.clock.now() + timedelta(seconds=5)
    said = b'{"status": "online", "reason": "booted"}'
    await reports.take(device, Channel.STATUS, said, soon)
    endpoint.came(device, LINE, "connected")

    async def is_held() -> bool:
        return await site.holder(device) == endpoint._endpoint_id

    await until(is_held, "the connection is noted")
    assert await site.status(device) == ("online", "booted")


async def test_a_device_is_online_until_the_last_of_its_connections_has_ended(site: Site) -> None:
    endpoint = await site.endpoint()
    (device,) = await site.devices(1)
    own, connector, mute = object(), object(), object()
    endpoint.came(device, own, "connected by MQTT")
    endpoint.went(device, mute, "never answered")
    await site.until_status(device, "online", "connected by MQTT")
    endpoint.came(device, connector, "connected by a connector")
    await site.until_status(device, "online", "connected by a connector")
    endpoint.went(device, connector, "the connector is not connected")
    await site.until_status(device, "online", "connected by MQTT")
    endpoint.came(device, connector, "connected by a connector")
    endpoint.went(device, own, "disconnected")
    await site.until_status(device, "online", "connected by a connector")
    endpoint.went(device, connector, "the connector is not connected")
    await site.until_status(device, "offline", "the connector is not connected")
    assert (await site.said(device))[device.device_id].count("offline") == 1


async def test_an_older_connection_that_is_left_gives_way_to_a_newer_one_elsewhere(
    site: Site,
) -> None:
    slow, living = await site.endpoint(), await site.endpoint()
    (device,) = await site.devices(1)
    own, connector = object(), object()
    slow.came(device, own, "connected by MQTT")
    slow.came(device, connector, "connected by a connector")
    slow.went(device, connector, "the connector is not connected")
    await site.until_status(device, "online", "connected by MQTT")
    slow._endpoint_id = None
    await slow.look_around()

    async def is_held() -> bool:
        return await site.holder(device) == slow._endpoint_id

    await until(is_held, "the device belongs to the new lease")
    living.came(device, LINE, "connected elsewhere")
    await site.until_status(device, "online", "connected elsewhere")
    slow.went(device, own, "disconnected")
    marker, _ = await site.devices(2)
    slow.came(marker, LINE, "connected")
    await site.until_status(marker, "online", "connected")
    assert await site.status(device) == ("online", "connected elsewhere")
