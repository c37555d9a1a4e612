"""Devices over AMQP: a real RabbitMQ that asks ingest who they are, and real clients."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    DeliveryError,
)

from clients.simulator.devices.amqp import AmqpDevice
from clients.simulator.devices.device import CredentialRefused
from deploy.cli import dead_letters as cli
from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from services.ingest.app import build
from services.ingest.domain.profile import Profile
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.domain.quota import Quota, Rate
from services.ingest.protocols import amqp as protocol
from services.ingest.protocols.amqp import MOST_CONNECTIONS, SUSPECT, AmqpDevices
from services.ingest.protocols.amqp_deliveries import Delivery
from services.ingest.settings import Settings
from tests.amqp_broker import DevicesBroker
from tests.amqp_raw import RawDevice, nested
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running, serving
from tests.waiting import until

Come = Callable[[UUID, str], Awaitable["Device"]]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def broker(devices_broker: DevicesBroker) -> DevicesBroker:
    """The devices' broker."""
    return devices_broker


@asynccontextmanager
async def ingest(
    broker: DevicesBroker,
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    urls: DatabaseUrls,
    headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    app = build(broker.settings(settings), bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with (
        running(app, bus, urls, tenant_id, headers(tenant_id)) as world,
        serving(app, broker.http_port),
    ):
        await until(lambda: amqp_of(world).is_up, "ingest reads from the broker")
        yield world


@pytest.fixture
async def plant(
    broker: DevicesBroker,
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """An ingest that the broker asks."""
    async with ingest(broker, settings, bus, keys, database_urls, principal_headers) as world:
        yield world


def amqp_of(world: World) -> AmqpDevices:
    found: AmqpDevices = world.app.state.amqp
    return found


class Device:
    """A device with its connection."""

    def __init__(
        self, device_id: UUID, connection: AbstractConnection, channel: AbstractChannel
    ) -> None:
        self.id = device_id
        self.connection = connection
        self.channel = channel

    async def say(
        self,
        body: object,
        channel: str = "telemetry",
        *,
        of: object = None,
        user_id: str | None = "",
        content_type: str | None = "application/json",
    ) -> None:
        """Publish, and wait for the confirm."""
        exchange = await self.channel.get_exchange("devices", ensure=False)
        message = aio_pika.Message(
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            user_id=str(self.id) if user_id == "" else user_id,
            content_type=content_type,
            delivery_mode=2,
        )
        await exchange.publish(message, f"{of or self.id}.{channel}")


@pytest.fixture
async def come(broker: DevicesBroker) -> AsyncIterator[Come]:
    """Connect a device; it leaves at the end of the test."""
    connections: list[AbstractConnection] = []

    async def connect(device_id: UUID, token: str) -> Device:
        connection = await aio_pika.connect(broker.url_of(device_id, token))
        connections.append(connection)
        return Device(device_id, connection, await connection.channel())

    yield connect
    for connection in connections:
        await connection.close()


async def reasons(world: World, device_id: UUID) -> list[str]:
    listed = await world.http.get(
        f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=world.headers
    )
    return [entry["reason"] for entry in listed.json()["items"]]


async def until_quarantined(world: World, device_id: UUID, *expected: str) -> None:
    async def are_there() -> bool:
        return await reasons(world, device_id) == list(expected)

    await until(are_there, f"{expected} in quarantine")


async def test_what_a_device_publishes_is_stored_in_order(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    ts = int(datetime.now(UTC).timestamp() * 1000)
    for n in range(50):
        await device.say({"ts": ts + n, "values": {"temp": n}})
    points = await plant.until_stored(device_id, 50)
    assert [value for _, _, value in points] == [float(n) for n in range(50)]


async def test_a_stranger_is_not_let_in(plant: World, broker: DevicesBroker) -> None:
    device_id, token = await plant.device()
    other_id, _ = await plant.device()
    for user, password in (
        (device_id, "not the token"),
        (uuid4(), token),
        (other_id, token),
        ("admin", token),
        (str(device_id).upper(), token),
    ):
        with pytest.raises((AMQPError, ConnectionError)):
            await aio_pika.connect(broker.url_of(user, password))
    with pytest.raises((AMQPError, ConnectionError)):
        await aio_pika.connect(broker.url_of(device_id, token, vhost="%2f"))


async def test_a_device_says_nothing_in_another_s_name(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    victim_id, _ = await plant.device()
    device = await come(device_id, token)
    with pytest.raises(ChannelAccessRefused):
        await device.say({"temp": 1}, of=victim_id)
    device = await come(device_id, token)
    # The broker itself knows who is connected.
    with pytest.raises(ChannelPreconditionFailed):
        await device.say({"temp": 1}, user_id=str(victim_id))
    device = await come(device_id, token)
    await device.say({"temp": 2})
    await plant.until_stored(device_id, 1)
    assert await plant.stored(victim_id) == []
    assert await reasons(plant, victim_id) == []


async def test_a_message_without_a_user_id_is_quarantined(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 1}, user_id=None)
    await until_quarantined(plant, device_id, "user_id")
    assert await plant.stored(device_id) == []


async def test_a_device_uses_nothing_but_its_exchange_and_its_commands(
    plant: World, come: Come
) -> None:
    device_id, token = await plant.device()
    other_id, other_token = await plant.device()
    await come(other_id, other_token)

    async def refused(what: Callable[[AbstractChannel], Awaitable[object]]) -> None:
        device = await come(device_id, token)
        with pytest.raises(ChannelAccessRefused):
            await what(device.channel)

    async def read(channel: AbstractChannel, queue: str) -> None:
        async def hear(message: object) -> None: ...

        await (await channel.get_queue(queue, ensure=False)).consume(hear)

    await refused(lambda channel: channel.declare_queue("mine"))
    await refused(lambda channel: channel.declare_queue("", exclusive=True))
    await refused(lambda channel: channel.declare_exchange("mine"))
    await refused(lambda channel: read(channel, f"commands.{other_id}"))
    await refused(lambda channel: read(channel, "devices.ingest"))
    await refused(lambda channel: read(channel, "devices.dead"))

    async def spy(channel: AbstractChannel) -> None:
        queue = await channel.get_queue(f"commands.{device_id}", ensure=False)
        await queue.bind("devices", "#")

    await refused(spy)

    async def intrude(channel: AbstractChannel) -> None:
        await channel.default_exchange.publish(
            aio_pika.Message(b"{}"), routing_key=f"commands.{other_id}"
        )

    await refused(intrude)

    async def bind_exchanges(channel: AbstractChannel) -> None:
        topics = await channel.get_exchange("amq.topic", ensure=False)
        await topics.bind("devices", "#")

    await refused(bind_exchanges)

    async def delete(channel: AbstractChannel, queue: str) -> None:
        await (await channel.get_queue(queue, ensure=False)).delete(if_unused=False, if_empty=False)

    await refused(lambda channel: delete(channel, f"commands.{device_id}"))
    await refused(lambda channel: delete(channel, "devices.ingest"))

    async def purge(channel: AbstractChannel) -> None:
        await (await channel.get_queue(f"commands.{other_id}", ensure=False)).purge()

    await refused(purge)

    async def shout(channel: AbstractChannel) -> None:
        exchange = await channel.get_exchange("amq.fanout", ensure=False)
        await exchange.publish(aio_pika.Message(b"{}"), "")

    await refused(shout)


async def test_bad_messages_lie_in_quarantine_and_their_neighbours_are_stored(
    plant: World, come: Come
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say(b"\x00\xff")
    await device.say({"temp": 1}, content_type="image/png")
    await device.say({"temp": [1]})
    await device.say({"temp": 2})
    await plant.until_stored(device_id, 1)
    await until_quarantined(
        plant, device_id, "unsupported_value", "unsupported-media-type", "malformed"
    )


async def test_other_forms_are_read_by_their_content_type(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    pack = [{"n": "temp", "v": 21.5}, {"n": "on", "vb": True}]
    await device.say(pack, content_type="application/senml+json")
    points = await plant.until_stored(device_id, 2)
    assert {(metric, value) for metric, _, value in points} == {("temp", 21.5), ("on", 1.0)}


async def test_a_form_that_nobody_names_is_told_by_its_looks_and_noted(
    plant: World, come: Come
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say(b"ts,temp\n,21.5\n", content_type=None)
    await plant.until_stored(device_id, 1)
    source = plant.app.state.sources.known(device_id)
    assert source.payload_format is PayloadFormat.CSV
    # A word on its status is JSON whatever its telemetry is written in.
    await device.say({"status": "online"}, "status")
    source.profile = Profile(uuid4(), 1, payload_format=PayloadFormat.NATIVE)
    await device.say({"temp": 1}, content_type=None)
    await until_quarantined(plant, device_id, "unsupported-media-type")
    assert source.payload_format is PayloadFormat.CSV


async def test_alarms_and_status_of_its_own(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"status": "online", "reason": "says so"}, "status")

    async def is_online() -> bool:
        answer = await plant.http.get(f"/api/v1/devices/{device_id}", headers=plant.headers)
        return (answer.json()["status"], answer.json()["status_reason"]) == ("online", "says so")

    await until(is_online, "the device is online")
    await device.say({"severity": "loud"}, "alerts")
    await until_quarantined(plant, device_id, "invalid")


async def test_a_command_waits_in_the_device_s_queue_and_its_answer_comes_back(
    plant: World, come: Come
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    answer = await plant.http.post(
        f"/api/v1/devices/{device_id}/commands",
        json={"name": "open", "params": {"valve": 3}},
        headers=plant.headers,
    )
    assert answer.status_code == 201, answer.text
    queue = await device.channel.get_queue(f"commands.{device_id}")
    async with asyncio.timeout(15):
        async with queue.iterator() as commands:
            message = await anext(aiter(commands))
            command = json.loads(message.body)
            await message.ack()
    assert (command["name"], command["params"]) == ("open", {"valve": 3})
    assert command["id"] == answer.json()["id"]
    await device.say({"id": command["id"], "status": "succeeded", "result": 7}, "replies")

    async def has_succeeded() -> bool:
        path = f"/api/v1/devices/{device_id}/commands/{command['id']}"
        return bool(
            (await plant.http.get(path, headers=plant.headers)).json()["status"] == "succeeded"
        )

    await until(has_succeeded, "the command has succeeded")


async def test_a_device_that_stays_while_ingest_is_restarted_gets_its_commands(
    broker: DevicesBroker,
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    come: Come,
) -> None:
    async with ingest(broker, settings, bus, keys, database_urls, principal_headers) as world:
        device_id, token = await world.device()
        device = await come(device_id, token)
        headers = world.headers
    other = LocalBus(database_urls.bus, SystemClock())
    async with ingest(broker, settings, other, keys, database_urls, principal_headers) as again:
        answer = await again.http.post(
            f"/api/v1/devices/{device_id}/commands", json={"name": "open"}, headers=headers
        )
        assert answer.status_code == 201, answer.text
        queue = await device.channel.get_queue(f"commands.{device_id}")
        async with asyncio.timeout(15), queue.iterator() as commands:
            message = await anext(aiter(commands))
        assert json.loads(message.body)["name"] == "open"
    await other.stop()


async def test_a_queue_that_takes_no_command_is_let_alone_until_the_device_logs_in(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    """Each of its messages would claim the command, fail to send it and put it back."""
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    amqp = amqp_of(plant)
    async with broker_connection(broker) as channel:
        await channel.queue_delete(f"commands.{device_id}")
    answer = await plant.http.post(
        f"/api/v1/devices/{device_id}/commands", json={"name": "open"}, headers=plant.headers
    )
    assert answer.status_code == 201, answer.text
    await until(lambda: device_id in amqp._shut, "it is known that the queue has gone")
    ts = int(datetime.now(UTC).timestamp() * 1000)
    for n in range(10):
        await device.say({"ts": ts + n, "values": {"temp": n}})
        assert device_id not in amqp._ways
    await plant.until_stored(device_id, 11)
    assert device_id not in amqp._ways
    device = await come(device_id, token)
    queue = await device.channel.get_queue(f"commands.{device_id}")
    async with asyncio.timeout(15), queue.iterator() as commands:
        message = await anext(aiter(commands))
    assert json.loads(message.body)["id"] == answer.json()["id"]


async def test_a_queue_that_took_no_command_is_tried_again_after_a_while(
    plant: World, come: Come, broker: DevicesBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SHUT_S", 0.0)
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    amqp = amqp_of(plant)
    async with broker_connection(broker) as channel:
        await channel.queue_delete(f"commands.{device_id}")
        await plant.http.post(
            f"/api/v1/devices/{device_id}/commands", json={"name": "open"}, headers=plant.headers
        )
        await until(lambda: device_id not in amqp._ways, "it is known that the queue has gone")
        queue = await channel.declare_queue(f"commands.{device_id}", durable=True)
        await device.say({"temp": 1})
        async with asyncio.timeout(15), queue.iterator() as commands:
            message = await anext(aiter(commands))
        assert json.loads(message.body)["name"] == "open"
        await queue.delete()


class Listing:
    """A management API that lists queues of commands, and fails when it is asked for a page first."""

    def __init__(self, *pages: list[UUID]) -> None:
        self._pages = pages
        self._failed: set[int] = set()

    async def queues(self, vhost: str, prefix: str, page: int) -> tuple[list[str], int]:
        if page not in self._failed:
            self._failed.add(page)
            raise Unavailable("a page cannot be listed")
        named = [f"{prefix}{device_id}" for device_id in self._pages[page - 1]]
        return [*named, f"{prefix}nobody"], len(self._pages)


async def test_queues_that_outlived_a_process_are_found_each_looked_up_once(
    plant: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    amqp = amqp_of(plant)
    devices = [(await plant.device())[0] for _ in range(5)]
    broken = devices[1]
    source_of, looked_up = amqp._source_of, list[UUID]()

    async def look(device_id: UUID) -> object:
        looked_up.append(device_id)
        if device_id == broken:
            raise RuntimeError("a fault of ours")
        return await source_of(device_id)

    monkeypatch.setattr(amqp, "_source_of", look)
    listing = Listing(devices[:3], devices[3:])
    monkeypatch.setattr(amqp, "_management", listing)
    await amqp._find_ways()
    monkeypatch.undo()
    assert set(devices) - amqp._ways.keys() == {broken}
    assert sorted(set(looked_up)) == sorted(devices)
    assert [device for device in looked_up if device != broken] == [
        device for device in devices if device != broken
    ]


async def test_one_device_that_cannot_be_cut_does_not_keep_others_from_it(
    plant: World, come: Come, monkeypatch: pytest.MonkeyPatch
) -> None:
    amqp = amqp_of(plant)
    assert amqp._management is not None
    close = amqp._management.close_connections_of
    stuck = uuid4()

    async def fail(user: str, reason: str) -> None:
        if user == str(stuck):
            raise RuntimeError("a fault of ours")
        await close(user, reason)

    monkeypatch.setattr(amqp._management, "close_connections_of", fail)
    monkeypatch.setattr(protocol, "CUT_FOR_S", 0.2)
    plant.app.state.sources.revoke(stuck, "removed")
    device_id, token = await plant.device()
    device = await come(device_id, token)
    plant.app.state.sources.revoke(device_id, "removed")
    await until(lambda: device.channel.is_closed, "the other is cut", within_s=5)


@pytest.mark.parametrize("end", ["removed", "token replaced"])
async def test_a_revoked_device_is_cut_off_within_five_seconds(
    plant: World, come: Come, broker: DevicesBroker, end: str
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 1})
    await plant.until_stored(device_id, 1)
    path = f"/api/v1/devices/{device_id}"
    if end == "removed":
        ended = await plant.http.delete(path, headers=plant.headers)
    else:
        ended = await plant.http.post(f"{path}/credentials", json={}, headers=plant.headers)
    assert ended.is_success, ended.text
    await until(lambda: device.channel.is_closed, "the connection is cut", within_s=5)
    with pytest.raises((AMQPError, ConnectionError)):
        await aio_pika.connect(broker.url_of(device_id, token))


async def test_what_was_not_safe_when_ingest_went_comes_again_and_is_stored_once(
    broker: DevicesBroker,
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    come: Come,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ingest(broker, settings, bus, keys, database_urls, principal_headers) as world:
        device_id, token = await world.device()
        device = await come(device_id, token)
        await device.say({"temp": 0})
        await world.until_stored(device_id, 1)
        taken: list[object] = []
        monkeypatch.setattr(
            world.app.state.intake, "add", lambda source, decoded, done: taken.append(decoded)
        )
        ts = int(datetime.now(UTC).timestamp() * 1000)
        for n in range(1, 6):
            await device.say({"ts": ts + n, "values": {"temp": n}})
        await until(lambda: len(taken) == 5, "five messages taken and not acknowledged")
    other = LocalBus(database_urls.bus, SystemClock())
    async with ingest(broker, settings, other, keys, database_urls, principal_headers) as again:
        # Confirmed while nobody reads, too: it lies in the broker.
        points = await again.until_stored(device_id, 6)
        assert [value for _, _, value in points] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    await other.stop()


async def test_a_removed_device_s_last_words_are_dead_letters(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    before = await dead_letters(broker)
    removed_id, token = await plant.device()
    device = await come(removed_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(removed_id, 1)
    async with paused(plant):
        await device.say({"temp": 1})
        gone = await plant.http.delete(f"/api/v1/devices/{removed_id}", headers=plant.headers)
        assert gone.status_code == 204
        await until(lambda: device.channel.is_closed, "its connection is cut")

    async def is_there() -> bool:
        return await dead_letters(broker) == before + 1

    await until(is_there, "its last word is a dead letter")
    other_id, token = await plant.device()
    await (await come(other_id, token)).say({"temp": 1})
    await plant.until_stored(other_id, 1)


async def test_what_is_nobody_s_is_a_dead_letter_and_holds_nobody_up(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    before = await dead_letters(broker)
    async with broker_connection(broker) as channel:
        exchange = await channel.get_exchange("devices", ensure=False)
        for key in (f"{uuid4()}.telemetry", "nonsense", f"{uuid4()}.gossip"):
            await exchange.publish(aio_pika.Message(b"{}"), key)

    async def are_there() -> bool:
        return await dead_letters(broker) == before + 3

    await until(are_there, "three dead letters")
    device_id, token = await plant.device()
    await (await come(device_id, token)).say({"temp": 1})
    await plant.until_stored(device_id, 1)


async def test_a_full_queue_refuses_and_the_device_knows(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 1})
    await plant.until_stored(device_id, 1)
    policy = {
        "pattern": "^devices\\.ingest$",
        "definition": {"max-length": 0, "overflow": "reject-publish"},
    }
    plant.app.state.intake.is_full = True
    async with broker.api() as api:
        (await api.put("policies/devices/full", json=policy)).raise_for_status()
        try:
            with pytest.raises(DeliveryError):
                await flood(device)
        finally:
            (await api.delete("policies/devices/full")).raise_for_status()
            plant.app.state.intake.is_full = False
            for call in plant.app.state.intake.on_room:
                call()


async def flood(device: Device) -> None:
    """Publish more than ingest takes in its hands."""
    for _ in range(20_000):
        await device.say({"temp": 2})


@pytest.mark.parametrize("key", ["", "wrong", None])
async def test_nobody_but_the_broker_is_answered(
    plant: World, broker: DevicesBroker, key: str | None
) -> None:
    device_id, token = await plant.device()
    for what in ("user", "vhost", "resource", "topic"):
        answer = await plant.http.post(
            f"/internal/broker/{what}",
            params={} if key is None else {"key": key},
            content=f"username={device_id}&password={token}",
        )
        assert answer.status_code == 404
    answer = await plant.http.post(
        "/internal/broker/user",
        params={"key": broker.auth_key},
        content=f"username={device_id}&password={token}",
    )
    assert answer.text == "allow"


@asynccontextmanager
async def broker_connection(broker: DevicesBroker) -> AsyncIterator[AbstractChannel]:
    """A channel of the broker's administrator."""
    connection = await aio_pika.connect(broker.url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def dead_letters(broker: DevicesBroker) -> int:
    async with broker_connection(broker) as channel:
        queue = await channel.declare_queue("devices.dead", passive=True)
        return queue.declaration_result.message_count or 0


async def test_a_device_revoked_while_its_message_waits_holds_nobody_up(
    plant: World, come: Come, broker: DevicesBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are acknowledged in order: one that is never settled would end everybody's."""
    other_id, other_token = await plant.device()
    other = await come(other_id, other_token)
    device_id, token = await plant.device()
    device = await come(device_id, token)
    sources = plant.app.state.sources
    register, asked, may_go_on = sources.register, asyncio.Event(), asyncio.Event()

    async def wait(source: object, *arguments: object) -> None:
        if getattr(source, "device_id", None) == device_id:
            asked.set()
            await may_go_on.wait()
        await register(source, *arguments)

    monkeypatch.setattr(sources, "register", wait)
    before = await dead_letters(broker)
    await device.say({"new": 1})
    async with asyncio.timeout(15):
        await asked.wait()
    gone = await plant.http.delete(f"/api/v1/devices/{device_id}", headers=plant.headers)
    assert gone.status_code == 204
    await until(lambda: sources.known(device_id) is None, "the device is revoked")
    may_go_on.set()
    await other.say({"temp": 1})
    await plant.until_stored(other_id, 1)
    acknowledger = amqp_of(plant)._acknowledger
    assert acknowledger is not None
    await until(lambda: not acknowledger._taken, "all that was taken is acknowledged")

    async def is_dead() -> bool:
        return await dead_letters(broker) == before + 1

    await until(is_dead, "its last word is a dead letter")


async def test_a_message_that_is_too_large_is_refused_and_only_its_beginning_is_held(
    plant: World, come: Come
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    held: list[int] = []
    refuse = plant.app.state.intake.refuse_message

    def note(*given: Any, **named: object) -> None:
        held.append(len(given[3]))
        refuse(*given, **named)

    plant.app.state.intake.refuse_message = note
    await device.say({"temp": 1, "note": "x" * 1_000_000})
    await device.say({"temp": 2})
    await plant.until_stored(device_id, 1)
    await until_quarantined(plant, device_id, "too-large")
    assert held == [262_144]


async def test_a_device_revoked_while_it_logs_in_is_not_let_in(
    plant: World, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    welcome = plant.app.state.welcome_at_broker

    async def revoke_meanwhile(source: object) -> None:
        await welcome(source)
        plant.app.state.sources.revoke(device_id, "its token was replaced")

    plant.app.state.welcome_at_broker = revoke_meanwhile
    answer = await plant.http.post(
        "/internal/broker/user",
        params={"key": broker.auth_key},
        content=f"username={device_id}&password={token}",
    )
    assert answer.text == "deny"


async def test_a_device_revoked_while_it_is_looked_up_is_looked_up_again(
    plant: World, come: Come, broker: DevicesBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    sources = plant.app.state.sources
    of_tenant, times = sources.of_tenant, 0

    async def revoked_meanwhile(tenant_id: UUID, asked: UUID) -> object:
        nonlocal times
        source = await of_tenant(tenant_id, asked)
        times += asked == device_id
        if asked == device_id and times == 1:
            sources.revoke(device_id, "its token was replaced")
        return source

    monkeypatch.setattr(sources, "of_tenant", revoked_meanwhile)
    before = await dead_letters(broker)
    await device.say({"temp": 1})
    await plant.until_stored(device_id, 1)
    assert times > 1
    assert await dead_letters(broker) == before


async def test_dead_letters_that_are_too_many_do_not_hold_up_the_living(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    async with (
        broker.api() as api,
        broker_connection(broker) as channel,
    ):
        policy = {"pattern": "^devices\\.dead$", "definition": {"max-length": 1}}
        (await api.put("policies/devices/few", json=policy)).raise_for_status()
        try:
            exchange = await channel.get_exchange("devices", ensure=False)
            for number in range(5):
                await exchange.publish(aio_pika.Message(b"{}"), f"nonsense.{number}")
            queue = await channel.get_queue("devices.dead")

            async def is_the_last() -> bool:
                found = await queue.get(fail=False)
                if found is not None:
                    await found.reject(requeue=True)
                return found is not None and found.routing_key == "nonsense.4"

            await until(is_the_last, "the dead letters are the newest")
        finally:
            (await api.delete("policies/devices/few")).raise_for_status()
    device_id, token = await plant.device()
    await (await come(device_id, token)).say({"temp": 1})
    await plant.until_stored(device_id, 1)


@pytest.mark.parametrize("shown", [{}, {"key": ""}])
async def test_an_installation_without_a_key_answers_nobody(
    world: World, shown: dict[str, str]
) -> None:
    device_id, token = await world.device()
    answer = await world.http.post(
        "/internal/broker/user", params=shown, content=f"username={device_id}&password={token}"
    )
    assert answer.status_code == 404


HOSTILE_PROPERTIES = {
    "headers nested without end": {"headers": nested(8_000)},
    "a header of a type that is none": {"headers": b"\x01k?"},
    "a text that is none": {"content_type": b"\xff\xfe"},
    "a time that is none": {"timestamp": b"\xff" * 8},
}


@pytest.mark.parametrize("properties", HOSTILE_PROPERTIES.values(), ids=HOSTILE_PROPERTIES.keys())
async def test_properties_that_nobody_can_read_harm_nobody(
    plant: World, come: Come, broker: DevicesBroker, properties: dict[str, bytes]
) -> None:
    """The broker hands them on as they are; a reader that fell over them would fall for ever."""
    device_id, token = await plant.device()
    other_id, other_token = await plant.device()
    other = await come(other_id, other_token)
    device = await RawDevice.connect(broker.server.port, device_id, token)
    link = amqp_of(plant)._link
    connection = await link.connection()
    try:
        await device.publish(device_id, b'{"temp": 1}', **properties)
    except (RuntimeError, ConnectionError):
        pass  # a broker that reads them refuses them itself
    finally:
        device.close()
    await other.say({"temp": 2})
    await plant.until_stored(other_id, 1)
    assert await link.connection() is connection, "ours was lost over it"


async def test_a_message_at_which_ingest_ends_each_time_takes_no_other_with_it(
    plant: World, come: Come, broker: DevicesBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    amqp, dead, most = amqp_of(plant), await dead_letters(broker), SUSPECT + 2
    monkeypatch.setattr(protocol, "UNREAD", most)
    take, read_at, given_back = amqp._take, list[int](), set[int]()

    def take_or_die(acknowledger: Any, message: Delivery) -> bool:
        if b"poison" not in message.body:
            given_back.add(message.failures)
        elif message.failures < most:
            read_at.append(message.failures)
            acknowledger.take(message.tag)  # and never lets go of it, nor of what is behind it
            plant.app.state.reception.spawn(acknowledger.channel.close())
            return True
        return take(acknowledger, message)

    monkeypatch.setattr(amqp, "_take", take_or_die)
    ts = int(datetime.now(UTC).timestamp() * 1000)
    async with paused(plant):
        for n in range(5):
            await device.say({"ts": ts + n, "values": {"temp": n}})
        await device.say(b"poison")
        for n in range(5, 10):
            await device.say({"ts": ts + n, "values": {"temp": n}})
    points = await plant.until_stored(device_id, 11)
    assert [value for _, _, value in points[1:]] == [float(n) for n in range(10)]
    await until_quarantined(plant, device_id, "internal")
    assert read_at == list(range(most))
    assert max(given_back) == SUSPECT, "they were counted with the guilty one"
    assert await dead_letters(broker) == dead


async def test_a_count_that_the_device_made_up_is_not_believed(
    plant: World, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    device = await RawDevice.connect(broker.server.port, device_id, token)
    count = b"\x10x-delivery-countl" + (99).to_bytes(8, "big")
    await device.publish(device_id, b'{"temp": 1}', headers=count)
    device.close()
    await plant.until_stored(device_id, 1)
    assert await reasons(plant, device_id) == []


@asynccontextmanager
async def paused(world: World) -> AsyncIterator[None]:
    """Have ingest take messages in its hands, and read none meanwhile."""
    intake = world.app.state.intake
    intake.is_full = True
    yield
    intake.is_full = False
    for call in intake.on_room:
        call()


async def test_a_stranger_who_guesses_shuts_no_device_out(
    plant: World, broker: DevicesBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plant.app.state.reception, "guesses", Guesses(per_minute=2))
    device_id, token = await plant.device()

    async def ask(password: str) -> str:
        answer = await plant.http.post(
            "/internal/broker/user",
            params={"key": broker.auth_key},
            content=f"username={device_id}&password={password}",
        )
        return answer.text

    for n in range(5):
        assert await ask(f"{n}{token}") == "deny"
    assert await ask(token) == "allow"


async def test_a_device_far_over_its_quota_is_cut_off_and_what_was_confirmed_is_stored(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    source = plant.app.state.sources.known(device_id)
    source.quota = Quota(Rate(per_second=1.0, burst=10.0), asyncio.get_running_loop().time())
    ts, confirmed = int(datetime.now(UTC).timestamp() * 1000), 0
    async with asyncio.timeout(20):
        with contextlib.suppress(AMQPError, ConnectionError, RuntimeError):
            while not device.channel.is_closed:
                await device.say({"ts": ts + confirmed, "values": {"temp": confirmed}})
                confirmed += 1
    assert confirmed > 20
    with pytest.raises((AMQPError, ConnectionError)):
        await aio_pika.connect(broker.url_of(device_id, token))
    await plant.until_stored(device_id, 1 + confirmed)

    async def says_why() -> bool:
        answer = await plant.http.get(f"/api/v1/devices/{device_id}", headers=plant.headers)
        return str(answer.json()["status_reason"]).startswith("over its quota")

    await until(says_why, "its status page says why")
    source.quota = Quota(Rate(), asyncio.get_running_loop().time())
    await come(device_id, token)


@pytest.mark.parametrize("user_id", ["", None])
async def test_a_large_message_counts_as_many_small_ones(
    plant: World, come: Come, user_id: str | None
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    source = plant.app.state.sources.known(device_id)
    rate = Rate(per_second=0.001, burst=1_000.0)
    source.quota = quota = Quota(rate, asyncio.get_running_loop().time())
    await device.say({"note": "x" * 100_000}, user_id=user_id)
    await until(lambda: quota.left < 900, "it has spent a message for each thousand bytes")


async def test_a_simulated_device_works_does_as_it_is_told_and_comes_back(
    plant: World, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    told: list[str] = []

    def obey(name: str, params: object) -> str:
        told.append(name)
        return "open"

    device = AmqpDevice(
        str(device_id), token, Random(1), port=broker.port, timeout=10, on_command=obey
    )
    device.backoff.longest = 0.2
    running = asyncio.create_task(device.run())
    try:
        device.offer(int(datetime.now(UTC).timestamp() * 1000), {"temp": 1.0})
        async with asyncio.timeout(20):
            await device.drain()
        answer = await plant.http.post(
            f"/api/v1/devices/{device_id}/commands", json={"name": "open"}, headers=plant.headers
        )
        path = f"/api/v1/devices/{device_id}/commands/{answer.json()['id']}"

        async def has_succeeded() -> bool:
            found = (await plant.http.get(path, headers=plant.headers)).json()
            return (found["status"], found["result"]) == ("succeeded", "open")

        await until(has_succeeded, "the command has succeeded")
        async with broker.api() as api:
            (await api.delete(f"connections/username/{device_id}")).raise_for_status()
        await until(lambda: device.stats.connects == 2, "it is back")
        device.offer(0, {"temp": 2.0})
        async with asyncio.timeout(20):
            await device.drain()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (device.stats.acknowledged, told) == (2, ["open"])
    stranger = AmqpDevice(str(device_id), f"x{token}", Random(1), port=broker.port)
    with pytest.raises(CredentialRefused):
        await stranger.run()


async def test_dead_letters_are_looked_at_put_back_and_thrown_away(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    (await come(device_id, token))
    stranger_id = str(uuid4())
    gone = await plant.http.delete(f"/api/v1/devices/{device_id}", headers=plant.headers)
    assert gone.status_code == 204
    async with broker_connection(broker) as channel:
        exchange = await channel.get_exchange("devices", ensure=False)
        for n, name in enumerate([str(device_id), stranger_id, str(device_id)]):
            reading = json.dumps({"ts": 1_790_000_000_000 + n, "values": {"temp": n}})
            await exchange.publish(
                aio_pika.Message(reading.encode(), user_id=name, content_type="application/json"),
                f"{name}.telemetry",
            )

    async def are_there() -> bool:
        return len(await look()) == 2

    async def look(device: str = str(device_id)) -> list[Delivery]:
        return await cli.dead_letters(broker.url, 1_000, device)

    await until(are_there, "the removed device's two dead letters")
    assert [json.loads(letter.body)["values"]["temp"] for letter in await look()] == [0, 2]
    restored = await plant.http.post(f"/api/v1/devices/{device_id}/restore", headers=plant.headers)
    assert restored.is_success, restored.text
    assert await cli.replay(broker.url, 1, str(device_id)) == 1
    points = await plant.until_stored(device_id, 1)
    assert [value for _, _, value in points] == [0.0]
    assert await cli.discard(broker.url, 5, str(device_id)) == 1

    async def is_left() -> bool:
        # Who looked a moment ago may have some of them still.
        return len(await look(stranger_id)) == 1

    await until(is_left, "the stranger's dead letter lies there still")
    assert await look() == []
    with pytest.raises(cli.BrokerRefused):
        await cli.dead_letters(broker.url_of("nobody", "x"), 1, None)


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_copy_in_another_s_name_is_none(plant: World, come: Come, header: str) -> None:
    """The broker routes by these headers, too, and asks nobody whether the sender may."""
    device_id, token = await plant.device()
    victim_id, victim_token = await plant.device()
    victim = await come(victim_id, victim_token)
    await victim.say({"temp": 1})
    await plant.until_stored(victim_id, 1)
    device = await come(device_id, token)
    exchange = await device.channel.get_exchange("devices", ensure=False)
    copies: list[Any] = [f"{victim_id}.telemetry", f"commands.{victim_id}", "devices.dead"]
    await exchange.publish(
        aio_pika.Message(b'{"temp": 2}', user_id=str(device_id), headers={header: copies}),
        f"{device_id}.telemetry",
    )
    await victim.say({"temp": 3})
    await plant.until_stored(device_id, 1)
    points = await plant.until_stored(victim_id, 2)
    assert [value for _, _, value in points] == [1.0, 3.0]
    commands = await victim.channel.get_queue(f"commands.{victim_id}")
    assert await commands.get(fail=False) is None


async def test_a_device_is_no_user_of_the_management_api(
    plant: World, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    async with broker.api() as api:
        for path in ("whoami", "overview", "vhosts", "queues/devices", "connections"):
            answer = await api.get(path, auth=(str(device_id), token))
            assert answer.status_code == 401, (path, answer.text)


@pytest.mark.long
async def test_a_broker_that_ends_with_messages_in_our_hands_delivers_them_again(
    plant: World, come: Come, broker: DevicesBroker
) -> None:
    device_id, token = await plant.device()
    device = await come(device_id, token)
    await device.say({"temp": 0})
    await plant.until_stored(device_id, 1)
    ts = int(datetime.now(UTC).timestamp() * 1000)
    async with paused(plant):
        for n in range(5):
            await device.say({"ts": ts + n, "values": {"temp": n}})
        await asyncio.to_thread(broker.server.kill)
        await asyncio.to_thread(broker.server.start)
    await until(lambda: amqp_of(plant).is_up, "ingest reads again", within_s=30)
    points = await plant.until_stored(device_id, 6)
    assert [value for _, _, value in points[1:]] == [float(n) for n in range(5)]


async def test_a_device_cannot_take_all_the_broker_s_connections(plant: World, come: Come) -> None:
    device_id, token = await plant.device()
    had = 0

    async def come_again_and_again() -> None:
        nonlocal had
        for _ in range(3 * MOST_CONNECTIONS):
            await come(device_id, token)
            had += 1

    with pytest.raises((AMQPError, ConnectionError)):
        await come_again_and_again()
    assert MOST_CONNECTIONS <= had < 2 * MOST_CONNECTIONS
    other_id, other_token = await plant.device()
    await (await come(other_id, other_token)).say({"temp": 1})
    await plant.until_stored(other_id, 1)
